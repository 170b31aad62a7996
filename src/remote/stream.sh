# Passes a job's output on as it comes, from given positions to the job's end. Both streams come on standard output, with
# marks between them: a login's standard error may lead nowhere. A log is one file, `out`; the output of a job in the foreground is in files out.N, N being the position of their
# first byte, which go when they are delivered.
#
# What the client says comes in lines on standard input:
#   (nothing)      a heartbeat for the job's tether
#   ack OUT ERR    what lies before these positions is delivered
#   in SIZE        SIZE bytes of the job's input follow
#   room           how much of the input is here, and how much more may come?
#   eof TOTAL      the input ends after TOTAL bytes
#   quit           the client goes on elsewhere, or knows the job's end
#   forget         the same, and the job's files go
# A background process takes them and ends with `quit`, so that nothing of them is left in the shell's input. Without
# such an end, the shell is not used again.

# How much input may wait here for the job.
rs_input_max=16777216

# numbers STREAM : sets numbers to the positions that the names of a stream's files end in.
numbers() {
	numbers=
	for file in "$1".[0-9]*; do
		case ${file##*.} in
		*[!0-9]*) ;;
		*) numbers="$numbers ${file##*.}" ;;
		esac
	done
}

# behind STREAM POSITION : deletes the files of a stream that lie before a position, but for the one that it is in and
# the one before that: tail shows them, and a reader may not have gone on from there yet.
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

# after STREAM POSITION : sets next to the number of the first file of a stream behind a position, to nothing where there
# is none. By the names, not by a size: the file that is being read may be deleted by now.
after() {
	numbers "$1"
	next=
	for number in $numbers; do
		if [ "$number" -gt "$2" ] && { [ -z "$next" ] || [ "$number" -lt "$next" ]; }; then
			next=$number
		fi
	done
}

# locate STREAM POSITION : sets file to the file that a position is in, at to its number and skip to where in it.
locate() {
	file=$1 at=0 skip=$2
	[ -p "$1.pipe" ] || return 0
	numbers "$1"
	for number in $numbers; do
		if [ "$number" -le "$2" ] && [ "$number" -gt "$at" ]; then
			at=$number
		fi
	done
	file=$1.$at skip=$(($2 - at))
}

# sum FILE... : sets total to how many bytes they hold.
sum() {
	total=0
	# shellcheck disable=SC2046
	set -- $(LC_ALL=C TIME_STYLE=locale ls -ln "$@" 2>/dev/null)
	while [ $# -ge 9 ]; do
		total=$((total + $5))
		shift 9
	done
}

# seek POSITION : moves the file that is standard input there; the next reader of the same descriptor goes on at it.
seek() {
	[ "$1" -gt 0 ] || return 0
	case $(dd --version 2>/dev/null) in
	*uutils*)
		# Its dd reads all of a file when it only skips.
		dd bs=65536 count=$(($1 / 65536)) of=/dev/null
		dd bs=$(($1 % 65536)) count=1 of=/dev/null
		;;
	*) dd bs=1 skip="$1" count=0 ;;
	esac 2>/dev/null
}

# out_flow, err_flow : all that is there of a stream, file by file. The next file is asked for before the reading: once
# it is there, the one before it is whole.
out_flow() {
	while :; do
		after out "$out_at"
		cat <&6
		[ -n "$next" ] || break
		exec 6<"out.$next"
		out_at=$next out_file=out.$next
	done
}
err_flow() {
	while :; do
		after err "$err_at"
		cat <&7
		[ -n "$next" ] || break
		exec 7<"err.$next"
		err_at=$next err_file=err.$next
	done
}

# measure : sets now to what changes when there is more to read.
measure() {
	if [ -p out.pipe ]; then
		now=$(LC_ALL=C ls -ln "$out_file" "$err_file" 2>/dev/null)
		# A file that is whole grows no more, and has a next one.
		after out "$out_at"
		now=$now,$next
		after err "$err_at"
		now=$now,$next
	else
		sizes
		now="$out_size $err_size"
	fi
}

# sizes : sets err_size and out_size, and err_inode and out_inode, which another file in their place has not. ls sorts by
# name; in this locale and style a line has ten fields.
sizes() {
	# shellcheck disable=SC2046
	set -- $(LC_ALL=C TIME_STYLE=locale ls -lni err out 2>/dev/null)
	# An ls that was ended by a signal says nothing of the files.
	[ $# -gt 0 ] || [ ! -e out ] || [ -z "${out_size-}" ] || return 0
	err_inode=${1:-0} err_size=${6:-0}
	shift $(($# < 10 ? $# : 10))
	out_inode=${1:-0} out_size=${6:-0}
}

# is_cut OUT_SIZE ERR_SIZE INODES : succeeds when a log is shorter than it was, or another file than it was.
is_cut() {
	[ ! -p out.pipe ] || return 1
	[ "$out_size" -lt "$1" ] || [ "$err_size" -lt "$2" ] || [ "$out_inode $err_inode" != "$3" ]
}

# received : sets in_at to the number of the input's last file, and in_size to its size.
received() {
	numbers in
	in_at=0
	for number in $numbers; do
		[ "$number" -lt "$in_at" ] || in_at=$number
	done
	sum "in.$in_at"
	in_size=$total
}

# tell_room : how much of the input is here, and how much more may come.
tell_room() {
	sum in.[0-9]*
	printf '\001%s have %s %s\n' "$rs_nonce" $((in_at + in_size)) $((rs_input_max - total))
}

# take SIZE : that many bytes of input. Each dd reads what is there, and never more than is left of them.
take() {
	wanted=$1
	while [ "$wanted" -gt 0 ]; do
		dd bs="$wanted" count=1 <&3 >>"in.$in_at" 2>/dev/null
		sum "in.$in_at"
		[ "$total" -gt "$in_size" ] || return 1
		wanted=$((wanted - total + in_size)) in_size=$total
	done
	[ "$in_size" -lt 1048576 ] || { in_at=$((in_at + in_size)) in_size=0; }
	tell_room
}

# obey : does what the client says. Fails when the connection has gone.
obey() {
	beats=0 was=0
	received
	while read -r word one two <&3; do
		case $word in
		'')
			beats=$((beats + 1))
			printf '%s.%s\n' "$rs_nonce" "$beats" >beat
			;;
		ack)
			behind out "$one"
			[ "$two" = "$was" ] || behind err "$two"
			was=$two
			;;
		in) take "$one" || return 1 ;;
		room) tell_room ;;
		eof) printf '%s\n' "$one" >in.end.new && mv in.end.new in.end ;;
		quit) return 0 ;;
		forget)
			: >forget
			return 0
			;;
		esac
	done
	return 1
}

# relieve : ends the process that took the client's lines before this one, and whatever it has started: a connection that
# was cut may have left it behind, about to write to the job's input.
relieve() {
	if [ -O reader ]; then
		read -r one birth <reader
		! rs_process "$one" || [ "$rs_birth" != "$birth" ] || kill -KILL "-$rs_group"
	fi 2>/dev/null
}

# open_at OUT_AT ERR_AT : opens both streams there.
open_at() {
	locate out "$1"
	out_at=$at out_file=$file
	exec 6<"$file"
	seek "$skip" <&6
	locate err "$2"
	err_at=$at err_file=$file
	exec 7<"$file"
	seek "$skip" <&7
}

# flow : all that is there of the streams that are wanted.
flow() {
	[ -z "$has_out" ] || out_flow
	if [ -n "$has_err" ]; then
		rs_mark err
		err_flow
		rs_mark out
	fi
}

# stream OUT_AT ERR_AT : in the job's directory, after a look, to the job's end. has_out and has_err say which streams are
# wanted, and inodes of which files the positions are.
stream() {
	measure
	open_at "$1" "$2"
	[ ! -p out.pipe ] || relieve
	exec 3<&0
	(
		trap '' HUP INT QUIT TERM USR1 USR2
		obey
	) 2>/dev/null 6<&- 7<&- &
	reader=$!
	if [ -p out.pipe ]; then
		rs_process "$reader"
		printf '%s %s\n' "$reader" "$rs_birth" >reader
	fi
	rs_mark data
	step=5 round=0 patience=1000 cut='' fresh=1
	while :; do
		# Asked before the reading: what was written before the end is read after it.
		over=
		case $state in
		exited | lost | elsewhere)
			over=1 fresh=1
			# What still holds the pipes is not the job: it gets a moment to be read, no more.
			if [ ! -p out.pipe ] ||
				{ { [ -e out.end ] || [ -e out.full ]; } && { [ -e err.end ] || [ -e err.full ]; }; }; then
				patience=0
			fi
			;;
		esac
		[ -z "$fresh" ] || flow
		if [ -n "$over" ]; then
			[ "$patience" -gt 0 ] || break
			patience=$((patience - step))
		fi
		nap "$step"
		kill -0 "$reader" 2>/dev/null || break
		before=$now was="${out_size-} ${err_size-}" fresh=
		measure
		# shellcheck disable=SC2086
		if is_cut $was "$inodes"; then
			cut=1
			break
		fi
		if [ "$before" != "$now" ]; then
			step=5 fresh=1
		elif [ "$step" -lt 80 ]; then
			step=$((step * 2))
		fi
		round=$((round + 1))
		if [ -z "$over" ] && { [ -e status ] || [ $((round % 16)) -eq 0 ]; }; then
			look
		fi
	done
	if [ -n "$cut" ]; then
		rs_mark cut
	elif [ -n "$over" ] && [ "$patience" -le 0 ]; then
		full=
		[ ! -e out.full ] && [ ! -e err.full ] || full=" full"
		case $expired in
		timeout) state=expired ;;
		tether) state=untied ;;
		esac
		rs_mark "ended $state $code $ended$full"
	else
		rs_mark paused
	fi
	wait "$reader" || exit 1
	[ ! -e forget ] || bury
	exit 0
}

# bury : removes what the job has left. A tombstone tells of its end for a minute; the next one removes it.
bury() {
	: >gone
	for file in * .[!.]*; do
		case $file in
		gone | status | pid | made | meta | supervisor) ;;
		*) rm -rf "./$file" ;;
		esac
	done
	find .. -name gone -mmin +1 | while read -r file; do
		rm -rf "${file%/gone}"
	done
} 2>/dev/null

# run_along OUT_AT ERR_AT : passes the streams of the job at place on, once they have begun.
run_along() {
	place "$place"
	if ! enter "$dir"; then
		report 0
		rs_end
	fi
	look
	until [ -e out.0 ] || [ -e "out.$1" ] || [ "$elapsed" -gt 2000 ]; do
		nap 5
	done
	[ -e err.0 ] || : >>err.0
	report 0
	has_out=1 has_err=1 inodes=
	stream "$1" "$2"
}
