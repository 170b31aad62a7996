# shellcheck shell=sh
# Cleans up after the test process, which it outlives for a moment.
# usage: sh -c "$(cat warden.sh)" warden BASE
#
# Its standard input is a pipe from the test process, which is closed when that process ends, even by SIGKILL. Each line
# of input is a user id that was claimed for a throwaway account; with a minus sign, one that is released, so that others
# may claim it. At the end of the input, every process that belongs to BASE or to one of the remaining users is killed,
# then BASE is removed.

base=$1
trap '' HUP INT QUIT TERM
mkdir -m 755 -- "$base" || exit 1
echo ready
exec >/dev/null 2>&1

uids=' '
while read -r uid; do
    case $uid in
    -*)
        uid=" ${uid#-} "
        uids="${uids%%"$uid"*} ${uids#*"$uid"}"
        ;;
    *) uids="$uids$uid " ;;
    esac
done
# If BASE is empty, every guard was dropped and has already looked for its processes.
rmdir -- "$base" && exit

# belongs PID: checks the same marks as procs.rs.
belongs() {
    [ "$1" != $$ ] || return 1
    state='' user=''
    while read -r key value _; do
        case $key in
        State:) state=$value ;;
        Uid:) user=$value && break ;;
        esac
    done <"/proc/$1/status"
    [ -n "$user" ] && [ "$state" != Z ] || return 1
    case $uids in *" $user "*) return 0 ;; esac
    grep -qaF -e "$base/" "/proc/$1/environ"
    case $? in
    0) return 0 ;;
    2) grep -qaF -e "$base/" "/proc/$1/cmdline" && return 0 ;;
    esac
    # shellcheck disable=SC2010 # the links' targets are needed, and only ls shows them all at once
    ls -l "/proc/$1/fd" "/proc/$1/cwd" | grep -qF -e "-> $base/"
}

round=0
while [ "$round" -lt 200 ]; do
    found=''
    for entry in /proc/[0-9]*; do
        if belongs "${entry#/proc/}"; then
            kill -KILL "${entry#/proc/}"
            found=yes
        fi
    done
    [ -n "$found" ] || break
    sleep 0.05
    round=$((round + 1))
done
rm -rf -- "$base"
