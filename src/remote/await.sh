# Waits for jobs to end.

# watch INDEX PLACE TREE : adds a job to wait for; if TREE is 1, also for what it has started.
watch() {
	place "$2"
	eval "dir_$1=\$dir tree_$1=\$3"
	left="$left $1"
}

# lingers INDEX : in a job's directory, succeeds while a process lives that a signal to the whole tree was sent to.
lingers() {
	eval "[ \"\${tree_$1-}\" = 1 ]" && [ -O tree ] && read -r kin <tree && each is_left
}

# doze MILLISECONDS DIR : as nap, but no longer than the supervisor of the job in DIR lives: it holds a FIFO open.
doze() {
	rs_flush
	fraction "$1"
	sleep "$seconds" &
	sleeper=$!
	(
		# Opened for both first: that does not wait for a supervisor that is gone already.
		exec 5<>"$2/ended"
		exec 6<"$2/ended"
		exec 5>&-
		# A start waits for that line.
		if read -r line <&6; then
			echo "$line" 1<>"$2/ended"
		# Where this script was killed, others may have that number.
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

# await MILLISECONDS : waits until all jobs in `left` have ended, or the time is up; reports each job as it ends.
await() {
	elapsed=0 step=3 round=0 woken='' vain=
	rs_self
	while [ -n "$left" ]; do
		waiting=$left left='' first=
		for index in $waiting; do
			eval "dir=\$dir_$index"
			state=running
			# A full look only now and then, for a job whose supervisor was killed.
			if [ "$index" = "$woken" ] || [ $((round % 16)) -eq 0 ] || { cd -P "$dir" && has_ended; }; then
				! enter "$dir" || look
			fi 2>/dev/null
			case $state in
			running | stopped | ending | starting)
				left="$left $index"
				# Its supervisor was killed.
				[ "$index" != "$woken" ] || vain=1
				[ -n "$first$vain" ] || [ ! -p "$dir/ended" ] || first=$index first_dir=$dir
				;;
			*) if lingers "$index"; then left="$left $index"; else report "$index"; fi ;;
			esac
		done
		if [ -z "$left" ] || [ "$elapsed" -ge "$1" ]; then
			return
		fi
		round=$((round + 1)) woken=
		# Who waits for one job is woken.
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
