# Identifies processes by more than their number, which may be reused.

# rs_process PID : sets rs_run to the state letter of the process, rs_parent to its parent, rs_group to its process
# group and rs_birth to its start time in the host's unit. Fails if no such process is visible.
rs_process() {
	if [ "$rs_system" = Linux ]; then
		[ -r "/proc/$1/stat" ] || return 1
		rs_one=$1 rs_stat=
		# A name may contain newlines and parentheses: read all of it and cut at the last one (proc(5)).
		while IFS= read -r rs_line || [ -n "$rs_line" ]; do
			rs_stat="$rs_stat $rs_line"
		done <"/proc/$1/stat"
		# shellcheck disable=SC2086
		set -- ${rs_stat##*") "}
		[ $# -ge 20 ] || return 1
		rs_parent=$2 rs_group=$3 rs_birth=${20} rs_run=$1
		case $1 in
		# A parent in vfork(2), which shells use for each command, takes STOP only after its child has called exec. A
		# stopped child never does, so such a parent counts as stopped.
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

# rs_thread PID PARENT GROUP BIRTH : for a process whose first thread has exited while others run: sets the state to
# that of another thread.
rs_thread() {
	for rs_task in "/proc/$1/task"/*; do
		[ "${rs_task##*/}" = "$1" ] || ! rs_process "$1/task/${rs_task##*/}" || break
	done
	rs_parent=$2 rs_group=$3 rs_birth=$4
}

# rs_is_job PID BIRTH : in a job's directory, succeeds while the job's first process, which has that number and start
# time, has not ended. /proc may hide a non-dumpable process from its own user (hidepid). The supervisor's list of
# children shows it until it is reaped. If the supervisor is gone too, any process with that number counts as the job.
rs_is_job() {
	if rs_process "$1"; then
		[ "$rs_birth" = "$2" ] && [ "$rs_run" != Z ] && [ "$rs_run" != X ]
		return
	fi
	# If process 1 is visible, nothing is hidden.
	[ "$rs_system" = Linux ] && { [ -e "/proc/$1" ] || [ ! -e /proc/1 ]; } || return 1
	rs_children=
	if rs_is_supervised && [ -r "/proc/$rs_owner/task/$rs_owner/children" ]; then
		# The file does not end in a newline, so read fails.
		read -r rs_children <"/proc/$rs_owner/task/$rs_owner/children"
		case " $rs_children " in
		*" $1 "*) ;;
		*) return 1 ;;
		esac
	else
		rs_why=$(LC_ALL=C && kill -0 "$1" 2>&1) || case $rs_why in
		# "not permitted" or "permission denied"
		*ermi*) ;;
		*) return 1 ;;
		esac
	fi
	rs_run=R rs_group=$1 rs_birth=$2
} 2>/dev/null

# rs_is_supervised : in a job's directory, succeeds while the job's supervisor runs, and sets rs_owner to its number.
rs_is_supervised() {
	[ -O supervisor ] && read -r rs_owner rs_owner_birth rs_owner_boot <supervisor && [ "$rs_owner_boot" = "$rs_boot" ] &&
		rs_process "$rs_owner" && [ "$rs_birth" = "$rs_owner_birth" ] && [ "$rs_run" != Z ] && [ "$rs_run" != X ]
} 2>/dev/null

# rs_lives PID BIRTH : succeeds if that process has not ended.
rs_lives() {
	rs_process "$1" && [ "$rs_birth" = "$2" ] && [ "$rs_run" != Z ] && [ "$rs_run" != X ]
}

# rs_hold PID : pins the process that has this number now, by its directory in /proc, until the next call. Linux only.
rs_held=
rs_hold() {
	rs_held=
	[ "$rs_system" != Linux ] || ! command exec 9<"/proc/$1" || rs_held=$1
} 2>/dev/null

# rs_holds PID : succeeds if the process pinned under that number has not ended. Call it after rs_process has identified
# it. Failure does not mean that it has ended. It costs a hundredth of rs_process, since a shell reads files byte by
# byte. It is safe because an open directory in /proc never becomes that of another process, and an ended process has no
# program there (proc(5)).
rs_holds() {
	[ "$rs_held" = "$1" ] && [ -e /proc/self/fd/9/exe ]
}

# rs_pending PID NUMBER : succeeds while that signal (`all`: any signal) is pending for the process, and sets rs_doing
# to the state of the process. Linux only, and only for numbers up to 31, which any shell's arithmetic can hold.
rs_pending() {
	case $2 in
	all) rs_bits=0x7fffffff ;;
	[1-9] | [12][0-9] | 3[01]) rs_bits=$((1 << ($2 - 1))) ;;
	*) return 1 ;;
	esac
	[ "$rs_system" = Linux ] && [ -r "/proc/$1/status" ] || return 1
	rs_waits=1
	# Read to the end: if the process ends meanwhile, bash would return the rest in the next read of another file.
	while read -r rs_key rs_mask; do
		case $rs_key in
		State:) rs_doing=${rs_mask%% *} ;;
		SigPnd: | ShdPnd:) [ $((0x${rs_mask#????????} & rs_bits)) -eq 0 ] || rs_waits=0 ;;
		esac
	done <"/proc/$1/status"
	return "$rs_waits"
} 2>/dev/null

# rs_is_stopped PID : after rs_process, succeeds if the process is stopped, or about to stop.
rs_is_stopped() {
	[ "$rs_run" = T ] || { [ "$rs_run" = R ] && rs_pending "$1" 19; }
}

# rs_self : sets rs_me to the number of this shell and rs_me_birth to its start time. In a subshell, $$ is the parent.
rs_me=''
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
