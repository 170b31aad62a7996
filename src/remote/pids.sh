# Tells which processes a job has.

# in_group PGID : prints the number of every process of that group that has not ended.
in_group() {
	if [ "$rs_system" = Linux ]; then
		for rs_entry in /proc/[0-9]*; do
			if rs_process "${rs_entry#/proc/}" && [ "$rs_group" = "$1" ] && [ "$rs_run" != Z ] && [ "$rs_run" != X ]; then
				answer process "${rs_entry#/proc/}"
			fi
		done
	else
		LC_ALL=C ps -A -o pid= -o pgid= -o stat= 2>/dev/null | while read -r one group state; do
			case $state in
			Z*) ;;
			*) [ "$group" != "$1" ] || answer process "$one" ;;
			esac
		done
	fi
}

# pids INDEX PLACE : how the job there stands, and its processes if its first one is there: only then is the number of
# its group certainly its own.
pids() {
	place "$2"
	! enter "$dir" || look
	report "$1"
	case $state in
	running | stopped) in_group "$pgid" ;;
	esac
}
