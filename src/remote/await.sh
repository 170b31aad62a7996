# Waits for jobs to end.

# watch INDEX PLACE TREE : adds a job to wait for; if TREE is 1, also waits for the processes that it has started.
watch() {
	place "$2"
	eval "dir_$1=\$dir tree_$1=\$3"
	left="$left $1"
}

# lingers INDEX : in a job's directory, succeeds while any process that a signal to the whole tree was sent to still
# runs.
lingers() {
	eval "[ \"\${tree_$1-}\" = 1 ]" && [ -O tree ] && read -r kin <tree && each is_left
}

# doze MILLISECONDS DIR : as nap, but ends when the supervisor of the job in DIR ends: the supervisor holds a FIFO open.
doze() {
	rs_flush
	fraction "$1"
	sleep "$seconds" &
	sleeper=$!
	(
		# Opened for reading and writing first, so that the next open does not block if the supervisor is gone already.
		exec 5<>"$2/ended"
		exec 6<"$2/ended"
		exec 5>&-
		# That line is for a start, which waits for it: put it back.
		if read -r line <&6; then
			echo "$line" 1<>"$2/ended"
		# If this script was killed, another process may have that number.
		elif rs_process "$sleeper" && [ "$rs_parent" = "$rs_me" ]; then
			kill "$sleeper"
		fi
	) >/dev/null &
	waker=$!
	wait "$sleeper"
	set -- "$1" $?
	kill -KILL "$waker"
	wait "$waker"
	if [ "$2" -eq 0 ]; then
		elapsed=$((elapsed + $1))
	elif [ "$2" -gt 128 ]; then
		woken=$first elapsed=$((elapsed + $1 / 2))
	else
		nap "$1"
	fi
} 2>/dev/null

# await MILLISECONDS : waits until all jobs in `left` have ended or the time is up, and reports each job when it ends.
await() {
	elapsed=0 step=3 round=0 woken='' vain=
	rs_self
	while [ -n "$left" ]; do
		waiting=$left left='' first=
		for index in $waiting; do
			eval "dir=\$dir_$index"
			state=running
			# A full look only in some rounds, in case a job's supervisor was killed.
			if [ "$index" = "$woken" ] || [ $((round % 16)) -eq 0 ] || { cd -P "$dir" && has_ended; }; then
				! enter "$dir" || look
			fi 2>/dev/null
			case $state in
			running | stopped | ending | starting)
				left="$left $index"
				# Woken but not ended: its supervisor was killed.
				[ "$index" != "$woken" ] || vain=1
				# While a job starts, a line in its FIFO is for the start.
				[ -n "$first$vain" ] || [ "$state" = starting ] || [ ! -p "$dir/ended" ] || first=$index first_dir=$dir
				;;
			*) if lingers "$index"; then left="$left $index"; else report "$index"; fi ;;
			esac
		done
		if [ -z "$left" ] || [ "$elapsed" -ge "$1" ]; then
			return
		fi
		round=$((round + 1)) woken=
		# A wait for a single job is woken by its end, so sleep longer.
		[ "$left" != " $first" ] || step=900
		[ "$step" -le $(($1 - elapsed)) ] || step=$(($1 - elapsed))
		if [ -n "$first" ]; then
			doze "$step" "$first_dir"
		else
			nap "$step"
		fi
		[ "$step" -ge 80 ] || step=$((step * 2))
	done
}

# remaining : reports the jobs that have not ended.
remaining() {
	for index in $left; do
		eval "dir=\$dir_$index"
		! enter "$dir" || look
		! lingers "$index" || count "$index"
		report "$index"
	done
}
