# Searches the output of jobs for a line, with stream.sh.
# Given by the client: regex, an extended regular expression.

# The maximum that is searched of a stream at once, in bytes. A longer line is searched in pieces.
search_max=67108864

# search INDEX PLACE OUT ERR : adds a job to search, starting at these positions of its streams.
search() {
	place "$2"
	eval "dir_$1=\$dir out_$1=\$3 err_$1=\$4 out_seen_$1='' err_seen_$1=''"
	left="$left $1"
}

# can_search : sets search to grep's options, or reports why grep rejects the expression.
can_search() {
	for search in -aE -E; do
		why=$(grep "$search" -e "$regex" </dev/null 2>&1)
		[ $? -gt 1 ] || return 0
	done
	rs_say bad "${why%%"$rs_newline"*}"
	rs_end
}

# pass STREAM FROM SIZE : in a subshell, copies that part of a stream. Adds a newline where files of a ring are gone.
pass() {
	reach "$1" "$2" 8 || exit 1
	{
		cat <&8
		while
			after "$1" "$at"
			[ -n "$next" ]
		do
			# The oldest files are removed first: while this one exists, so does the one after it.
			[ ! -e ring ] || [ -e "$1.$at" ] || echo
			at=$next
			cat "$1.$next" 2>/dev/null
		done
	} | head -c "$3"
}

# scan INDEX STREAM : searches the new part of a stream, and its unfinished last line again. Succeeds if a line matches;
# then `pass` with from and size as set here copies the part with the match. Otherwise sets from to where to continue,
# and more if the rest can be searched at once.
scan() {
	kept "$2"
	seen=''
	eval "from=\$${2}_$1 seen=\$${2}_seen_$1"
	[ "$last" != "$seen" ] || return 1
	# That part is gone, or the log was truncated.
	[ "$from" -ge "$first" ] && [ "$from" -le "$last" ] || from=$first
	size=$((last - from)) part=
	[ "$size" -gt 0 ] || return 1
	if [ "$size" -gt "$search_max" ]; then
		size=$search_max part=1
	fi
	# Look backwards in growing windows for the beginning of the last line. The added letter shows whether that line is
	# empty.
	window=4096 rest=0
	while :; do
		[ "$window" -le "$size" ] || window=$size
		rest=$({ pass "$2" $((from + size - window)) "$window" && echo x; } | tail -n 1 | wc -c)
		rest=$((rest > 2 ? rest - 2 : 0))
		if [ "$rest" -lt "$window" ] || [ "$window" -ge "$size" ]; then
			break
		fi
		window=$((window * 16))
	done
	if [ -n "$part" ]; then
		# The last line continues after this part.
		[ "$rest" -lt "$size" ] || rest=0
		size=$((size - rest)) rest=0 more=1
	else
		eval "${2}_seen_$1=\$last"
	fi
	fresh=1
	! pass "$2" "$from" "$size" | grep -q "$search" -e "$regex" 2>/dev/null || return 0
	window=$((from + size - window)) from=$((from + size - rest))
	# If that part was removed meanwhile, everything that is stored now is new.
	[ ! -e ring ] || kept "$2"
	[ "$first" -le "$window" ] || from=$first
	eval "${2}_$1=\$from"
	return 1
}

# scan_job INDEX : looks at a job and searches its output. Sets hit if a line matches. Otherwise the job stays in left,
# or is reported if it has ended or can't be searched.
scan_job() {
	eval "dir=\$dir_$1"
	if ! enter "$dir"; then
		report "$1"
		return
	fi
	# Check before the read, so that everything written before the end is read.
	look
	if ! has_output; then
		report "$1"
		return
	fi
	before=$more more='' whole=
	! is_written || whole=1
	for stream in out err; do
		! scan "$1" "$stream" || hit=$stream
		[ -z "$hit" ] || return 0
	done
	case $state in
	running | stopped | ending | starting) left="$left $1" ;;
	*) if [ -n "$more" ] || [ -z "$whole" ]; then left="$left $1"; else report "$1"; fi ;;
	esac
	more=$before$more
}

# find_line MILLISECONDS : searches until a line is found, no job is left, or the time is up.
find_line() {
	can_search
	elapsed=0 step=5 more='' hit=
	while :; do
		waiting=$left left='' fresh=
		while [ -n "$waiting" ] && [ -z "$hit" ]; do
			waiting=${waiting# }
			index=${waiting%% *}
			waiting=${waiting#"$index"}
			scan_job "$index"
		done
		if [ -z "$left" ] || [ -n "$hit$more" ] || [ "$elapsed" -ge "$1" ]; then
			break
		fi
		[ -z "$fresh" ] || step=5
		nap "$step"
		[ "$step" -ge 80 ] || step=$((step * 2))
	done
	if [ -n "$hit" ]; then
		rs_say found "$index" "$hit"
		report "$index"
		left="$left $index"
	fi
	for index in $left $waiting; do
		eval "rs_say at \"\$index\" \"\$out_$index\" \"\$err_$index\""
	done
	if [ -n "$hit" ]; then
		rs_mark data
		pass "$hit" "$from" "$size" | grep "$search" -e "$regex" 2>/dev/null | head -n 1 | head -c 1048576
	fi
	rs_mark end
	exit 0
}
