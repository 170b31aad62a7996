# Prints a job's output byte by byte as it was written. A small output leaves in one write.
# Given by the client: place; streams (out, err or both words); from (lines, line, bytes, byte or resume); count; follow (0
# or 1); and for resume out_from, err_from and inodes (the positions, and the files they belong to).
# The `from` line of the answer gives the position of each stream's first byte, and how many lines and bytes the client has
# to skip because they are not written yet.

# first FILE SIZE : sets at to the position of the first requested byte, and lines and bytes to what the client has to skip
# from there.
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
		# Backwards in growing windows, each read by position, since the file may grow meanwhile.
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

# rest SIZE : copies the rest of standard input; while the job runs, no more than SIZE bytes.
rest() {
	if [ "$state" = exited ]; then
		cat
	else
		copy "$1"
	fi
}

# held STREAM : prints the remaining files of a spooled stream, in order.
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

# asked STREAM : sets at to the first requested byte of a spooled stream that is still here.
asked() {
	files=$(held "$1")
	at=0 total=0
	[ -n "$files" ] || return 0
	# shellcheck disable=SC2086
	set -- $files
	at=${1##*.}
	for file in "$@"; do
		sum "$file"
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

# spooled : sets the positions to begin at in the output of a foreground job.
spooled() {
	[ -e out.0 ] || [ -e out.end ] || : >>out.0
	[ -e err.0 ] || [ -e err.end ] || : >>err.0
	asked out
	out_at=$at
	asked err
	err_at=$at out_skip='0 0' err_skip='0 0' out_inode=0 err_inode=0
}

place "$place"
if ! enter "$dir"; then
	report 0
	rs_mark data
	rs_mark end
	exit 0
fi
look
case $streams in *out*) has_out=1 ;; *) has_out= ;; esac
case $streams in *err*) has_err=1 ;; *) has_err= ;; esac
if [ -p out.pipe ]; then
	spooled
else
	sizes
	first out "$out_size"
	out_at=$at out_skip="$lines $bytes"
	first err "$err_size"
	err_at=$at err_skip="$lines $bytes"
fi
if [ "$from" = resume ]; then
	out_at=$out_from err_at=$err_from
fi
# Old positions don't name their files.
if [ "$from" != resume ] || [ "$inodes" = '0 0' ]; then
	inodes="$out_inode $err_inode"
fi
report 0
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
	rs_mark data
	flow
	rs_mark end
	exit 0
fi
if [ $((out_size - out_at + err_size - err_at)) -le 65536 ]; then
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
