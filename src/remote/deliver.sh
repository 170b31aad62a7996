# Sends a signal to a job exactly once. Signals are claimed and sent one at a time, under the job's lock (lock.sh).

# outcome CLAIM : sets `sent` to what an earlier attempt of the same delivery recorded; empty if it has not yet.
outcome() {
	sent=
	[ ! -O "sig.$1" ] || read -r _ sent <"sig.$1"
} 2>/dev/null

# claim CLAIM RETRY MILLISECONDS : claims the delivery. Leaves `sent` empty if this script has to send the signal.
# Otherwise sets it to the result of an earlier attempt, after waiting up to that long for one. The claim is a file that
# only one attempt can create. If none can be created (full disk), a first attempt sends anyway and a RETRY does not.
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

# outlived : succeeds if the group of a job whose first process has ended still has members, and sets number to their
# number.
outlived() {
	case $pgid in
	'' | *[!0-9]* | 0 | 1) return 1 ;;
	esac
	number=1
	[ "$boot" = "$rs_boot" ] && kill -0 "-$pgid" || return 1
	[ "$rs_system" = Linux ] || return 0
	# If another process leads a group with this number, the job's group is gone.
	! rs_process "$pgid" || [ "$rs_birth" = "$birth" ] || return 1
	number=0
	for one in /proc/[0-9]*; do
		! rs_process "${one#/proc/}" || [ "$rs_group" != "$pgid" ] || [ "$rs_run" = Z ] || number=$((number + 1))
	done
	[ "$number" -gt 0 ]
} 2>/dev/null

# approach INDEX PLACE : changes to the job's directory and looks at the job; waits for an end that is about to be
# recorded. On failure reports the job's state. Sets bare for a running job without a directory: a signal for it can't
# be claimed, so an attempt that may not be the first does not send.
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

# deliver INDEX PLACE CLAIM NAME NUMBER ARGUMENT TARGET CONT RETRY : sends -ARGUMENT to the TARGET (group or process) of
# the job, unless CLAIM was taken before. Then sends CONT if the job is stopped and CONT is 1. Reports the result, and
# the job's state before the signal.
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
		# A holder that takes longer than this must have been stopped. Then send without the lock.
		rs_lock 0 || { rs_flush && rs_lock 5000; }
		claim "$3" "$9" 1000
	fi
	if [ -z "$sent" ]; then
		to=-$pgid
		[ "$7" = group ] || to=$pid
		[ -n "$bare" ] || [ "$state" = stopped ] || rs_await "$pid" "$5" 400
		# Checked again, with nothing in between that takes time.
		if ! rs_holds "$pid" && ! alive "$pid" "$birth" "$boot"; then
			sent=gone
		elif kill "-$6" "$to"; then
			sent=yes
			# Checked again, since a STOP may have been on its way.
			if [ "$8" = 1 ] && { [ "$state" = stopped ] || { alive "$pid" "$birth" "$boot" && rs_is_stopped "$pid"; }; }; then
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

# settle : runs after the answer, since it takes time: records whether these jobs have pending signals, for the next
# sender.
settle() {
	for one in $locks; do
		eval "dir=\$dir_${one%%:*}"
		one=${one#*:}
		! cd -P "$dir" || rs_settle "${one%%:*}" "${one#*:}"
	done 2>/dev/null
	locks=
}

# if_left FUNCTION INDEX ... : runs deliver or tree for a job in `left`, which has not ended. The job stays in `left`.
if_left() {
	case "$left " in
	*" $2 "*)
		others=$left
		"$@"
		left=$others
		;;
	esac
}
