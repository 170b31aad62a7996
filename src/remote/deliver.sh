# Sends a signal to a job, once.

left='' turns=''
now=$(date +%s)

# turn NUMBER INDEX : waits until nobody else signals this job, and until the job has taken what it was sent: two signals of a
# kind that come together are one to a process. A file is the turn; whoever has left one behind is not waited for long.
turn() {
	waited=0
	until true >turn; do
		if [ ! -e turn ] || [ "$waited" -ge 300 ]; then
			break
		fi
		nap 5
		waited=$((waited + 5))
	done 2>/dev/null
	turns="$turns \"\$dir_$2/turn\""
	waited=0
	while [ "$waited" -lt 200 ] && [ "$state" = running ] && rs_pending "$pid" "$1"; do
		nap 2
		waited=$((waited + 2))
	done
}

# end_turns : lets others signal the jobs.
end_turns() {
	[ -z "$turns" ] || eval "rm -f $turns"
	turns=
}

# outcome CLAIM : what an earlier try of the same delivery wrote down, in `sent`; empty while it has not.
outcome() {
	sent=
	[ ! -O "sig.$1" ] || read -r _ _ sent <"sig.$1"
} 2>/dev/null

# deliver INDEX PLACE CLAIM NAME NUMBER ARGUMENT TARGET CONT RETRY : sends -ARGUMENT to the TARGET (group or process) of the
# job there, unless CLAIM was taken before; then CONT to it when it is stopped and CONT is 1. Answers what came of it,
# and then how the job stood before. The claim is a file that only one can create, so only its creator ever sends;
# where none can be created (a full disk), a first try sends without and a RETRY does not.
deliver() {
	place "$2"
	eval "dir_$1=\$dir"
	if ! enter "$dir"; then
		report "$1"
		return
	fi
	look
	while [ "$state" = ending ] && [ "$elapsed" -lt 2000 ]; do
		nap 10
		look
	done
	case $state in
	running | stopped) ;;
	*)
		report "$1"
		return
		;;
	esac
	if [ "$6" = 0 ]; then
		report "$1"
		return
	fi
	set -C
	turn "$5" "$1"
	if true >"sig.$3"; then
		sent=
	elif [ -e "sig.$3" ]; then
		outcome "$3"
		while [ -z "$sent" ] && [ "$elapsed" -lt 1000 ]; do
			nap 10
			outcome "$3"
		done
		sent=${sent:-unconfirmed}
	elif [ "$9" = 1 ]; then
		sent=unconfirmed
	else
		sent=
	fi 2>/dev/null
	set +C
	if [ -z "$sent" ]; then
		to=-$pgid
		[ "$7" = group ] || to=$pid
		# Once more, with nothing between the answer and the builtin that could take time.
		if [ "$rs_group" != "$pgid" ] || ! alive "$pid" "$birth" "$boot"; then
			sent=gone
		elif kill "-$6" "$to"; then
			sent=yes
			# Looked at again, for a STOP that was on its way.
			if [ "$8" = 1 ] && { [ "$state" = stopped ] || { alive "$pid" "$birth" "$boot" && [ "$rs_run" = T ]; }; }; then
				kill -CONT "$to"
			fi
		elif alive "$pid" "$birth" "$boot"; then
			sent=denied
		else
			sent=gone
		fi 2>/dev/null
		printf '%s %s %s\n' "$4" "$now" "$sent" 2>/dev/null >>"sig.$3"
	fi
	[ "$sent" = denied ] || left="$left $1"
	answer sent "$1" "$sent"
	report "$1"
}

# deliver_if_left INDEX ... : the same for a job that has not ended yet; it stays among those that are left.
deliver_if_left() {
	case "$left " in
	*" $1 "*)
		others=$left
		deliver "$@"
		left=$others
		;;
	esac
}
