# Tells one process from every other that has had, or will have, its number.

# rs_process PID : sets rs_run to the process's state letter, rs_parent to its parent, rs_group to its process group and
# rs_birth to the time it started at, in the host's own unit. Fails when no such process can be seen.
rs_process() {
	if [ "$rs_system" = Linux ]; then
		[ -r "/proc/$1/stat" ] || return 1
		rs_one=$1 rs_stat=
		# A name may hold newlines and parentheses: read all of it and cut at the last one (proc(5)).
		while IFS= read -r rs_line || [ -n "$rs_line" ]; do
			rs_stat="$rs_stat $rs_line"
		done <"/proc/$1/stat"
		# shellcheck disable=SC2086
		set -- ${rs_stat##*") "}
		[ $# -ge 20 ] || return 1
		rs_parent=$2 rs_group=$3 rs_birth=${20} rs_run=$1
		case $1 in
		# The kernel holds a parent until its child has become another program (vfork(2)), as shells are for each command,
		# and it takes STOP only after that; a child that is stopped never gets there. So it is as good as stopped.
		D) ! rs_pending "$rs_one" 19 || rs_run=T ;;
		Z) [ "${18}" -le 1 ] || rs_thread "$rs_one" "$2" "$3" "${20}" ;;
		esac
	else
		# shellcheck disable=SC2046
		set -- $(LC_ALL=C TZ=UTC0 ps -o stat= -o ppid= -o pgid= -o lstart= -p "$1")
		[ $# -eq 8 ] || return 1
		rs_run=${1%"${1#?}"} rs_parent=$2 rs_group=$3 rs_birth=$4_$5_$6_$7_$8
	fi
} 2>/dev/null

# rs_thread PID PARENT GROUP BIRTH : the first thread of that process has exited while others run on: takes the state of
# one of those.
rs_thread() {
	for rs_task in "/proc/$1/task"/*; do
		[ "${rs_task##*/}" = "$1" ] || ! rs_process "$1/task/${rs_task##*/}" || break
	done
	rs_parent=$2 rs_group=$3 rs_birth=$4
}

# rs_is_job PID BIRTH : in a job's directory, succeeds while that process, the job's first one, has not ended. /proc may
# hide it from its own user (hidepid, when it can't be dumped), but not from who asks its parent, the supervisor: that has
# reaped what is not among its children. Where the supervisor has gone too, whatever has the number counts as the job.
rs_is_job() {
	if rs_process "$1"; then
		[ "$rs_birth" = "$2" ] && [ "$rs_run" != Z ] && [ "$rs_run" != X ]
		return
	fi
	# A visible process 1 says that nothing is hidden.
	[ "$rs_system" = Linux ] && { [ -e "/proc/$1" ] || [ ! -e /proc/1 ]; } || return 1
	rs_children=
	if rs_is_supervised && [ -r "/proc/$rs_owner/task/$rs_owner/children" ]; then
		# No line end follows it.
		read -r rs_children <"/proc/$rs_owner/task/$rs_owner/children"
		case " $rs_children " in
		*" $1 "*) ;;
		*) return 1 ;;
		esac
	else
		rs_why=$(LC_ALL=C && kill -0 "$1" 2>&1) || case $rs_why in
		# Permitted, permission.
		*ermi*) ;;
		*) return 1 ;;
		esac
	fi
	rs_run=R rs_group=$1 rs_birth=$2
} 2>/dev/null

# rs_is_supervised : in a job's directory, succeeds while the job's supervisor, rs_owner, is there.
rs_is_supervised() {
	[ -O supervisor ] && read -r rs_owner rs_owner_birth rs_owner_boot <supervisor && [ "$rs_owner_boot" = "$rs_boot" ] &&
		rs_process "$rs_owner" && [ "$rs_birth" = "$rs_owner_birth" ] && [ "$rs_run" != Z ] && [ "$rs_run" != X ]
} 2>/dev/null

# rs_lives PID BIRTH : succeeds when that very process is there and has not ended.
rs_lives() {
	rs_process "$1" && [ "$rs_birth" = "$2" ] && [ "$rs_run" != Z ] && [ "$rs_run" != X ]
}

# rs_hold PID : keeps hold of the process that has this number now, whatever may have it later, until the next one is held.
# Elsewhere than on Linux nothing is held.
rs_held=
rs_hold() {
	rs_held=
	[ "$rs_system" != Linux ] || ! command exec 9<"/proc/$1" || rs_held=$1
} 2>/dev/null

# rs_holds PID : succeeds when the process that is held under that number is there and has not ended; to be asked after
# rs_process has told which one it is. Where it fails, that tells nothing. A shell reads a file byte by byte, so this costs
# a hundredth of rs_process: the directory that was opened never becomes another process's, and what has ended has no
# program (proc(5)).
rs_holds() {
	[ "$rs_held" = "$1" ] && [ -e /proc/self/fd/9/exe ]
}

# rs_pending PID NUMBER : succeeds while that signal (or any, with `all`) waits for the process to take it, and sets rs_doing
# to the process's state. For the numbers that a shell's arithmetic holds on any machine; elsewhere than on Linux there is
# no telling.
rs_pending() {
	case $2 in
	all) rs_bits=0x7fffffff ;;
	[1-9] | [12][0-9] | 3[01]) rs_bits=$((1 << ($2 - 1))) ;;
	*) return 1 ;;
	esac
	[ "$rs_system" = Linux ] && [ -r "/proc/$1/status" ] || return 1
	rs_waits=1
	# To its end: of a file whose process ends meanwhile, bash would give the rest to the next read of any other file.
	while read -r rs_key rs_mask; do
		case $rs_key in
		State:) rs_doing=${rs_mask%% *} ;;
		SigPnd: | ShdPnd:) [ $((0x${rs_mask#????????} & rs_bits)) -eq 0 ] || rs_waits=0 ;;
		esac
	done <"/proc/$1/status"
	return "$rs_waits"
} 2>/dev/null

# rs_self : sets rs_me to this shell's own number, rs_me_birth to the time it started at. In a subshell $$ is its parent's.
rs_self() {
	if [ "$rs_system" = Linux ]; then
		rs_process self
		rs_me=${rs_stat# }
		rs_me=${rs_me%% *}
	else
		rs_me=$(exec sh -c 'echo $PPID')
		rs_process "$rs_me"
	fi
	rs_me_birth=$rs_birth
}
