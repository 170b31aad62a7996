# Owns one job: runs it as its foreground child, in a session of the job's own, and records its end.
# Given by the client: rs_input, rs_output and rs_errors, the job's standard files, and rs_beside, what is to run beside
# it: functions that leave a background process behind, and add to rs_watchdogs what is to end with the job; watch.sh
# sees to that itself.
# $1: how to make a session; $2 to $6 are the job's: system, boot, node, umask, home directory.

rs_how=$1 rs_system=$2 rs_boot=$3
shift
# Caught, not ignored: a stray signal must not end the supervisor, and the job must have every signal at its default.
trap : HUP INT QUIT PIPE ALRM TERM USR1 USR2
rs_process $$ && printf '%s %s %s\n' $$ "$rs_birth" "$rs_boot" >supervisor
# A line in it tells whoever reads it that the job has begun, and its end of file that the job is over. Opened for both,
# since that does not wait for a reader.
[ ! -p ended ] || exec 5<>ended

rs_watchdogs='' rs_watchdog=''
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
# shellcheck disable=SC2086
[ -z "$rs_watchdogs" ] || kill $rs_watchdogs 2>/dev/null

if [ ! -s pid ]; then
	[ -z "$rs_watchdog" ] || rs_end_watch
	[ -s refused ] || printf 'start %s\n' "it ended with status $rs_code before it ran: $(head -c 300 err)" >refused
	exit
fi
# ksh gives 256+n for a child that signal n ended.
[ "$rs_code" -lt 256 ] || rs_code=$((rs_code - 128))
# Over the blanks that were set aside at the start; a disk that is full all the same gets more time.
rs_why=
[ ! -e expired ] || rs_why=' timeout'
until printf '%s %s%s\n' "$rs_code" "$(date +%s)" "$rs_why" 1<>status.new && mv -f status.new status; do
	sleep 5
done
exec 5>&-
rm -f job supervise began
[ -z "$rs_watchdog" ] || rs_end_watch
