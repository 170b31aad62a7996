# Starts a job: creates its directory and files, detaches its supervisor and reports the result.
# Given by the client: rs_id rs_meta rs_cookie rs_job rs_supervise, rs_timeout (seconds, or empty), rs_size (the number
# of bytes of input, or empty), rs_given (the names of the job's own variables), rs_stays (not empty if the job starts
# in this shell's directory), rs_ring (ring.sh), rs_fifos (its FIFOs), and rs_more (`next` if stream.sh follows, or
# empty). All names begin with rs_: an assignment to a variable that the login exports would change the job's
# environment.

# rs_refuse KIND TEXT : reports that nothing was started, and removes what was created.
rs_refuse() {
	trap - EXIT
	if [ -n "$rs_made" ]; then
		cd /
		# The supervisor may still write a last file.
		rm -rf "$rs_made" || { sleep 1 && rm -rf "$rs_made"; }
	fi 2>/dev/null
	set -f
	# shellcheck disable=SC2048,SC2086
	set -- $*
	rs_say refused "$*"
	rs_end
}

# rs_give_up : runs when the shell dies, for example because it can't fork. Nothing in it needs a fork.
rs_give_up() {
	rs_say refused start "no more processes could be started there"
	rs_mark end
	cd / && exec rm -rf "${rs_made:-$rs_base/$rs_id}"
}

# rs_restore : writes rs_become, a function that executes a program in the restored environment (environ.sh), to a file.
rs_restore() {
	rs_restores || return
	# The remembered arguments may be about variables that the job sets itself.
	for rs_name in $rs_given; do
		case "$rs_words " in
		*"-u $rs_name "* | *"$rs_name="*) rs_words='' ;;
		esac
	done
	rs_remember
	if [ -z "$rs_reset" ] && rs_unsets; then
		# Saves starting env(1).
		printf 'rs_become() {\nunset%s\nexec "$@"\n}\n' "$rs_names" >become
	else
		printf 'rs_become() {\nexec /usr/bin/env%s%s "$@"\n}\n' "$rs_words" "$rs_reset" >become
	fi
} >/dev/null 2>&1

# rs_monitors : succeeds if `set -m` has an effect: some shells ignore it without a terminal.
rs_monitors() {
	sleep 1 &
	rs_process $! && [ "$rs_group" = $! ]
	set -- $?
	kill -KILL $!
	return "$1"
} >/dev/null 2>&1

# rs_detach ARG... : runs sh in a session of its own, as a process that is not a child of this shell.
# shellcheck disable=SC2086,SC2016
rs_detach() {
	case $rs_how in
	# With two setsids, the second one is a group leader, so it forks.
	setsid) $rs_scope $rs_setsid /bin/sh "$@" ;;
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
	esac
}

# rs_write : writes the job's files. The blanks in status will be overwritten when the job ends, so a full disk can't
# prevent recording the end.
rs_write() {
	printf '%s\n' "$rs_meta" >meta &&
		printf '%s\n' "$rs_cookie" >cookie &&
		printf '%s\n' "$rs_supervise" >supervise &&
		printf '%s\n' "$rs_job" >job &&
		printf '%s %s %s\n' "$rs_boot" "$rs_machine" "$rs_node" >made &&
		printf '%32s\n' '' >status &&
		{ [ -z "$rs_timeout" ] || printf '%s\n' "$rs_timeout" >limit; } &&
		{ [ -z "$rs_ring" ] || printf '%s\n' "$rs_ring" >ring; } &&
		true >out && true >err && true >pid && true >supervisor
}

rs_made=
trap rs_give_up EXIT
rs_home=${HOME-}
rs_from=${rs_stays:+${PWD-}}
rs_remember
umask 077
case $rs_base in
*"$rs_newline"*) rs_refuse home "the path of the home directory holds a line break" ;;
/*) ;;
*) rs_refuse home "HOME is not set to an absolute path" ;;
esac
# Modes are given to mkdir, since a default ACL overrides the umask.
[ -d "$rs_base" ] || rs_why=$(
	{
		[ -d "${rs_base%/*}" ] || { mkdir -p "${rs_base%/rsig/jobs}/" && mkdir -m 700 "${rs_base%/*}"; }
		mkdir -m 700 "$rs_base"
	} 2>&1
) || [ -d "$rs_base" ] || rs_refuse home "$rs_why"
[ -O "$rs_base" ] || rs_refuse home "$rs_base belongs to another user: remove it, or give it to this one"
rs_look=${rs_listed-}
[ "$rs_base" = "${rs_trusted-}" ] || rs_look=$(ls -ldn "$rs_base/." 2>/dev/null)
# Files in a directory with a default ACL inherit it. A mkdir that failed is run again for its error message.
rs_locks=$rs_base/$rs_id/lock
case $rs_look in
??????????+*) rs_locks= ;;
esac
mkdir -m 700 "$rs_base/$rs_id" ${rs_locks:+"$rs_locks"} 2>/dev/null || rs_why=$(mkdir -m 700 "$rs_base/$rs_id" 2>&1) ||
	rs_refuse home "$rs_why"
rs_made=$rs_base/$rs_id
case $rs_look in
?????w* | ????????w*)
	case $rs_base in
	*/rsig/jobs) rs_refuse home "other users can write to $rs_base: run chmod 700 $rs_base" ;;
	*) rs_refuse home "other users can write to $rs_base; it must be this user's alone, such as $rs_base/rsig-$(id -u)" ;;
	esac
	;;
esac
rs_private=$rs_base
cd -P "$rs_made" || rs_refuse home "$rs_made can't be entered"
rs_shut=
if [ -z "$rs_locks" ]; then
	setfacl -k . || python3 -c 'import os
os.removexattr(".", "system.posix_acl_default")' || rs_shut=1
	mkdir -m 700 lock
fi 2>/dev/null
rs_identify
# Runs in a subshell if file sizes are limited, since a shell that exceeds the limit is killed; or for an error message.
{ [ "$rs_largest" = unlimited ] && rs_write 2>/dev/null; } || rs_why=$(rs_write 2>&1) ||
	rs_refuse disk "$rs_base: ${rs_why:-is a limit reached there (see ulimit -a)?}"
rs_restore
# All input is stored here before the job starts. The client sends it only when asked, or the shell would read it as
# commands.
if [ -n "$rs_size" ]; then
	rs_say input
	rs_flush
	rs_why=$(head -c "$rs_size" 2>&1 >input) || rs_refuse disk "$rs_why"
	[ "$(($(wc -c <input)))" -eq "$rs_size" ] || rs_refuse disk "not all of its input came"
fi
# A line in the FIFO says that the job has begun, or why not; end of file, that the supervisor is gone. Korn shells
# don't pass on descriptors and keep copies of them, so with them the files are polled.
rs_tells=
# shellcheck disable=SC2086
mkfifo -m 600 ended $rs_fifos 2>/dev/null || [ -z "$rs_fifos" ] || rs_why=$(mkfifo -m 600 $rs_fifos 2>&1) ||
	rs_refuse disk "$rs_why"
if [ -p ended ] && [ -z "${KSH_VERSION-}" ]; then
	rs_tells=1
	# Keep it open for writing until the supervisor has opened it: the job may end before this shell reads.
	exec 5<>ended
	exec 6<ended
fi

# Start a session without `&`, which would leave the job with INT and QUIT ignored (POSIX, 2.11).
if command -v setsid >/dev/null 2>&1; then
	rs_how=setsid
elif command -v perl >/dev/null 2>&1 && perl -MPOSIX -e 1 2>/dev/null; then
	rs_how=perl
elif command -v python3 >/dev/null 2>&1; then
	rs_how=python3
elif { set -m; } 2>/dev/null && rs_monitors; then
	set +m
	rs_how=monitor
else
	rs_refuse session "it has no setsid, perl or python3, and its /bin/sh has no job control; one of them is needed"
fi

# If logind kills the processes that a login leaves behind, a scope of the user manager protects the job.
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

[ -z "$rs_shut" ] || chmod go= ./*
rs_time
set -- ./supervise "$rs_how" "$rs_system" "$rs_boot" "$rs_machine" "$rs_node" "$rs_mask" "$rs_home" \
	"${rs_from:-$rs_home}" "$rs_now" "$rs_epoch"
# Until the supervisor runs, its errors appear on this standard error.
{ rs_detach "$@"; } </dev/null >/dev/null 2>>err 6<&-

rs_tries=0 rs_why=
if [ -n "$rs_tells" ]; then
	exec 5>&-
	read -r rs_why <&6 || rs_tries=10000
	case $rs_why in
	begun*) ;;
	# Wait for the supervisor's end before its directory is removed.
	*) while read -r rs_line <&6; do :; done ;;
	esac
	exec 6<&-
fi
while [ -z "$rs_why" ]; do
	if [ -s refused ]; then
		read -r rs_why <refused
		rs_why="refused $rs_why"
	elif [ -s pid ]; then
		read -r rs_why <pid
		rs_why="begun $rs_why"
	else
		rs_tries=$((rs_tries + 1))
		[ "$rs_tries" -ne 300 ] || rs_flush
		if [ "$rs_tries" -gt 10000 ]; then
			rs_why=$(head -c 300 err)
			rs_refuse start "its supervisor did not start: ${rs_why:-is a limit reached there (see ulimit -a)?}"
		fi
		sleep 0.002 2>/dev/null || sleep 1
	fi
done
case $rs_why in
refused*) rs_refuse "${rs_why#refused }" ;;
esac
trap - EXIT
rs_say started "${rs_why#begun }"
rs_say directory "$rs_made"
[ -n "$rs_more" ] || rs_end
rs_mark "${rs_more:-end}"
