# Owns one job: runs it as its foreground child, in a session of the job's own, and records its end.
# Given by the client: rs_input, rs_output and rs_errors, the job's standard files, and rs_beside, what is to run beside
# it: functions that leave a background process behind. Those that rs_watchdogs names end with the job.
# $1: how to make a session; $2 to $7 are the job's: system, boot, machine, node, umask, home directory.

# rs_nap HUNDREDTHS : sleeps, whatever signals come (a trap cuts a wait short). Fails when it was not that long.
rs_nap() {
	rs_time=$(($1 / 100))
	[ $(($1 % 100)) -eq 0 ] || rs_time=$rs_time.$(($1 / 10 % 10))$(($1 % 10))
	sleep "$rs_time" 2>/dev/null &
	rs_slept=127
	while kill -0 $!; do
		wait $!
		rs_slept=$?
	done 2>/dev/null
	return "$rs_slept"
}

# rs_clock : sets rs_now to a time in hundredths of a second, where the host has one that nobody sets.
rs_clock() {
	if [ -r /proc/uptime ]; then
		read -r rs_now rs_rest </proc/uptime
		rs_now=${rs_now%.*}$((1${rs_now#*.} / 10 % 10))$((1${rs_now#*.} % 10))
	else
		rs_now=$(date +%s)00
	fi
}

# rs_pause HUNDREDTHS : the same, also where a sleep is killed or can't be started: that is not time that has passed.
rs_pause() {
	rs_clock
	rs_over=$((rs_now + $1)) rs_left=$1
	until rs_nap "$rs_left"; do
		rs_clock
		# In whole seconds, in case this sleep takes no others.
		rs_left=$(((rs_over - rs_now + 99) / 100 * 100))
		[ "$rs_left" -gt 0 ] || break
	done
}

# rs_beside_job FUNCTION : runs it in a process that ends with the job: nothing but KILL and rs_dismiss ends it.
rs_beside_job() {
	(
		rs_clean
		# What was started before is not this one's.
		rs_before=$!
		trap '[ "$!" = "$rs_before" ] || kill -KILL $!; exit' ALRM
		trap : HUP INT QUIT PIPE TERM USR1 USR2
		"$1"
	) </dev/null >/dev/null 2>&1 5>&- &
	rs_watchdogs="$rs_watchdogs $!"
}

# rs_dismiss : ends them and their sleeps. As often as it takes, since a shell can lose a signal that comes while it is
# being forked.
rs_dismiss() {
	for rs_one in $rs_watchdogs; do
		while kill -ALRM "$rs_one"; do
			sleep 0.01 || sleep 1
		done
	done 2>/dev/null
}

# rs_end_job FILE REASON : TERM to the job's group, CONT so that a stopped job can die of it, KILL 10 s later. The file is
# renamed to say why: a disk that is full has no room for a new one.
rs_end_job() {
	until [ -s pid ] || [ ! -e "$1" ]; do
		rs_nap 1 || rs_nap 100
	done
	read -r rs_pid rs_pgid rs_born rs_rest <pid
	rs_is_job "$rs_pid" "$rs_born" && mv -f "$1" "$2" || return
	if kill -TERM "-$rs_pgid"; then
		kill -CONT "-$rs_pgid"
		rs_pause 1000
		rs_is_job "$rs_pid" "$rs_born" || return
		kill -KILL "-$rs_pgid"
		rs_pause 100
	fi
	# It has become another user.
	! rs_is_job "$rs_pid" "$rs_born" || mv -f "$2" unkept
}

# Where it was started from hears no more of it.
exec 2>/dev/null
rs_how=$1 rs_system=$2 rs_boot=$3
shift
# Caught, not ignored: a stray signal must not end the supervisor, and the job must have every signal at its default.
trap : HUP INT QUIT PIPE ALRM TERM USR1 USR2
(
	rs_clean
	rs_process $$ && printf '%s %s %s\n' $$ "$rs_birth" "$rs_boot" >supervisor
)
# A line in it tells whoever reads it that the job has begun, and its end of file that the job is over. Opened for both,
# since that does not wait for a reader.
[ ! -p ended ] || exec 5<>ended

rs_watchdogs=
for rs_part in $rs_beside; do
	"$rs_part"
done

# With 5>&- behind each, since the job must not hold it. What a shell says of a child that a signal has ended
# (`Terminated`) goes to its standard error: that is not the job's, which is 7 here. The parentheses, since some shells
# redirect themselves for as long as a command runs.
case $rs_how in
setsid) (exec setsid /bin/sh ./job "$@" 2>&7 7>&- 5>&-) ;;
perl) (exec perl -MPOSIX -e 'POSIX::setsid(); exec @ARGV' /bin/sh ./job "$@" 2>&7 7>&- 5>&-) ;;
python3) (exec python3 -c 'import os, signal, sys
os.setsid()
[signal.signal(getattr(signal, name), signal.SIG_DFL) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)]
os.execv(sys.argv[1], sys.argv[1:])' /bin/sh ./job "$@" 2>&7 7>&- 5>&-) ;;
monitor)
	set -m
	/bin/sh ./job "$@" 2>&7 7>&- 5>&- &
	# A trap cuts a wait short.
	until
		wait $!
		rs_code=$?
		! kill -0 $!
	do :; done
	set +m
	(exit "$rs_code")
	;;
esac <"$rs_input" >>"$rs_output" 7>>"$rs_errors" 2>/dev/null
rs_code=$?
# At once and by builtins alone: the job has been reaped, so its number is free. ksh gives 256+n for a signal n.
[ "$rs_code" -lt 256 ] || rs_code=$((rs_code - 128))
rs_clean
echo "$rs_code" 1<>status.new
rs_dismiss

if [ ! -s pid ]; then
	rs_why="start it ended with status $rs_code before it ran: $(head -c 300 err)"
	[ -s refused ] || printf '%s\n' "$rs_why" >refused
	printf 'refused %s\n' "$rs_why" >&5
	exit
fi
rs_why=
[ ! -e untied ] || rs_why=tether
[ ! -e expired ] || rs_why=timeout
# Over the blanks that were set aside at the start; a disk that is full all the same gets more time.
until printf '%s %s %s\n' "$rs_code" "$(date +%s)" "$rs_why" 1<>status.new && mv -f status.new status; do
	[ -d "$PWD" ] || exit
	sleep 5
done
exec 5>&-
rm -f job supervise become began
