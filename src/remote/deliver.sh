# Sends a signal to a job, once.

# With the job's lock (lock.sh), one signal after the other is claimed and sent.

# trust : believes what this shell has found out about the directory of jobs before.
trust() {
	rs_private=$rs_trusted
}

# outcome CLAIM : what an earlier try of the same delivery wrote down, in `sent`; empty while it has not.
outcome() {
	sent=
	[ ! -O "sig.$1" ] || read -r _ sent <"sig.$1"
} 2>/dev/null

# claim CLAIM RETRY MILLISECONDS : takes the delivery. Sets sent to nothing if this script is the one that sends, else to
# what came of an earlier try, which is waited for that long. The claim is a file that only one can create; where none can
# be created (a full disk), a first try sends without, and a RETRY does not.
claim() {
	sent=
	! rs_create "sig.$1" || return 0
	if [ -e "sig.$1" ]; then
		outcome "$1"
		rs_waited=0
		while [ -z "$sent" ] && [ "$rs_waited" -lt "$3" ]; do
			rs_nap
			outcome "$1"
		done
		sent=${sent:-unconfirmed}
	elif [ "$2" = 1 ]; then
		sent=unconfirmed
	fi
}

# outlived : succeeds when the group of a job whose first process has gone has members, and sets number to how many.
outlived() {
	case $pgid in
	'' | *[!0-9]* | 0 | 1) return 1 ;;
	esac
	number=1
	[ "$boot" = "$rs_boot" ] && kill -0 "-$pgid" || return 1
	[ "$rs_system" = Linux ] || return 0
	# Another process that leads a group of that number: the job's has been gone before.
	! rs_process "$pgid" || [ "$rs_birth" = "$birth" ] || return 1
	number=0
	for one in /proc/[0-9]*; do
		! rs_process "${one#/proc/}" || [ "$rs_group" != "$pgid" ] || [ "$rs_run" = Z ] || number=$((number + 1))
	done
	[ "$number" -gt 0 ]
} 2>/dev/null

# approach INDEX PLACE : goes into the directory of the job there and looks at it; an end that is about to be recorded is
# waited for. Where that can't be, it says how the job stands, and fails. Sets bare for a job that runs without a directory:
# a signal for it can't be claimed, so a try that may not be the first does not send.
approach() {
	place "$2"
	eval "dir_$1=\$dir"
	bare=
	if ! enter "$dir"; then
		[ "$expired" != dir ] || bare=1
		[ -z "$bare" ] || return 0
		report "$1"
		return 1
	fi
	look
	while [ "$state" = ending ] && [ "$elapsed" -lt 2000 ]; do
		nap 10
		look
	done
	return 0
}

# deliver INDEX PLACE CLAIM NAME NUMBER ARGUMENT TARGET CONT RETRY : sends -ARGUMENT to the TARGET (group or process) of the
# job there, unless CLAIM was taken before; then CONT if the job is stopped and CONT is 1. Answers what came of it, and how
# the job stood before.
deliver() {
	approach "$1" "$2" || return 0
	case $state in
	running | stopped) ;;
	*)
		! outlived || rs_say kin "$1" "$number"
		report "$1"
		return
		;;
	esac
	if [ "$6" = 0 ]; then
		report "$1"
		return
	fi
	if [ -n "$bare" ]; then
		sent=unconfirmed rs_locked=
		[ "$9" = 1 ] || sent=
	else
		# One that holds the lock for longer has been stopped: better without the lock than never.
		rs_lock 0 || { rs_flush && rs_lock 5000; }
		claim "$3" "$9" 1000
	fi
	if [ -z "$sent" ]; then
		to=-$pgid
		[ "$7" = group ] || to=$pid
		[ -n "$bare" ] || [ "$state" = stopped ] || rs_await "$pid" "$5" 400
		# Once more, with nothing between the look and the builtin that could take time.
		if ! rs_holds "$pid" && ! alive "$pid" "$birth" "$boot"; then
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
		[ -n "$bare" ] || printf '%s %s\n' "$4" "$sent" 2>/dev/null >>"sig.$3"
	fi
	[ -n "$bare" ] || {
		rs_unlock
		locks="$locks $1:$pid:$rs_locked"
	}
	[ "$sent" = denied ] || left="$left $1"
	rs_say sent "$1" "$sent"
	report "$1"
}

# settle : what takes time, and is done when nobody waits for the answer: tells who signals these jobs next whether there is
# anything to wait for.
settle() {
	for one in $locks; do
		eval "dir=\$dir_${one%%:*}"
		one=${one#*:}
		! cd -P "$dir" || rs_settle "${one%%:*}" "${one#*:}"
	done 2>/dev/null
	locks=
}

# if_left FUNCTION INDEX ... : deliver or tree, for a job that has not ended yet; it stays among those that are left.
if_left() {
	case "$left " in
	*" $2 "*)
		others=$left
		"$@"
		left=$others
		;;
	esac
}
