# The spool of a job with --log-max. Its output is stored in files like that of a job in the foreground (spool.sh), but
# does not wait for a reader: the oldest file is removed as soon as the rest holds the number of bytes to keep. Runs in
# the supervisor, started before the job.
# Given by the client: rs_keep, how many bytes of each stream are kept; rs_ring, the same as users write it.
#
# With U = min(rs_keep / 4, 1 MB), a dd reads U/8, or 4 kB if that is more, and a file is complete at U/2. So there are
# fewer than rs_keep + U bytes at any time. STREAM.gone holds the position of the first byte that is kept, and the
# number of newlines before it. STREAM.lost exists if the disk was full and some bytes are missing. STREAM.busy is a
# FIFO that a spooler and its dd hold open.

# rs_hold_pipes : holds both ends of the pipes open while the job runs: the job gets no SIGPIPE when a spooler is
# killed, and a spooler that starts late finds what the job wrote.
rs_hold_pipes() {
	exec 3<>out.pipe
	if [ -p err.pipe ]; then
		exec 4<>err.pipe
	else
		true >err.0
		echo 0 >err.end
	fi
}

# rs_let_go : after the job's end, closes the pipes once each spooler has opened its own. Does not wait for a spooler
# that was killed, nor forever for one that can't create the file that says so.
rs_let_go() {
	rs_tries=0
	for rs_one in $rs_takers; do
		while [ ! -e "${rs_one%:*}.taken" ] && kill -0 "${rs_one#*:}" && [ "$rs_tries" -lt 500 ]; do
			rs_tries=$((rs_tries + 1))
			sleep 0.01 || sleep 1
		done
	done 2>/dev/null
	exec 3>&- 4>&-
}

# rs_note STREAM POSITION : records what is gone before a position.
rs_note() {
	printf '%s %s\n' "$2" "$rs_lines" >"$1.gone.new" && mv -f "$1.gone.new" "$1.gone"
}

# rs_drop STREAM FILE NEXT : removes the oldest file. Records that first, unless there is no room for the record.
rs_drop() {
	rs_new=$(wc -l <"$1.$2")
	rs_lines=$((rs_lines + ${rs_new:-0})) rs_noted=
	! rs_note "$1" "$3" || rs_noted=1
	rm -f "$1.$2"
	[ -n "$rs_noted" ] || rs_note "$1" "$3"
}

# rs_fill STREAM : spools standard input to its end, after the data that is stored already.
rs_fill() {
	# If rs_tend is gone, nothing reads dd's messages, but dd must still write what it has read.
	trap '' PIPE
	rs_name=$1 rs_gone=0 rs_lines=0
	rs_unit=$((rs_keep < 4194304 ? rs_keep / 4 : 1048576))
	rs_blocks=$((rs_unit < 32768 ? 1 : rs_unit / 32768))
	[ ! -s "$1.gone" ] || read -r rs_gone rs_lines <"$1.gone"
	# The numbers of the stream's files, in order. A spooler that died may have left files before these, which were to
	# be removed.
	set --
	rs_at=-1
	while
		rs_next=
		for rs_file in "$rs_name".[0-9]*; do
			rs_file=${rs_file##*.}
			if [ "$rs_file" -lt "$rs_gone" ]; then
				rm -f "$rs_name.$rs_file"
			elif [ "$rs_file" -gt "$rs_at" ] && { [ -z "$rs_next" ] || [ "$rs_file" -lt "$rs_next" ]; }; then
				rs_next=$rs_file
			fi
		done
		[ -n "$rs_next" ]
	do
		set -- "$@" "$rs_next"
		rs_at=$rs_next
	done
	rs_sum "$rs_name.$rs_at"
	rs_end=$((rs_at + rs_total))
	while [ -p "$rs_name.pipe" ]; do
		if [ $((rs_end - rs_at)) -ge $((rs_unit / 2)) ]; then
			rs_at=$rs_end
			set -- "$@" "$rs_at"
		fi
		# dd writes at once what it reads. The blocks are small, since a short line of the job is a block of its own.
		# shellcheck disable=SC2069 # what it says on standard error is not for the file
		dd bs=4096 count="$rs_blocks" 2>&1 >>"$rs_name.$rs_at"
		rs_code=$?
		rs_sum "$rs_name.$rs_at"
		# If ls was killed, let another spooler measure again.
		if [ "$rs_total" -lt $((rs_end - rs_at)) ] || { [ "$rs_total" -eq 0 ] && [ -s "$rs_name.$rs_at" ]; }; then
			exit
		elif [ "$rs_code" -eq 0 ] && [ "$rs_total" -eq $((rs_end - rs_at)) ]; then
			printf '%s\n' "$rs_end" >"$rs_name.end"
			exit
		fi
		rs_end=$((rs_at + rs_total))
		while [ $# -gt 1 ] && [ $((rs_end - $2)) -ge "$rs_keep" ]; do
			rs_drop "$rs_name" "$1" "$2"
			shift
		done
		[ "$rs_code" -ne 0 ] || continue
		if ! rs_process "$rs_tender" || [ "$rs_run" = Z ]; then
			(rs_tend "$rs_name") >/dev/null 2>&1 &
			exit
		fi
		# Killed by a signal, so the disk is not full.
		[ "$rs_code" -lt 128 ] || continue
		# What dd had read is lost. So use zeros to test whether there is room before it reads again.
		[ -e "$rs_name.lost" ] || mv -f "$rs_name.spare" "$rs_name.lost"
		until dd if=/dev/zero bs=4096 count="$rs_blocks" >"$rs_name.spare"; do
			[ -p "$rs_name.pipe" ] || exit
			if [ $# -gt 1 ]; then
				rs_drop "$rs_name" "$1" "$2"
				shift
			else
				sleep 1
			fi
		done
		true >"$rs_name.spare"
	done
}

# rs_tend STREAM : spools the pipe on descriptor 6 until its end, or until the directory is gone. Restarts a spooler
# that was killed.
rs_tend() {
	rs_tender=$(exec /bin/sh -c 'echo "$PPID"')
	until [ -e "$1.end" ] || [ ! -p "$1.pipe" ]; do
		# Opened here, and at once, since the directory may be removed at any time.
		command exec 4<>"$1.busy" || break
		command exec 7<"$1.busy" || break
		(rs_fill "$1") <&6 >&4 4>&- 7<&- &
		exec 4>&-
		# Wait for the end of the spooler and of its dd, which may outlive it.
		while read -r rs_line; do :; done <&7
		exec 7<&-
		[ -e "$1.end" ] || sleep 0.1 || sleep 1
	done
	# The job must not block if its directory is gone. This ends at once at the end of the pipe; the file that says so may
	# be wrong while somebody removes the others.
	! kill -0 $$ || exec cat <&6
}

# rs_take_ring STREAM : does the same from the beginning, for the stream's pipe.
rs_take_ring() {
	rs_clean
	# The directory may be gone already. The pipe is not: the supervisor holds it.
	case $1 in out) rs_number=3 ;; *) rs_number=4 ;; esac
	command exec 6<"$1.pipe" || command exec 6<"/proc/self/fd/$rs_number" || exit
	exec 3>&- 4>&-
	true >"$1.taken"
	rs_tend "$1"
}
