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

# await MILLISECONDS : waits until all jobs in `left` have ended, or the time is up; reports each job as it ends.
await() {
	elapsed=0 step=3 round=0
	while [ -n "$left" ]; do
		waiting=$left left=
		for index in $waiting; do
			eval "dir=\$dir_$index"
			state=running
			# A full look only now and then, for a job whose supervisor was killed.
			if [ -e "$dir/status" ] || [ $((round % 16)) -eq 0 ]; then
				! enter "$dir" || look
			fi
			case $state in
			running | stopped | ending | starting) left="$left $index" ;;
			*) if lingers "$index"; then left="$left $index"; else report "$index"; fi ;;
			esac
		done
		if [ -z "$left" ] || [ "$elapsed" -ge "$1" ]; then
			return
		fi
		round=$((round + 1))
		nap "$step"
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
