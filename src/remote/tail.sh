# Passes a job's output on: standard output on fd 1, standard error on fd 2, every byte as it was written. What is little
# comes on fd 1 alone, standard error behind a mark of its own, and so in one write.
# Given by the client: place, out_from, err_from and inodes (the positions to go on at where from is resume, and of which
# files), streams (out, err or
# both words), from (lines, line, bytes or byte), count, follow (0 or 1).
# The first line of the rs_say gives the position of each stream's first byte, and how many lines and bytes the
# client has to leave out itself because they are not written yet.

# sizes : sets err_size and out_size, and err_inode and out_inode, which another file in their place has not. ls sorts by
# name; in this locale and style a line has ten fields.
sizes() {
	# shellcheck disable=SC2046
	set -- $(LC_ALL=C TIME_STYLE=locale ls -lni err out 2>/dev/null)
	err_inode=${1:-0} err_size=${6:-0}
	shift $(($# < 10 ? $# : 10))
	out_inode=${1:-0} out_size=${6:-0}
}

# is_cut OUT_SIZE ERR_SIZE INODES : succeeds when a log is shorter than it was, or another file than it was.
is_cut() {
	[ "$out_size" -lt "$1" ] || [ "$err_size" -lt "$2" ] || [ "$out_inode $err_inode" != "$3" ]
}

# first FILE SIZE : sets at to the position of the first byte that is asked for, lines and bytes to what is then
# still to be left out.
first() {
	at=0 lines=0 bytes=0
	case $from in
	lines | bytes) [ "$2" -gt 0 ] || return 0 ;;
	esac
	case $from in
	byte)
		at=$((count - 1))
		if [ "$at" -gt "$2" ]; then
			bytes=$((at - $2)) at=$2
		fi
		;;
	bytes)
		at=$(($2 - count))
		[ "$at" -ge 0 ] || at=0
		;;
	line)
		[ "$count" -gt 1 ] || return 0
		at=$(head -n $((count - 1)) "$1" | wc -c)
		at=$((at))
		lines=$((count - 1 - $(head -c "$at" "$1" | wc -l)))
		;;
	lines)
		at=$2
		[ "$count" -gt 0 ] || return 0
		# Backwards in windows that grow, each read by position: the file may grow meanwhile.
		window=65536
		while :; do
			[ "$window" -le "$2" ] || window=$2
			exec 8<"$1"
			seek $(($2 - window)) <&8
			size=$(head -c "$window" <&8 | tail -n "$count" | wc -c)
			size=$((size))
			at=$(($2 - size))
			if [ "$size" -lt "$window" ] || [ "$window" -ge "$2" ]; then
				return 0
			fi
			window=$((window * 8))
		done
		;;
	esac
}

# seek POSITION : moves the file that is standard input there; whoever reads the same descriptor next goes on at it.
seek() {
	[ "$1" -eq 0 ] || dd bs=1 skip="$1" count=0 2>/dev/null
}

# copy SIZE : that many bytes of standard input.
copy() {
	[ "$1" -lt 65536 ] || dd bs=65536 count=$(($1 / 65536)) 2>/dev/null
	head -c $(($1 % 65536))
}

# rest SIZE : what standard input still holds: of a job that goes on no more than that.
rest() {
	if [ "$state" = exited ]; then
		cat
	else
		copy "$1"
	fi
}

# held STREAM : the files of a spooled stream that are still here, in order.
held() {
	for file in "$1".[0-9]*; do
		case ${file##*.} in
		*[!0-9]*) ;;
		*) echo "${file##*.}" ;;
		esac
	done | sort -n | while read -r number; do
		echo "$1.$number"
	done
}

# asked STREAM : the position to begin at in a spooled stream, in at: of what is still here.
asked() {
	files=$(held "$1")
	at=0 total=0
	[ -n "$files" ] || return 0
	# shellcheck disable=SC2086
	set -- $files
	at=${1##*.}
	for file in "$@"; do
		size "$file"
	done
	end=$((${file##*.} + total))
	case $from in
	resume) wanted=0 ;;
	lines) wanted=$(cat "$@" | tail -n "$count" | wc -c) ;;
	bytes) wanted=$count ;;
	line) wanted=$(cat "$@" | tail -n "+$count" | wc -c) ;;
	byte) wanted=$((end - count + 1)) ;;
	esac
	[ $((wanted)) -ge 0 ] || wanted=0
	[ $((end - wanted)) -le "$at" ] || at=$((end - wanted))
}

# spooled : the output of a job that somebody runs in the foreground, as far as it is still here.
spooled() {
	[ -e out.0 ] || [ -e out.end ] || : >>out.0
	[ -e err.0 ] || [ -e err.end ] || : >>err.0
	asked out
	out_begin=$at
	asked err
	if [ "$from" = resume ]; then
		out_begin=$out_from at=$err_from
	fi
	report 0
	rs_say from "$out_begin" 0 0 "$at" 0 0 0 0
	stream "$out_begin" "$at"
}

place "$place"
if ! enter "$dir"; then
	report 0
	both data
	both end
	exit 0
fi
look
case $streams in *out*) has_out=1 ;; *) has_out= ;; esac
case $streams in *err*) has_err=1 ;; *) has_err= ;; esac
if [ -p out.pipe ]; then
	spooled
fi
sizes
first out "$out_size"
out_at=$at out_skip="$lines $bytes"
first err "$err_size"
err_at=$at err_skip="$lines $bytes"
if [ "$from" = resume ]; then
	out_at=$out_from err_at=$err_from
fi
# Who goes on at places that were written down long ago knows of no files.
if [ "$from" != resume ] || [ "$inodes" = '0 0' ]; then
	inodes="$out_inode $err_inode"
fi
report 0
rs_say from "$out_at" "$out_skip" "$err_at" "$err_skip" "$inodes"
# It was cut short meanwhile, or replaced.
if is_cut "$out_at" "$err_at" "$inodes"; then
	both data
	both cut
	exit 0
fi
exec 6<out 7<err
seek "$out_at" <&6
seek "$err_at" <&7

if [ "$follow" = 0 ] && [ $((out_size - out_at + err_size - err_at)) -le 65536 ]; then
	{
		rs_mark data
		[ -z "$has_out" ] || rest $((out_size - out_at)) <&6
		rs_mark errors
		[ -z "$has_err" ] || rest $((err_size - err_at)) <&7
		rs_mark end
	} | dd ibs=65536 obs=65536 2>/dev/null
	exit 0
fi
both data
if [ "$follow" = 0 ]; then
	[ -z "$has_out" ] || rest $((out_size - out_at)) <&6
	[ -z "$has_err" ] || rest $((err_size - err_at)) <&7 >&2
	both end
	exit 0
fi

# When the client goes, its end of standard input ends this script; a loop that writes nothing would never notice.
exec 3<&0
(
	trap '' HUP INT QUIT TERM USR1 USR2
	cat <&3 >/dev/null
	kill -KILL $$
) >/dev/null 2>&1 6<&- 7<&- &
watcher=$!

step=10 round=0
while :; do
	# Asked before the reading: what was written before the end is read after it.
	case $state in
	exited | lost | elsewhere) over=1 ;;
	*) over= ;;
	esac
	[ -z "$has_out" ] || cat <&6
	[ -z "$has_err" ] || cat <&7 >&2
	[ -z "$over" ] || break
	nap "$step"
	out_was=$out_size err_was=$err_size
	sizes
	if is_cut "$out_was" "$err_was" "$inodes"; then
		both cut
		exec 3<&-
		kill -KILL "$watcher"
		exit 0
	fi
	if [ "$out_size$err_size" != "$out_was$err_was" ]; then
		step=10
	elif [ "$step" -lt 160 ]; then
		step=$((step * 2))
	fi
	round=$((round + 1))
	if [ -e status ] || [ $((round % 16)) -eq 0 ]; then
		look
	fi
done
both end
kill -KILL "$watcher"
exit 0
