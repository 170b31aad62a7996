# Lists a job's processes.

# in_group PGID : reports the number of each process of that group that has not ended.
in_group() {
	if [ "$rs_system" = Linux ]; then
		for rs_entry in /proc/[0-9]*; do
			if rs_process "${rs_entry#/proc/}" && [ "$rs_group" = "$1" ] && [ "$rs_run" != Z ] && [ "$rs_run" != X ]; then
				rs_say process "${rs_entry#/proc/}"
			fi
		done
	else
		for rs_entry in $(LC_ALL=C ps -A -o pid= -o pgid= -o stat= | awk -v of="$1" '$2 == of && $3 !~ /^Z/ { print $1 }'); do
			rs_say process "$rs_entry"
		done
	fi
} 2>/dev/null

# pids INDEX PLACE : reports the job's state, and its processes if its first one still runs: only then does the number
# of the group certainly belong to the job.
pids() {
	place "$2"
	! enter "$dir" || look
	report "$1"
	case $state in
	running | stopped) in_group "$pgid" ;;
	esac
}
