# Sends a signal to a job, once.

# Two signals of a kind that come together are one to a process. So whoever sends one makes a file in `untaken` before, and
# removes it once the job has taken the signal: while there is one, the next sender looks.

# turn NUMBER INDEX CLAIM : waits until nobody else signals this job, and until the job has taken what it was sent. A file
# is the turn, and says whose shell has it. One that has gone without giving it back is not waited for; one that does not
# say who it is, or a file that can't be made, not for long.
turn() {
	waited=0 unnamed=0 gone=
	until true >turn; do
		holder=
		read -r holder <turn
		if [ -z "$holder" ]; then
			unnamed=$((unnamed + 5))
			[ "$unnamed" -lt 900 ] || break
		elif kill -0 "$holder"; then
			unnamed=0
			[ "$waited" -lt 5000 ] || break
		else
			# It may have given the turn back and ended since it was read: then another look finds another holder, or none.
			[ "$holder" != "$gone" ] || break
			gone=$holder
		fi
		nap 5
		waited=$((waited + 5))
	done 2>/dev/null
	{
		[ ! -s turn ] || true >|turn
		# Appended: ext4 takes a file to the disk at once that was cut to nothing and written anew.
		echo "$$" >>turn
	} 2>/dev/null
	turns="$turns $2:$3:$pid:$1"
	waited=0
	! rs_untaken || while [ "$waited" -lt 200 ] && [ "$state" = running ] && rs_pending "$pid" "$1"; do
		nap 2
		waited=$((waited + 2))
	done
}

# end_turns : lets others signal the jobs.
end_turns() {
	over=
	for one in $turns; do
		there="\"\$dir_${one%%:*}"
		over="$over $there/turn\""
		one=${one#*:}
		mark=${one%%:*}
		one=${one#*:}
		rs_pending "${one%:*}" "${one#*:}" || over="$over $there/untaken/$mark\""
	done
	[ -z "$over" ] || eval "rm -f $over"
	turns=
}

# outcome CLAIM : what an earlier try of the same delivery wrote down, in `sent`; empty while it has not.
outcome() {
	sent=
	[ ! -O "sig.$1" ] || read -r _ sent <"sig.$1"
} 2>/dev/null

# claim CLAIM RETRY MILLISECONDS : takes the delivery. Sets sent to nothing when this script is the one that sends, else to
# what came of an earlier try, which is waited for so long. With noclobber set: the claim is a file that only one can
# create.
claim() {
	if true >"sig.$1"; then
		sent=
	elif [ -e "sig.$1" ]; then
		outcome "$1"
		while [ -z "$sent" ] && [ "$elapsed" -lt "$3" ]; do
			nap 10
			outcome "$1"
		done
		sent=${sent:-unconfirmed}
	elif [ "$2" = 1 ]; then
		sent=unconfirmed
	else
		sent=
	fi
} 2>/dev/null

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
	eval "dir_$1=\$dir kin_$1="
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
# job there, unless CLAIM was taken before; then CONT to it when it is stopped and CONT is 1. Answers what came of it,
# and then how the job stood before. The claim is a file that only one can create, so only its creator ever sends;
# where none can be created (a full disk), a first try sends without and a RETRY does not.
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
		sent=unconfirmed
		[ "$9" = 1 ] || sent=
	else
		set -C
		turn "$5" "$1" "$3"
		claim "$3" "$9" 1000
		set +C
	fi
	if [ -z "$sent" ]; then
		to=-$pgid
		[ "$7" = group ] || to=$pid
		[ -n "$bare" ] || true 2>/dev/null >"untaken/$3"
		# Once more, with nothing between the look and the builtin that could take time.
		if [ "$rs_group" != "$pgid" ] || ! { rs_holds "$pid" || alive "$pid" "$birth" "$boot"; }; then
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
	[ "$sent" = denied ] || left="$left $1"
	rs_say sent "$1" "$sent"
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
