# One lock for each job: only its holder signals the job.
#
# The lock is the last of the files lock/N. The first line in it names the holder, by process number and start time; `free`
# says that the holder has sent its signal, `clean` that no signal waits for the job to take it any more. Contenders append
# their names to the next file, and the first line wins: a file is never without an owner and yet taken. The lock of a
# holder that is gone is free. Without contention only builtins run.

# rs_create FILE : makes a file that is not there yet. Of several who try, one succeeds.
rs_create() {
	set -C
	true >"$1"
	set -- $?
	set +C
	return "$1"
} 2>/dev/null

# rs_nap : sleeps, the longer the more rs_waited says, and adds the milliseconds to that.
rs_nap() {
	case $rs_waited in
	? | ??) rs_time=005 ;;
	???) rs_time=025 ;;
	*) rs_time=100 ;;
	esac
	sleep "0.$rs_time" 2>/dev/null || sleep 1
	rs_waited=$((rs_waited + 1$rs_time - 1000))
}

# rs_read_lock : sets rs_last_lock to the last file (to the one before the first if there is none), and rs_holder, rs_free
# and rs_clean to what is in it.
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

# rs_lock MILLISECONDS : waits up to that long for the lock of the job whose directory this is. Sets rs_locked to its file (to
# nothing if none can be made, as on a full disk), and rs_taken if the job has taken all signals.
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
		# One that died before it wrote its name has left an empty file.
		[ -z "$rs_holder" ] || rs_last_lock=lock/$((${rs_last_lock#lock/} + 1))
		rs_locked=$rs_last_lock
		echo "$rs_me $rs_me_birth" >>"$rs_locked" || rs_locked=
		[ -n "$rs_locked" ] || return 0
		rs_read_lock
		# If there is another one by now, this one had its time, and was swept away before it was made again.
		[ "$rs_holder $rs_last_lock" != "$rs_me $rs_me_birth $rs_locked" ] || return 0
	done
} 2>/dev/null

# rs_await PID NUMBER LOOKS : with the lock, waits until the process has taken an earlier signal of that number, since two
# that come together count as one. Looks up to LOOKS times if the process only waits for a processor; gives up earlier if
# it sleeps or is stopped, since it may never take the signal.
rs_await() {
	rs_waited=0
	[ -n "$rs_taken" ] || while rs_pending "$1" "$2"; do
		[ "$rs_waited" -lt 100 ] || { [ "$rs_doing" = R ] && [ "$rs_waited" -lt "$3" ]; } || break
		sleep 0.002 2>/dev/null || break
		rs_waited=$((rs_waited + 1))
	done
}

# rs_unlock : gives the lock back.
rs_unlock() {
	[ -z "$rs_locked" ] || echo free >>"$rs_locked"
} 2>/dev/null

# rs_settle PID FILE : looks whether the process has taken all signals, and if so notes it in the lock that was given back.
# Also removes old files, but not the last few: a look at a directory may miss what is made meanwhile.
rs_settle() {
	for rs_try in 1 2 3 4 5 6 7 8; do
		if ! rs_pending "$1" all; then
			echo clean >>"$2"
			break
		fi
		# A process that waits for a processor is about to take it.
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
