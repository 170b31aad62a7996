# Tells one process from every other that has had, or will have, its number.

# rs_process PID : sets rs_run to the process's state letter, rs_parent to its parent, rs_group to its process group and
# rs_birth to the time it started at, in the host's own unit. Fails when there is no such process. One that the kernel holds
# until its child has become another program (vfork(2)), as shells are for each command, takes STOP only after that; a child
# that is stopped never gets there. So that is as good as stopped.
rs_process() {
	if [ "$rs_system" = Linux ]; then
		[ -r "/proc/$1/stat" ] || return 1
		rs_one=$1 rs_stat=
		# A name may hold newlines and parentheses: read all of it and cut at the last one (proc(5)).
		while IFS= read -r rs_line || [ -n "$rs_line" ]; do
			rs_stat="$rs_stat $rs_line"
		done <"/proc/$1/stat"
		# shellcheck disable=SC2086
		set -- ${rs_stat##*) }
		[ $# -ge 20 ] || return 1
		rs_parent=$2 rs_group=$3 rs_birth=${20} rs_run=$1
		[ "$rs_run" != D ] || ! rs_pending "$rs_one" 19 || rs_run=T
	else
		# shellcheck disable=SC2046
		set -- $(LC_ALL=C TZ=UTC0 ps -o stat= -o ppid= -o pgid= -o lstart= -p "$1")
		[ $# -eq 8 ] || return 1
		rs_run=${1%"${1#?}"} rs_parent=$2 rs_group=$3 rs_birth=$4_$5_$6_$7_$8
	fi
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
