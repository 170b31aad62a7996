# Follows a job's output from given positions to the job's end. Both streams go to standard output, with marks between
# them: the login may have closed standard error. The log of a spawned job is one file per stream, `out` and `err`. The
# output of a job in the foreground is in files out.N, N being the position of their first byte, which are removed once
# delivered. The output of a job with --log-max (ring.sh) is too, but its files are not removed here and may vanish at
# any time: a mark says at which position the data continues.
#
# The client's lines on standard input:
#   (nothing)      a heartbeat for the job's tether
#   ack OUT ERR    everything before these positions is delivered
#   in SIZE        SIZE bytes of the job's input follow
#   room           asks how much of the input is stored here, and how much more fits
#   eof TOTAL      the input ends after TOTAL bytes
#   ping           asks for a reply
#   quit           the client continues elsewhere, or knows the job's end
#   forget         the same, and the job's files are to be removed
# A background process reads them up to `quit`, so that none is left in the shell's input. After any other end the shell
# is not used again.

# Not empty if the client has the job in the foreground.
rs_runs=
# Not empty if the client sends heartbeats from the job's start.
rs_beats=
# Number of bytes at the end of each stream to send, all at the job's end; empty to send everything.
rs_wanted=
# Maximum number of bytes of input stored here for the job.
rs_input_max=16777216

# has_output : after `look`, succeeds unless the job's output was removed: by `run` once it was delivered, or by the job
# itself. Then the next `report` says so.
has_output() {
	if [ ! -p out.pipe ] && [ "$state" != starting ] && { [ ! -e out ] || [ ! -e err ]; }; then
		expired=dir
		return 1
	fi
}

# numbers STREAM : sets numbers to the positions in the names of a stream's files.
numbers() {
	numbers=
	for file in "$1".[0-9]*; do
		case ${file##*.} in
		*[!0-9]*) ;;
		*) numbers="$numbers ${file##*.}" ;;
		esac
	done
}

# behind STREAM POSITION : removes the files of a stream before a position, except the file with the position and the
# one before it: tail shows them, and may still be reading one.
behind() {
	numbers "$1"
	in=0 before=0 old=
	for number in $numbers; do
		if [ "$number" -gt "$2" ]; then
			continue
		elif [ "$number" -gt "$in" ]; then
			before=$in in=$number
		elif [ "$number" -gt "$before" ]; then
			before=$number
		fi
	done
	for number in $numbers; do
		[ "$number" -ge "$before" ] || old="$old $1.$number"
	done
	# shellcheck disable=SC2086
	[ -z "$old" ] || rm -f $old
}

# after STREAM POSITION : sets next to the number of a stream's first file after a position, or to nothing. Uses names,
# not sizes: the file that is being read may have been removed.
after() {
	numbers "$1"
	next=
	for number in $numbers; do
		if [ "$number" -gt "$2" ] && { [ -z "$next" ] || [ "$number" -lt "$next" ]; }; then
			next=$number
		fi
	done
}

# locate STREAM POSITION : sets file to the file that contains a position, at to its number and skip to the offset in
# it. If the position is gone, that is the oldest file, except for a client that has the job in the foreground, which
# misses nothing.
locate() {
	file=$1 at=0 skip=$2
	[ -p "$1.pipe" ] || return 0
	numbers "$1"
	oldest=
	for number in $numbers; do
		if [ "$number" -le "$2" ] && [ "$number" -gt "$at" ]; then
			at=$number
		fi
		[ -n "$oldest" ] && [ "$number" -ge "$oldest" ] || oldest=$number
	done
	[ -n "$rs_runs" ] || [ "$at" -ge "${oldest:-0}" ] || at=$oldest
	file=$1.$at skip=$(($2 > at ? $2 - at : 0))
}

# reach STREAM POSITION DESCRIPTOR : locates the position, and opens the file there. Repeats that if the file was
# removed just then. Fails if all files were removed.
reach() {
	while
		locate "$1" "$2"
		! eval "command exec $3<\"\$file\"" 2>/dev/null
	do
		[ -z "$rs_runs" ] && [ -p "$1.pipe" ] && [ -n "$numbers" ] || return 1
	done
	[ "$skip" -eq 0 ] || eval "seek $skip <&$3"
}

# tell_at STREAM POSITION : if output may have been left out, says at which position the stream continues.
tell_at() {
	[ ! -e ring ] && [ -z "$rs_wanted" ] || printf '\001%s at %s %s\n' "$rs_nonce" "$1" "$2"
}

# is_written : succeeds if all output of an ended job is in its files. Other processes may hold its pipes open, so the
# wait for that is short.
is_written() {
	[ ! -p out.pipe ] || [ "$elapsed" -ge 1000 ] ||
		{ { [ -e out.end ] || [ -e out.full ]; } && { [ -e err.end ] || [ -e err.full ]; }; }
}

# sum FILE... : sets total to the total size of the files.
sum() {
	total=0
	# shellcheck disable=SC2046
	set -- $(LC_ALL=C TIME_STYLE=locale ls -ln "$@" 2>/dev/null)
	while [ $# -ge 9 ]; do
		total=$((total + $5))
		shift 9
	done
}

# seek POSITION : seeks in the file on standard input; the next reader of the descriptor starts there.
seek() {
	[ "$1" -gt 0 ] || return 0
	case $(dd --version 2>/dev/null) in
	*uutils*)
		# This dd reads the whole file when it only skips.
		dd bs=65536 count=$(($1 / 65536)) of=/dev/null
		dd bs=$(($1 % 65536)) count=1 of=/dev/null
		;;
	*) dd bs=1 skip="$1" count=0 ;;
	esac 2>/dev/null
}

# kept STREAM : sets first and last to the positions of a stream's first stored byte and of its end.
kept() {
	if [ ! -p out.pipe ]; then
		sizes
		first=0
		eval "last=\$${1}_size"
		return
	fi
	numbers "$1"
	first='' last=0
	for number in $numbers; do
		[ -n "$first" ] && [ "$number" -ge "$first" ] || first=$number
		[ "$number" -lt "$last" ] || last=$number
	done
	sum "$1.$last"
	first=${first:-0} last=$((last + total))
}

# is_empty DESCRIPTOR : succeeds if the file is known to be empty, which saves starting a process. Checks the
# descriptor, since the file may have been removed.
is_empty() {
	[ -e "/proc/self/fd/$1" ] && [ ! -s "/proc/self/fd/$1" ]
}

# pass_on STREAM DESCRIPTOR : copies all stored data of a stream, file by file. Looks for the next file before it reads:
# once that exists, the one before is complete. A ring may grow faster than it is read, so while the job runs, each call
# goes on to at most one more file.
pass_on() {
	eval "at=\$${1}_at last=\${${1}_last-}"
	while :; do
		after "$1" "$at"
		is_empty "$2" || cat <&"$2"
		[ -n "$next" ] || break
		reach "$1" "$next" "$2" || break
		eval "${1}_at=\$at ${1}_file=\$file"
		tell_at "$1" "$at"
		[ ! -e ring ] || { [ -n "$over" ] && [ "$at" -lt "$last" ]; } || break
	done
}

# is_spooled : succeeds if the job's output is in several files, or was before all of them were removed (bury).
is_spooled() {
	[ -p out.pipe ] || [ -e gone ]
}

# measure : sets now to a value that changes when there is more to read.
measure() {
	if is_spooled; then
		now=$(LC_ALL=C ls -ln "$out_file" "$err_file" 2>/dev/null)
		# A complete file no longer grows, but has a next one.
		after out "$out_at"
		now=$now,$next
		after err "$err_at"
		now=$now,$next
	else
		sizes
		now="$out_size $err_size"
	fi
}

# sizes : sets err_size and out_size, and err_inode and out_inode, which show whether a file was replaced. ls sorts by
# name; in this locale and style a line has ten fields.
sizes() {
	# shellcheck disable=SC2046
	set -- $(LC_ALL=C TIME_STYLE=locale ls -lni err out 2>/dev/null)
	# If ls was killed, keep the earlier values.
	[ $# -gt 0 ] || [ ! -e out ] || [ -z "${out_size-}" ] || return 0
	err_inode=${1:-0} err_size=${6:-0}
	shift $(($# < 10 ? $# : 10))
	out_inode=${1:-0} out_size=${6:-0}
}

# is_cut OUT_SIZE ERR_SIZE INODES : succeeds if a log was truncated or replaced.
is_cut() {
	! is_spooled || return 1
	[ "$out_size" -lt "$1" ] || [ "$err_size" -lt "$2" ] || [ "$out_inode $err_inode" != "$3" ]
}

# received : sets in_at to the number of the last file of the input, and in_size to its size.
received() {
	numbers in
	in_at=0
	for number in $numbers; do
		[ "$number" -lt "$in_at" ] || in_at=$number
	done
	in_size=0
	if [ -e "in.$in_at" ]; then
		sum "in.$in_at"
		in_size=$total
	fi
}

# tell WORD... : sends the client a mark, in a process of its own: that waits while the client takes no output, and
# heartbeats must still be read. If one waits already, it is left out: the client asks again.
teller=
tell() {
	if [ -n "$teller" ]; then
		! rs_process "$teller" || [ "$rs_run" = Z ] || [ "$rs_parent" != "${rs_me-}" ] || return 0
		wait "$teller"
	fi
	printf '\001%s %s\n' "$rs_nonce" "$*" &
	teller=$!
}

# tell_room : tells the client how much of the input is stored here, and how much more fits.
tell_room() {
	pieces=0
	sum in.[0-9]*
	tell have $((in_at + in_size)) $((rs_input_max - total))
}

# take SIZE : reads that many bytes of input. Each dd reads what is available, and never more than is left.
take() {
	wanted=$1
	while [ "$wanted" -gt 0 ]; do
		# After a failure on a full disk, the client sends the rest again.
		dd bs="$wanted" count=1 <&3 >>"in.$in_at" 2>/dev/null || { sleep 1 && return 1; }
		sum "in.$in_at"
		[ "$total" -gt "$in_size" ] || return 1
		wanted=$((wanted - total + in_size)) in_size=$total
	done
	[ "$in_size" -lt 1048576 ] || { in_at=$((in_at + in_size)) in_size=0; }
	# Not each time, since that takes processes. The client goes on with up to 4 MB before it knows.
	pieces=$((pieces + 1))
	[ "$pieces" -lt 8 ] || tell_room
}

# obey : carries out the client's lines. Fails if the connection is gone.
obey() {
	beats=0 rung=0 was=0 pieces=0
	received
	while read -r word one two <&3; do
		case $word in
		'')
			beats=$((beats + 1))
			printf '%s.%s\n' "$rs_nonce" "$beats" 1<>beat
			# One at a time: the script reads none while it waits for its client, and a full bell would block the
			# heartbeats.
			if [ -n "$rs_beats" ] && read -r one <heard && [ "$one" = "$rung" ]; then
				rung=$beats
				echo "beat $beats $rs_nonce" >&4
			fi
			;;
		ack)
			[ ! -e ring ] || continue
			behind out "$one"
			[ "$two" = "$was" ] || behind err "$two"
			was=$two
			;;
		in) take "$one" || return 1 ;;
		room) tell_room ;;
		ping) tell here ;;
		eof)
			if ! { printf '%s\n' "$one" >in.end.new && mv in.end.new in.end; }; then
				sleep 1
				return 1
			fi
			;;
		quit) return 0 ;;
		forget)
			true >forget || mv -f cookie forget
			return 0
			;;
		esac
	done
	return 1
}

# relieve : kills the previous stream and its reader of client lines, with the processes that they started. A broken
# connection may have left them behind, about to write to the job's input or waiting at its bell.
relieve() {
	if [ -O reader ]; then
		read -r one birth two since <reader
		relieve_of "$one" "$birth"
		relieve_of "$two" "$since"
	fi 2>/dev/null
}

# relieve_of PID BIRTH : kills that process and its group. A group that was made outside of a container has the number 0
# inside.
relieve_of() {
	if ! rs_lives "$1" "$2"; then
		return
	elif [ "$rs_group" -gt 1 ]; then
		kill -KILL "-$rs_group"
	else
		kill -KILL "$1"
	fi
}

# open_at OUT_AT ERR_AT : opens both streams at these positions.
open_at() {
	reach out "$1" 6 || exit 1
	out_at=$at out_file=$file out_from=$((at + skip))
	reach err "$2" 7 || exit 1
	err_at=$at err_file=$file err_from=$((at + skip))
}

# begin_data : starts the data, and says at which positions it begins.
begin_data() {
	rs_mark data
	[ -z "$has_out" ] || tell_at out "$out_from"
	[ -z "$has_err" ] || tell_at err "$err_from"
}

# reach_last : opens both streams that many bytes before their ends.
reach_last() {
	sizes
	open_at "$((out_size > rs_wanted ? out_size - rs_wanted : 0))" "$((err_size > rs_wanted ? err_size - rs_wanted : 0))"
	tell_at out "$out_from"
	tell_at err "$err_from"
}

# flow : copies all stored data of the requested streams.
flow() {
	if [ -n "$rs_wanted" ]; then
		[ -n "$over" ] || return 0
		reach_last
	fi
	if [ -e ring ] && [ -n "$over" ]; then
		kept out
		out_last=$last
		kept err
		err_last=$last
	fi
	[ -z "$has_out" ] || pass_on out 6
	if [ -n "$has_err" ]; then
		rs_mark err
		pass_on err 7
		rs_mark out
	fi
}

# await_event : waits for a line in the bell of a job in the foreground: `over` from its supervisor, `ring` from a
# spooler, `gone` or `beat` from the reader of the client's lines, or `tick` after step milliseconds (never if step is
# 0). The latter three name their stream, since they may come from an earlier one. For other jobs it only sleeps. Adds
# the time slept to elapsed.
timer=
await_event() {
	event=tick
	if [ -z "$rings" ]; then
		nap "$step"
	else
		rs_flush
		if [ "$step" -gt 0 ] && { [ -z "$timer" ] || [ "$step" -lt "$timer" ]; }; then
			timer=$step
			(
				nap "$timer"
				echo "tick $timer $rs_nonce" >&4
			) </dev/null >/dev/null 2>&1 3<&- 6<&- 7<&- &
		fi
		while
			read -r event span whose <&4
			[ "${whose:-$rs_nonce}" != "$rs_nonce" ]
		do :; done
		if [ "$event" != tick ]; then
			[ "$event" != beat ] || echo "$span" 1<>heard
			# If a tick is lost, the next event starts another timer.
			timer=
			return
		fi
		elapsed=$((elapsed + span))
		[ "$span" != "$timer" ] || timer=
	fi
}

# slow_down : sets still if a job in the foreground has written nothing that is to be sent now. Then the step is longer,
# since its first bytes and the heartbeats ring the bell.
slow_down() {
	still=
	if [ -z "$over" ] && [ -n "$rings" ] &&
		{ [ -n "$rs_wanted" ] || { [ "$out_at$err_at" = 00 ] && is_empty 6 && is_empty 7; }; }; then
		still=1 step=900
		[ -z "$rs_beats" ] || step=0
	elif [ "$step" -eq 0 ]; then
		step=5
	fi
}

# stream OUT_AT ERR_AT : in the job's directory, after `look`, follows the output to the job's end. has_out and has_err
# say which streams are requested, and inodes which files the positions belong to.
stream() {
	[ -p out.pipe ] || [ -n "$rs_wanted" ] || measure
	open_at "$1" "$2"
	rings=
	if [ -n "$rs_runs" ]; then
		relieve
		[ ! -p bell ] || { exec 4<>bell && rings=1; }
		# On a full disk, use timers instead.
		[ -n "$rings" ] && echo 0 1<>heard || rs_beats=
		# The job may have ended, and rung the bell, before.
		! has_ended || look
	elif [ -p out.pipe ]; then
		measure
	fi
	exec 3<&0
	# Done here: a reader whose parent was killed would take another process for it.
	[ -z "$rs_runs" ] || rs_self
	(
		trap '' HUP INT QUIT TERM USR1 USR2
		# For the next stream (relieve), and before anything is read.
		if [ -n "$rs_runs" ]; then
			two=$rs_me since=$rs_me_birth
			rs_self
			printf '%s %s %s %s\n' "$rs_me" "$rs_me_birth" "$two" "$since" >reader
		fi
		obey
		set -- $?
		# Nothing of it may follow the end of this script.
		[ -z "$teller" ] || wait "$teller"
		[ -z "$rings" ] || echo "gone 0 $rs_nonce" >&4
		exit "$1"
	) 2>/dev/null 6<&- 7<&- &
	reader=$!
	# The stream itself counts as contact: connections may break before the first heartbeat arrives.
	[ -z "$rs_runs" ] || [ ! -e tied ] || printf '%s.0\n' "$rs_nonce" 1<>beat
	begin_data
	step=5 round=0 patience=1000 cut='' fresh=1 told='' over='' now=${now-}
	slow_down
	while :; do
		# Checked before the read, so that everything written before the end is read.
		over=
		case $state in
		exited | lost | elsewhere)
			over=1 fresh=1
			[ -z "$still" ] || step=5
			# Other processes may still hold the pipes open. Read their output for a moment longer.
			if [ ! -p out.pipe ] ||
				{ { [ -e out.end ] || [ -e out.full ]; } && { [ -e err.end ] || [ -e err.full ]; }; }; then
				patience=0
			fi
			;;
		esac
		[ -z "$fresh" ] || flow
		[ -z "$over" ] || [ "$patience" -gt 0 ] || break
		since=$elapsed
		await_event
		[ -z "$over" ] || patience=$((patience - elapsed + since))
		if [ "$event" = gone ] || ! kill -0 "$reader" 2>/dev/null; then
			break
		fi
		before=$now was="${out_size-} ${err_size-}" fresh=
		if [ "$event" = tick ] && [ -z "$rs_wanted" ]; then
			measure
			# shellcheck disable=SC2086
			if is_cut $was "$inodes"; then
				cut=1
				break
			fi
		fi
		if { [ "$event" != tick ] && [ "$event" != beat ]; } || [ "$before" != "$now" ]; then
			step=5 fresh=1
		elif [ "$step" -lt 80 ]; then
			step=$((step * 2))
		fi
		round=$((round + 1))
		slow_down
		if [ -z "$over" ] &&
			{ [ "$event" = over ] || [ -n "$still" ] || [ $((round % 16)) -eq 0 ] || has_ended; }; then
			look
			if [ -z "$told" ] && [ -e unkept ]; then
				told=1
				rs_mark unkept
			fi
		fi
	done
	if [ -n "$cut" ]; then
		rs_mark cut
	elif [ -n "$over" ] && [ "$patience" -le 0 ]; then
		loss=
		[ ! -e out.torn ] && [ ! -e err.torn ] || loss=' torn'
		[ ! -e out.full ] && [ ! -e err.full ] || loss=' full'
		case $expired in
		timeout) state=expired ;;
		tether) state=untied ;;
		esac
		rs_mark "ended $state $code $ended$loss"
	else
		rs_mark paused
	fi
	wait "$reader" || exit 1
	[ ! -e forget ] || bury
	exit 0
}

# bury : removes the job's files. A tombstone keeps its end for a minute; a later bury removes that.
bury() {
	true >gone || mv -f forget gone
	set --
	for file in * .[!.]*; do
		case $file in
		gone | status | pid | made | meta | supervisor) ;;
		*) set -- "$@" "./$file" ;;
		esac
	done
	rm -rf "$@"
	# Not every time: there may be many jobs.
	case $rs_nonce in
	*0) find ../*/gone -prune -mmin +1 | while read -r gone; do rm -rf "${gone%/gone}"; done ;;
	esac
} 2>/dev/null

# run_along OUT_AT ERR_AT : follows the job at place in the foreground, once its streams exist.
run_along() {
	rs_runs=1
	place "$place"
	if ! enter "$dir"; then
		report 0
		rs_end
	fi
	look
	until [ -e out.0 ] || [ -e "out.$1" ] || [ "$elapsed" -gt 2000 ]; do
		nap 5
	done
	numbers out
	if [ -z "$rs_wanted" ] && { [ ! -p out.pipe ] || [ -z "$numbers" ]; }; then
		# The job has removed its files, but perhaps not the directory.
		case $state in
		exited | lost) state=none ;;
		esac
		report 0
		rs_end
	fi
	run_on "$1" "$2"
}

# run_started PID PGID BIRTH BOOT SYSTEM BEGAN MACHINE NODE : does the same for a job that this script has just started.
run_started() {
	rs_runs=1
	unknown
	state=running pid=$1 pgid=$2 birth=$3 boot=$4 system=$5 began=$6 machine=$7 home=$8
	run_on 0 0
}

run_on() {
	[ -n "$rs_wanted" ] || [ -e err.0 ] || true >>err.0
	report 0
	has_out=1 has_err=1 inodes=
	stream "$1" "$2"
}
