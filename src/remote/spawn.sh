# Starts a job: makes its directory, writes what it needs there, leaves a supervisor behind and says how it went.
# Given by the client: rs_id rs_meta rs_cookie rs_job rs_supervise, rs_timeout (seconds, or empty), rs_size (how many bytes
# of input the job gets; empty for none), and rs_more (`next` where stream.sh comes behind; else empty). Names begin with rs_, here and in what the job comes from, since an assignment to a variable
# that the login exports would change the job's environment.

# rs_refuse KIND TEXT : nothing was started, and nothing is left behind.
rs_refuse() {
	if [ -n "$rs_made" ]; then
		cd /
		[ -z "$rs_aside" ] || wait "$rs_aside"
		# Where nothing tells of its supervisor's end, that may have a last word to write.
		rm -rf "$rs_made" || { sleep 1 && rm -rf "$rs_made"; }
	fi 2>/dev/null
	rs_say refused "$(printf '%s' "$*" | tr '\n' ' ')"
	rs_end
}

rs_made='' rs_aside=''
rs_mask=$(umask)
rs_home=${HOME-}
umask 077
unset CDPATH
case $rs_base in
*"$rs_newline"*) rs_refuse home "the path of the home directory holds a line break" ;;
/*) ;;
*) rs_refuse home "HOME is not set to an absolute path" ;;
esac
[ -d "$rs_base" ] || rs_why=$(mkdir -p "$rs_base" 2>&1) || rs_refuse home "$rs_why"
[ -O "$rs_base" ] || rs_refuse home "$rs_base belongs to another user"
# Two processes side by side. What could not be made is made again for the sake of what is said about it.
mkdir "$rs_base/$rs_id" 2>/dev/null &
rs_look=$(ls -ldn "$rs_base/." 2>/dev/null)
wait "$!" || rs_why=$(mkdir "$rs_base/$rs_id" 2>&1) || rs_refuse home "$rs_why"
case $rs_look in
?????w* | ????????w*)
	rmdir "$rs_base/$rs_id"
	rs_refuse home "other users can write to $rs_base"
	;;
esac
rs_made=$rs_base/$rs_id
cd -P "$rs_made" || rs_refuse home "$rs_made can't be entered"
# Beside all that follows: the lock for signals has its place, and the job a time at which it began.
{
	mkdir lock
	date +%s >began
} 2>/dev/null &
rs_aside=$!

# The end of the job goes over the blanks of status.new, so that a disk that is full by then can't lose it.
{
	printf '%s\n' "$rs_meta" >meta &&
		printf '%s\n' "$rs_cookie" >cookie &&
		printf '%s\n' "$rs_supervise" >supervise &&
		printf '%s\n' "$rs_job" >job &&
		printf '%s %s\n' "$rs_boot" "$rs_node" >made &&
		printf '%32s\n' '' >status.new &&
		{ [ -z "$rs_timeout" ] || printf '%s\n' "$rs_timeout" >limit; } &&
		: >out && : >err
} 2>trouble || rs_refuse disk "$(head -c 300 trouble)"
# All of the input is here before the job starts. It comes when it is asked for: the shell would take it for its own.
if [ -n "$rs_size" ]; then
	rs_say input
	rs_flush
	rs_why=$(head -c "$rs_size" 2>&1 >input) || rs_refuse disk "$rs_why"
	[ "$(($(wc -c <input)))" -eq "$rs_size" ] || rs_refuse disk "not all of its input came"
fi
# A line in it will say that the job has begun, and the end of the file that there is no supervisor any more. Korn shells
# don't pass on what they have opened, and keep copies of it; so there the files are looked at.
rs_tells=
if mkfifo ended 2>/dev/null && [ -z "${KSH_VERSION-}" ]; then
	rs_tells=1
	# Open for writing until the supervisor holds it: the job may be over before this shell looks.
	exec 5<>ended
	exec 6<ended
fi

# A session of one's own without `&`, which would leave the job with INT and QUIT ignored (POSIX, 2.11).
if command -v setsid >/dev/null 2>&1; then
	rs_how=setsid
elif command -v perl >/dev/null 2>&1 && perl -MPOSIX -e 1 2>/dev/null; then
	rs_how=perl
elif command -v python3 >/dev/null 2>&1; then
	rs_how=python3
# Without a terminal some shells say no more than a warning and go on without; in a subshell not even that.
elif { set -m; } 2>/dev/null && case $- in *m*) ;; *) false ;; esac; then
	set +m
	rs_how=monitor
else
	rs_refuse session "it has no setsid, perl or python3, and its /bin/sh has no job control; one of them is needed"
fi

# Where logind ends what a login leaves behind, a scope of the user's own outlives it.
rs_scope=
if [ -n "${XDG_SESSION_ID-}" ] && command -v busctl >/dev/null 2>&1; then
	case $(busctl get-property org.freedesktop.login1 /org/freedesktop/login1 \
		org.freedesktop.login1.Manager KillUserProcesses 2>/dev/null) in
	*true)
		if systemd-run --user --scope --quiet -- true </dev/null >/dev/null 2>&1; then
			rs_scope='systemd-run --user --scope --quiet --'
		else
			rs_say warning logind
		fi
		;;
	esac
fi

set -- ./supervise "$rs_how" "$rs_system" "$rs_boot" "$rs_node" "$rs_mask" "$rs_home"
# shellcheck disable=SC2086,SC2016
case $rs_how in
# The second setsid leads a group by then, so it forks.
setsid) $rs_scope setsid setsid /bin/sh "$@" ;;
perl) $rs_scope perl -MPOSIX -e 'defined($_ = fork) or die "fork: $!"; exit 0 if $_; POSIX::setsid(); exec @ARGV' \
	/bin/sh "$@" ;;
python3) $rs_scope python3 -c 'import os, sys
if os.fork(): os._exit(0)
os.setsid()
os.execv(sys.argv[1], sys.argv[1:])' /bin/sh "$@" ;;
monitor)
	set -m
	$rs_scope /bin/sh "$@" &
	set +m
	;;
esac </dev/null >/dev/null 2>trouble 6<&-

rs_tries=0
if [ -n "$rs_tells" ]; then
	exec 5>&-
	read -r rs_why <&6 || rs_tries=10000
	exec 6<&-
fi
until [ -s pid ] || [ -s refused ]; do
	rs_tries=$((rs_tries + 1))
	[ "$rs_tries" -ne 300 ] || rs_flush
	[ "$rs_tries" -le 10000 ] || rs_refuse start "its supervisor did not start: $(head -c 300 trouble)"
	sleep 0.002 2>/dev/null || sleep 1
done
if [ -s refused ]; then
	read -r rs_why <refused
	rs_refuse "$rs_why"
fi
read -r rs_why <pid
# The place of the lock that whoever signals the job takes has to be there by now.
wait "$rs_aside"
rs_say started "$rs_why"
rs_say directory "$rs_made"
[ -n "$rs_more" ] || rs_end
rs_mark "${rs_more:-end}"
