# One lock per job. Only its holder may signal the job.
#
# The lock is the last of the files lock/N. Its first line names the holder, by process number and start time. `free`
# means that the holder has sent its signal, `clean` that the job has no pending signal left. Contenders append their
# names to the next file, and the first line wins, so a lock is never taken without naming its holder. The lock of a
# dead holder is free. A pooled shell holds locks for its scripts: one that fails ends the shell, so it leaves no lock
# behind. Without contention only builtins run.

# rs_create FILE : creates a file that must not exist. Of several callers, one succeeds.
rs_create() {
	set -C
	true >"$1"
	set -- $?
	set +C
	return "$1"
} 2>/dev/null

# rs_nap : sleeps, longer as rs_waited grows, and adds the time in milliseconds to rs_waited.
rs_nap() {
	case $rs_waited in
	? | ??) rs_time=005 ;;
	???) rs_time=025 ;;
	*) rs_time=100 ;;
	esac
	sleep "0.$rs_time" 2>/dev/null || sleep 1
	rs_waited=$((rs_waited + 1$rs_time - 1000))
}

# rs_read_lock : sets rs_last_lock to the last file (or, if there is none, to the number before the first one), and
# rs_holder, rs_free and rs_clean from its content.
rs_read_lock() {
	for rs_last_lock in lock/*; do :; done
	rs_holder='' rs_free='' rs_clean=
	if [ ! -e "$rs_last_lock" ]; then
		rs_last_lock=lock/100000000 rs_holder=none rs_clean=1
		return
	fi
	while read -r rs_line; do
		case $rs_line in
		free) rs_free=1 ;;
		clean) rs_clean=1 ;;
		*) rs_holder=${rs_holder:-$rs_line} ;;
		esac
	done <"$rs_last_lock"
}

# rs_lock MILLISECONDS : in a job's directory, waits up to that long for the job's lock. Sets rs_locked to its file
# (empty if none can be created, as on a full disk), and rs_taken if the job has no pending signal.
rs_lock() {
	[ -n "$rs_me" ] || rs_self
	rs_waited=0
	while :; do
		rs_locked='' rs_taken=
		rs_read_lock
		if [ -z "$rs_free" ] && [ "$rs_holder" != "$rs_me $rs_me_birth" ] &&
			rs_lives "${rs_holder% *}" "${rs_holder#* }"; then
			[ "$rs_waited" -lt "$1" ] || return 1
			rs_nap
			continue
		fi
		rs_taken=$rs_clean
		# An empty file is left by a contender that died before it wrote its name.
		[ -z "$rs_holder" ] || rs_last_lock=lock/$((${rs_last_lock#lock/} + 1))
		rs_locked=$rs_last_lock
		echo "$rs_me $rs_me_birth" >>"$rs_locked" || rs_locked=
		[ -n "$rs_locked" ] || return 0
		rs_read_lock
		# A later file means that this one had been used and removed before it was created again.
		[ "$rs_holder $rs_last_lock" != "$rs_me $rs_me_birth $rs_locked" ] || return 0
	done
} 2>/dev/null

# rs_await PID NUMBER LOOKS : with the lock held, waits until an earlier signal of that number is no longer pending,
# since two pending ones merge. Checks up to LOOKS times while the process is runnable, and fewer times if it sleeps or
# is stopped: then it may never take the signal.
rs_await() {
	rs_waited=0
	[ -n "$rs_taken" ] || while rs_pending "$1" "$2"; do
		[ "$rs_waited" -lt 100 ] || { [ "$rs_doing" = R ] && [ "$rs_waited" -lt "$3" ]; } || break
		sleep 0.002 2>/dev/null || break
		rs_waited=$((rs_waited + 1))
	done
}

# rs_unlock : releases the lock.
rs_unlock() {
	[ -z "$rs_locked" ] || echo free >>"$rs_locked"
} 2>/dev/null

# rs_settle PID FILE : notes in a released lock when the process has no pending signal left. Also removes old lock
# files, but not the last few: a listing may miss files that are created meanwhile.
rs_settle() {
	for rs_try in 1 2 3 4 5 6 7 8; do
		if ! rs_pending "$1" all; then
			echo clean >>"$2"
			break
		fi
		# Only a runnable process is about to take it.
		[ "$rs_doing" = R ] || break
		sleep 0.01 || break
	done
	set -- lock/*
	[ $# -gt 24 ] || return 0
	rs_old=
	while [ $# -gt 8 ]; do
		rs_old="$rs_old $1"
		shift
	done
	# shellcheck disable=SC2086
	rm -f $rs_old
} 2>/dev/null
