# Prints a job's output unchanged. A small output is sent in one write.
# Given by the client: place; streams (out, err or both words); from (lines, line, bytes, byte or resume); count; follow
# (0 or 1); most (the maximum number of bytes to send, or empty); and for resume out_from, err_from and inodes (the
# positions, and the files they belong to).
# The `from` line of the answer gives the position of each stream's first byte, and how many lines and bytes the client
# has to skip because they are not written yet.

# first FILE SIZE : sets at to the position of the first requested byte, and lines and bytes to what the client has to
# skip from there.
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
		# Look backwards in growing windows, each read by position, since the file may grow meanwhile.
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

# copy SIZE : copies that many bytes of standard input.
copy() {
	[ "$1" -lt 65536 ] || dd bs=65536 count=$(($1 / 65536)) 2>/dev/null
	head -c $(($1 % 65536))
}

# rest SIZE : copies the rest of standard input, but no more than SIZE bytes while the job runs.
rest() {
	if [ "$state" = exited ]; then
		cat
	elif [ "$1" -gt 0 ]; then
		copy "$1"
	fi
}

# in_order STREAM [POSITION] : prints the numbers of a spooled stream's files from a position on, in order.
in_order() {
	numbers "$1"
	for number in $numbers; do
		[ "$number" -lt "${2:-0}" ] || echo "$number"
	done | sort -n
}

# last_lines STREAM : sets at to the beginning of the last lines. Looks backwards in growing windows, as `first` does,
# and repeats that if a file was removed meanwhile.
last_lines() {
	at=$last
	[ "$count" -gt 0 ] || return 0
	window=65536 tries=0
	while
		kept "$1"
		locate "$1" $((last > window ? last - window : 0))
		[ "$at" -ge "$first" ] || at=$first
		size=$((last - at))
		wanted=$(for number in $(in_order "$1" "$at"); do cat "$1.$number"; done 2>/dev/null |
			head -c "$size" | tail -n "$count" | wc -c)
		wanted=$((wanted))
		{ [ "$wanted" -lt "$size" ] && [ ! -e "$1.$at" ]; } || { [ "$wanted" -ge "$size" ] && [ "$at" -gt "${oldest:-0}" ]; }
	do
		# The numbers of some shells end at 2 GB.
		window=$((window < 268435456 ? window * 8 : last)) tries=$((tries + 1))
		[ "$tries" -lt 20 ] || break
	done
	# If there are fewer lines, some of the requested ones may be gone.
	at=$((wanted < size ? last - wanted : 0))
}

# from_line STREAM : sets at to the beginning of the line, and lines to what the client has to skip from there. Fails if
# a file was removed meanwhile.
from_line() {
	before=0 gone=0
	[ ! -s "$1.gone" ] || read -r gone before <"$1.gone"
	if [ "$before" -gt 0 ] && [ "$count" -le $((before + 1)) ]; then
		at=0
		return
	fi
	stream=$1 left_out=$((count - 1 - before))
	# shellcheck disable=SC2046
	set -- $(in_order "$1" "$gone")
	[ $# -gt 0 ] && [ "$left_out" -gt 0 ] || return 0
	[ ! -e ring ] || [ "$1" -eq "$gone" ] || return 1
	while [ $# -gt 1 ]; do
		number=$(wc -l <"$stream.$1") || return 1
		[ "$number" -lt "$left_out" ] || break
		left_out=$((left_out - number))
		shift
	done
	size=$(head -n "$left_out" "$stream.$1" | wc -c)
	lines=$((left_out - $(head -c $((size)) "$stream.$1" | wc -l)))
	[ -e "$stream.$1" ] || return 1
	at=$(($1 + size))
} 2>/dev/null

# asked STREAM : as `first`, for a spooled stream. The position may be that of a byte that is gone: then the client says
# so.
asked() {
	kept "$1"
	at=$first lines=0 bytes=0
	case $from in
	lines) last_lines "$1" ;;
	bytes) at=$((last > count ? last - count : 0)) ;;
	line)
		tries=0
		# Files may be removed meanwhile.
		until from_line "$1" || [ "$tries" -ge 100 ]; do
			tries=$((tries + 1))
		done
		;;
	byte)
		at=$((count - 1))
		[ "$at" -le "$last" ] || bytes=$((at - last)) at=$last
		;;
	esac
	# Delivered output of a job in the foreground is not reported as gone.
	[ -e ring ] || [ "$at" -ge "$first" ] || at=$first
}

# spooled : sets the positions to start at in the output of a job whose streams are pipes.
spooled() {
	for stream in out err; do
		numbers "$stream"
		[ -n "$numbers" ] || [ -e "$stream.end" ] || true >>"$stream.0"
	done
	[ "$state" != exited ] || until is_written; do nap 5; done
	asked out
	out_at=$at out_end=$last out_skip="$lines $bytes"
	asked err
	err_at=$at err_end=$last err_skip="$lines $bytes" out_inode=0 err_inode=0
}

# part STREAM NUMBER POSITION LAST : copies a spooled stream up to position LAST. Standard input is file NUMBER, at
# POSITION.
part() {
	at=$2 here=$3
	while
		after "$1" "$at"
		[ "${next:-$4}" -lt "$4" ]
	do
		cat
		reach "$1" "$next" 0 || return
		here=$at
		tell_at "$1" "$at"
	done
	[ "$4" -le "$here" ] || copy $(($4 - here))
}

# put_off OUT ERR : ends the script if the requested streams have more bytes than `most`: these go over another
# connection.
put_off() {
	[ -n "$has_out" ] || set -- 0 "$2"
	[ -n "$has_err" ] || set -- "$1" 0
	if [ -n "$most" ] && [ $(($1 + $2)) -gt "$most" ]; then
		rs_mark data
		rs_mark paused
		exit 0
	fi
}

# tell_ring : reports how much is kept of each stream, the positions of the oldest bytes, and whether the disk was full.
tell_ring() {
	read -r size <ring
	kept out
	oldest=$first
	kept err
	full=0
	[ ! -e out.lost ] && [ ! -e err.lost ] || full=1
	rs_say ring "$size" "$oldest" "$first" "$full"
}

place "$place"
if ! enter "$dir"; then
	report 0
	rs_mark data
	rs_mark end
	exit 0
fi
look
if ! has_output; then
	report 0
	rs_mark data
	rs_mark end
	exit 0
fi
case $streams in *out*) has_out=1 ;; *) has_out= ;; esac
case $streams in *err*) has_err=1 ;; *) has_err= ;; esac
if [ -p out.pipe ]; then
	spooled
else
	if [ "$follow" = 0 ] && [ "$from" != resume ] && [ ! -s out ] && [ ! -s err ]; then
		# Saves a process. Without an inode, a position belongs to any file.
		out_size=0 err_size=0 out_inode=0 err_inode=0
	else
		sizes
	fi
	first out "$out_size"
	out_at=$at out_skip="$lines $bytes"
	first err "$err_size"
	err_at=$at err_skip="$lines $bytes"
fi
if [ "$from" = resume ]; then
	out_at=$out_from err_at=$err_from
fi
# Positions from older versions don't name their files.
if [ "$from" != resume ] || [ "$inodes" = '0 0' ]; then
	inodes="$out_inode $err_inode"
fi
report 0
[ ! -s ring ] || tell_ring
rs_say from "$out_at" "$out_skip" "$err_at" "$err_skip" "$inodes"
# A log was truncated or replaced meanwhile.
if is_cut "$out_at" "$err_at" "$inodes"; then
	rs_mark data
	rs_mark cut
	exit 0
fi
[ "$follow" = 0 ] || stream "$out_at" "$err_at"
open_at "$out_at" "$err_at"
if [ -p out.pipe ]; then
	case $from in
	line | byte | resume)
		# A ring may have lost so much meanwhile that little would be sent.
		kept out
		out_end=$last
		kept err
		err_end=$last
		;;
	esac
	put_off $((out_end - out_from)) $((err_end - err_from))
	begin_data
	[ -z "$has_out" ] || (part out "$out_at" "$out_from" "$out_end") <&6
	rs_mark err
	[ -z "$has_err" ] || (part err "$err_at" "$err_from" "$err_end") <&7
	rs_mark end
	exit 0
fi
put_off $((out_size - out_at)) $((err_size - err_at))
if [ $((out_size - out_at + err_size - err_at)) -eq 0 ] && [ "$state" != exited ]; then
	rs_mark data
	rs_mark end
	exit 0
elif [ $((out_size - out_at + err_size - err_at)) -le 65536 ]; then
	{
		rs_mark data
		[ -z "$has_out" ] || rest $((out_size - out_at)) <&6
		rs_mark err
		[ -z "$has_err" ] || rest $((err_size - err_at)) <&7
		rs_mark end
	} | dd ibs=65536 obs=65536 2>/dev/null
	exit 0
fi
rs_mark data
[ -z "$has_out" ] || rest $((out_size - out_at)) <&6
rs_mark err
[ -z "$has_err" ] || rest $((err_size - err_at)) <&7
rs_mark end
exit 0
