# Owns one job: runs it as its foreground child, in a session of its own, and records its end.
# Given by the client: rs_input, rs_output and rs_errors, the job's standard files, and rs_beside, functions that start
# background processes. Those in rs_watchdogs end with the job.
# $1: how to make a session; $2 to $9 are passed to the job: system, boot, machine, node, umask, home directory,
# starting directory, time of the start. ${10}: the time of the boot, or nothing (environ.sh).

# rs_nap HUNDREDTHS : sleeps, even if a trap cuts a wait short. Fails if the sleep was killed or can't start.
rs_nap() {
	rs_time=$(($1 / 100))
	[ $(($1 % 100)) -eq 0 ] || rs_time=$rs_time.$(($1 / 10 % 10))$(($1 % 10))
	# By `command`, as a shell that can't fork ends otherwise.
	command eval 'sleep "$rs_time" 2>/dev/null &' || return 127
	rs_slept=127
	while kill -0 $!; do
		wait $!
		rs_slept=$?
	done 2>/dev/null
	return "$rs_slept"
}

# rs_clock : sets rs_now to hundredths of a second, monotonic if the host has such a clock.
rs_clock() {
	if [ -r /proc/uptime ]; then
		read -r rs_now rs_rest </proc/uptime
		rs_now=${rs_now%.*}$((1${rs_now#*.} / 10 % 10))$((1${rs_now#*.} % 10))
	else
		rs_now=$(date +%s)00
	fi
}

# rs_pause HUNDREDTHS : as rs_nap, but sleeps again after a sleep that was killed or could not start.
rs_pause() {
	rs_clock
	rs_over=$((rs_now + $1)) rs_left=$1
	until rs_nap "$rs_left"; do
		rs_clock
		# In whole seconds, in case sleep(1) takes no fractions.
		rs_left=$(((rs_over - rs_now + 99) / 100 * 100))
		[ "$rs_left" -gt 0 ] || break
	done
}

# rs_beside_job FUNCTION : runs the function in a process that ends with the job. Only KILL and rs_dismiss end it.
rs_beside_job() {
	(
		rs_clean
		# $! may still be an earlier background process, which is not a child of this one.
		rs_before=$!
		trap '[ "$!" = "$rs_before" ] || kill -KILL $!; exit' ALRM
		trap : HUP INT QUIT PIPE TERM USR1 USR2
		true >"$1"
		"$1"
	) </dev/null >/dev/null 2>&1 5>&- 4>&- 3>&- &
	rs_watchdogs="$rs_watchdogs $1:$!"
}

# rs_dismiss : ends these processes and their sleeps. Repeats, since a shell can lose a signal while it is being forked.
# A process that has created its file has set its traps. One that has ended before has left its number to others.
rs_dismiss() {
	for rs_one in $rs_watchdogs; do
		while rs_process "${rs_one#*:}" && [ "$rs_parent" = $$ ] && kill -ALRM "${rs_one#*:}"; do
			if [ -e "${rs_one%:*}" ]; then
				wait "${rs_one#*:}"
			else
				sleep 0.01 || sleep 1
			fi
		done
	done 2>/dev/null
}

# rs_know_job FILE : waits until the job has started, while FILE exists, and sets rs_pid, rs_pgid and rs_born. Later,
# somebody may remove the files.
rs_know_job() {
	until [ -s pid ] || [ ! -e "$1" ]; do
		rs_nap 1 || rs_nap 100
	done
	read -r rs_pid rs_pgid rs_born rs_rest <pid
}

# rs_end_job FILE REASON : after rs_know_job, sends TERM to the job's group, CONT so that a stopped job can act on it, and
# KILL 10 s later. Records the reason by renaming the file, since a full disk has no room for a new one.
rs_end_job() {
	rs_is_job "$rs_pid" "$rs_born" && { mv -f "$1" "$2" || [ ! -d "$PWD" ]; } || return
	if kill -TERM "-$rs_pgid"; then
		kill -CONT "-$rs_pgid"
		rs_pause 1000
		rs_is_job "$rs_pid" "$rs_born" || return
		kill -KILL "-$rs_pgid"
		rs_pause 100
	fi
	# The job runs as another user now.
	! rs_is_job "$rs_pid" "$rs_born" || mv -f "$2" unkept
}

# Do not keep the starting shell's standard error open.
exec 2>/dev/null
rs_how=$1 rs_system=$2 rs_boot=$3 rs_began=$9 rs_epoch=${10}
shift
# Caught, not ignored: a stray signal must not end the supervisor, and the job must have every signal at its default.
trap : HUP INT QUIT PIPE ALRM TERM USR1 USR2
# In a subshell if the job inherits the environment of this shell.
if [ -s become ]; then
	rs_process $$ && printf '%s %s %s\n' $$ "$rs_birth" "$rs_boot" >supervisor
else
	(rs_clean && rs_process $$ && printf '%s %s %s\n' $$ "$rs_birth" "$rs_boot" >supervisor)
fi
# A line in the FIFO tells its reader that the job has begun; end of file, that the job is over. Opened for reading and
# writing, since that does not wait for a reader.
[ ! -p ended ] || exec 5<>ended

rs_watchdogs=
for rs_part in $rs_beside; do
	"$rs_part"
done

# 5>&- keeps the FIFO from the job; 3 and 4 are both ends of its pipes (ring.sh). The job's standard error is 7 here,
# since a shell itself reports a child that a signal has ended (`Terminated`). In parentheses, since some shells
# redirect themselves while a command runs.
case $rs_how in
setsid) (exec setsid /bin/sh ./job "$@" 2>&7 7>&- 5>&- 4>&- 3>&-) ;;
perl) (exec perl -MPOSIX -e 'POSIX::setsid(); exec @ARGV' /bin/sh ./job "$@" 2>&7 7>&- 5>&- 4>&- 3>&-) ;;
python3) (exec python3 -c 'import os, signal, sys
os.setsid()
[signal.signal(getattr(signal, name), signal.SIG_DFL) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)]
os.execv(sys.argv[1], sys.argv[1:])' /bin/sh ./job "$@" 2>&7 7>&- 5>&- 4>&- 3>&-) ;;
monitor)
	set -m
	/bin/sh ./job "$@" 2>&7 7>&- 5>&- 4>&- 3>&- &
	# A trap cuts a wait short, and so does a stop in bash.
	until
		wait $!
		rs_code=$?
		! kill -0 $!
	do
		sleep 0.05 || sleep 1
	done
	set +m
	(exit "$rs_code")
	;;
esac <"$rs_input" >>"$rs_output" 7>>"$rs_errors" 2>/dev/null
rs_code=$?
# Record it at once, with builtins only: the job has been reaped, so its number is free. ksh gives 256+n for signal n.
[ "$rs_code" -lt 256 ] || rs_code=$((rs_code - 128))
rs_clean
echo "$rs_code" 1<>status

if [ ! -s pid ]; then
	rs_why=$(head -c 300 err)
	rs_why="start it ended with status $rs_code before it ran: ${rs_why:-is a limit reached there (see ulimit -a)?}"
	[ -s refused ] || printf '%s\n' "$rs_why" >refused
	printf 'refused %s\n' "$rs_why" >&5
	rs_dismiss
	exit
fi
rs_time
# The clock may have been set since the start.
[ "$rs_now" -le $((rs_began + 60)) ] || { rs_epoch='' && rs_time; }
rs_why=
[ ! -e untied ] || rs_why=tether
[ ! -e expired ] || rs_why=timeout
# Written over the blanks from the start. If the disk is full nevertheless, try again.
until printf '%s %s %s\n' "$rs_code" "$rs_now" "$rs_why" 1<>status; do
	[ -d "$PWD" ] || exit
	sleep 5
done
exec 5>&-
[ ! -p bell ] || echo over 1<>bell
[ -z "${rs_ring-}" ] || rs_let_go
rs_dismiss
