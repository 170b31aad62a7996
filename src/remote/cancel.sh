# Cancels a start that its client has given up.

# cancel ID : takes the id, so that a later start is refused. If a job already has the id, ends that job.
cancel() {
	place "$1"
	if mkdir -p "${dir%/*}" && mkdir "$dir"; then
		true >"$dir/gone"
		return
	fi
	enter "$dir" || return
	while [ ! -s pid ] && [ ! -s refused ] && [ "$elapsed" -lt 2000 ]; do
		nap 10
	done
	# A start that takes longer ends the job itself (job.sh).
	[ -s pid ] || true >cancelled
	look
	case $state in
	running | stopped)
		kill -TERM "-$pgid"
		kill -CONT "-$pgid"
		until has_ended || [ "$elapsed" -gt 4000 ]; do
			nap 10
		done
		has_ended || ! alive "$pid" "$birth" "$boot" || kill -KILL "-$pgid"
		;;
	esac
} 2>/dev/null
