# The spool of a job in the foreground: stores its output in files that are removed once delivered, and feeds its input.
# A file's name ends in the position of its first byte in the stream. Runs in the supervisor, started before the job.
# Given by the client: rs_pipes, which of the streams out, err and in are pipes; rs_open, 1 if `rsig send` gives the
# input, whose files are complete as soon as they exist; rs_limit, the maximum number of undelivered bytes of a stream,
# beyond which the job blocks as on a full pipe; rs_taker, the function that spools a stream: rs_take, or rs_take_ring
# (ring.sh) if rs_ring is not empty.

# rs_sum FILE... : sets rs_total to the total size of the files.
rs_sum() {
	rs_total=0
	# shellcheck disable=SC2046
	set -- $(LC_ALL=C TIME_STYLE=locale ls -ln "$@" 2>/dev/null)
	while [ $# -ge 9 ]; do
		rs_total=$((rs_total + $5))
		shift 9
	done
}

# rs_waiting STREAM : sets rs_total to the number of undelivered bytes among the first rs_at bytes of a stream.
rs_waiting() {
	rs_total=0
	for rs_file in "$1".[0-9]*; do
		case ${rs_file##*.} in
		*[!0-9]*) ;;
		*) [ $((rs_at - ${rs_file##*.})) -le "$rs_total" ] || rs_total=$((rs_at - ${rs_file##*.})) ;;
		esac
	done
}

# rs_is_over : succeeds if the job's end is recorded.
rs_is_over() {
	read -r rs_code rs_when rs_rest <status && [ -n "$rs_when" ]
} 2>/dev/null

# rs_go_on : sleeps briefly, and longer after some time without input. Exits if the job is over or never began.
rs_go_on() {
	[ -e made ] && kill -0 $$ 2>/dev/null && ! rs_is_over || exit
	rs_idle=$((rs_idle + 1)) rs_time=0.02
	[ "$rs_idle" -lt 100 ] || rs_time=0.1
	[ "$rs_idle" -lt 200 ] || [ -z "$rs_open" ] || rs_time=0.2
	sleep "$rs_time" 2>/dev/null || sleep 1
}

# rs_was_last TEXT : succeeds if dd, which printed that text, read fewer blocks than requested, as at the end of a
# stream. dd counts full and partial blocks: `1+2 records in`. A warning may precede that.
rs_was_last() {
	set -- "${1%%" records in"*}"
	set -- "${1##*[!0-9+]}"
	case $1 in
	+* | *+ | *+*+*) return 1 ;;
	*+*) [ $((${1%+*} + ${1#*+})) -lt "$rs_blocks" ] ;;
	*) return 1 ;;
	esac
}

# rs_ring_bell : wakes the script that follows the job in the foreground (stream.sh).
rs_ring_bell() {
	[ ! -p bell ] || echo ring 1<>bell
}

# rs_take STREAM : spools the pipe of that stream. STREAM.end exists if all of the stream is stored; STREAM.full, if the
# disk was full and the rest is lost; STREAM.torn, if a dd was killed and what it had just read is lost.
rs_take() {
	rs_clean
	exec <"$1.pipe"
	rs_at=0
	# The first bytes wake the reader at once.
	rs_blocks=1
	rs_most=$rs_limit
	while :; do
		while
			rs_waiting "$1"
			[ "$rs_total" -ge "$rs_most" ]
		do
			[ -e made ] && kill -0 $$ 2>/dev/null || exit
			if ! rs_is_over; then
				sleep 0.02 2>/dev/null || sleep 1
			elif [ "$rs_most" = "$rs_limit" ]; then
				# The job's last bytes are in the pipe, which holds a megabyte at most (pipe(7)). Later bytes are from
				# other processes.
				rs_most=$((rs_total + 1048576))
			else
				exit
			fi
		done
		# shellcheck disable=SC2069 # what it says on standard error is not for the file
		rs_told=$(dd bs=65536 count="$rs_blocks" 2>&1 >>"$1.$rs_at")
		rs_code=$?
		if [ "$rs_code" -gt 128 ]; then
			[ -e "$1.torn" ] || mv "$1.spare" "$1.torn"
		elif [ "$rs_code" -ne 0 ]; then
			mv "$1.spare" "$1.full" || mv "$1.torn" "$1.full"
			rs_ring_bell
			exit
		elif rs_was_last "$rs_told"; then
			break
		elif [ "$rs_blocks" -eq 1 ]; then
			rs_ring_bell
			# Two files are kept for readers, so they are small compared to the limit.
			rs_blocks=$((rs_limit / 4 / 65536))
			[ "$rs_blocks" -le 256 ] || rs_blocks=256
			continue
		fi
		# Again if ls was killed.
		while
			rs_sum "$1.$rs_at"
			[ "$rs_total" -eq 0 ] && [ -s "$1.$rs_at" ]
		do
			sleep 0.02 2>/dev/null || sleep 1
		done
		[ "$rs_total" -gt 0 ] || [ "$rs_code" -ne 0 ] || break
		rs_at=$((rs_at + rs_total))
	done
	true >"$1.end"
	rs_ring_bell
}

# rs_give : feeds the input to the job as it arrives, up to the size in in.end. Only there does the job see end of file.
rs_give() {
	rs_clean
	exec 7>in.pipe
	rs_at=0 rs_all='' rs_idle=0
	until [ -e in.0 ] || [ -s in.end ]; do
		rs_go_on
	done
	while [ -e "in.$rs_at" ]; do
		exec 6<"in.$rs_at"
		rs_given=
		while :; do
			# Checked before the read, so that everything written before the end is read.
			[ ! -s in.end ] || read -r rs_all <in.end
			if [ -z "$rs_given" ]; then
				rs_sum "in.$rs_at"
				rs_next=$((rs_at + rs_total))
				cat <&6 >&7 || exit
				rs_given=$rs_open rs_idle=0
			fi
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

rs_takers=
rs_spool() {
	[ -z "$rs_open" ] || true >in.open
	[ -z "$rs_ring" ] || rs_hold_pipes
	for rs_part in $rs_pipes; do
		if [ "$rs_part" = in ]; then
			rs_give </dev/null >/dev/null 2>&1 5>&- 4>&- 3>&- &
			continue
		fi
		# Created at the start, so that the client need not wait for them.
		true >"$rs_part.spare"
		true >"$rs_part.0"
		# In parentheses, since some shells keep descriptors that are redirected for a function: a copy of 5 would keep
		# the FIFO from reaching end of file.
		("$rs_taker" "$rs_part") >/dev/null 2>&1 5>&- &
		rs_takers="$rs_takers $rs_part:$!"
	done
}
