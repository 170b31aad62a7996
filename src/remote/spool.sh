# Between a job and whoever runs it in the foreground: takes its output as it comes, into files that go when they are
# delivered, and gives it its input. A file's name ends in the position of its first byte in the stream. Runs in the
# supervisor, before the job.
# Given by the client: rs_limit, how many bytes of a stream may wait here; then the job blocks, as on a full pipe.

# rs_sum FILE... : sets rs_total to how many bytes they hold.
rs_sum() {
	rs_total=0
	# shellcheck disable=SC2046
	set -- $(LC_ALL=C TIME_STYLE=locale ls -ln "$@" 2>/dev/null)
	while [ $# -ge 9 ]; do
		rs_total=$((rs_total + $5))
		shift 9
	done
}

# rs_waiting STREAM : sets rs_total to how many bytes of the first rs_at of a stream have not gone yet.
rs_waiting() {
	rs_total=0
	for rs_file in "$1".[0-9]*; do
		case ${rs_file##*.} in
		*[!0-9]*) ;;
		*) [ $((rs_at - ${rs_file##*.})) -le "$rs_total" ] || rs_total=$((rs_at - ${rs_file##*.})) ;;
		esac
	done
}

# rs_go_on : a short sleep; the end when the job is over, or never began.
rs_go_on() {
	[ -e made ] && [ ! -s status ] || exit
	sleep 0.02 2>/dev/null || sleep 1
}

# rs_take STREAM : what comes by the pipe of that name. Its end is written to STREAM.end; STREAM.full says that the disk
# took no more, and that what follows is lost.
rs_take() {
	rs_clean
	exec <"$1.pipe"
	rs_at=0
	# Two of them stay for those who look, so they are small beside the limit.
	rs_blocks=$((rs_limit / 4 / 65536))
	[ "$rs_blocks" -le 256 ] || rs_blocks=256
	rs_most=$rs_limit
	while :; do
		while
			rs_waiting "$1"
			[ "$rs_total" -ge "$rs_most" ]
		do
			[ -e made ] || exit
			if [ ! -s status ]; then
				sleep 0.02 2>/dev/null || sleep 1
			elif [ "$rs_most" = "$rs_limit" ]; then
				# The job's last bytes are in the pipe, which holds a megabyte at most (pipe(7)). What comes after those
				# is not the job's.
				rs_most=$((rs_total + 1048576))
			else
				exit
			fi
		done
		if ! dd bs=65536 count="$rs_blocks" of="$1.$rs_at" 2>/dev/null; then
			mv "$1.spare" "$1.full"
			exit
		fi
		rs_sum "$1.$rs_at"
		[ "$rs_total" -gt 0 ] || break
		rs_at=$((rs_at + rs_total))
	done
	printf '%s\n' "$rs_at" >"$1.end"
}

# rs_give : the input that has come, until all of it has (in.end says how much that is). The job meets the end of its
# input there, and nowhere else.
rs_give() {
	rs_clean
	exec 7>in.pipe
	rs_at=0 rs_all=
	until [ -e in.0 ] || [ -s in.end ]; do
		rs_go_on
	done
	while [ -e "in.$rs_at" ]; do
		exec 6<"in.$rs_at"
		while :; do
			# Asked before the reading: what was written before is read after it.
			[ ! -s in.end ] || read -r rs_all <in.end
			rs_sum "in.$rs_at"
			rs_next=$((rs_at + rs_total))
			cat <&6 >&7 || exit
			if [ "$rs_next" = "$rs_all" ]; then
				exit
			elif [ "$rs_next" -gt "$rs_at" ] && [ -e "in.$rs_next" ]; then
				break
			fi
			rs_go_on
		done
		rm -f "in.$rs_at"
		rs_at=$rs_next
	done
}

rs_spool() {
	if ! rs_why=$(mkfifo -m 600 out.pipe err.pipe in.pipe 2>&1); then
		printf 'disk %s\n' "$rs_why" >refused
		exit
	fi
	: >out.spare
	: >err.spare
	rs_take out >/dev/null 2>&1 5>&- &
	rs_take err >/dev/null 2>&1 5>&- &
	[ "$rs_input" = /dev/null ] || rs_give </dev/null >/dev/null 2>&1 5>&- &
}
