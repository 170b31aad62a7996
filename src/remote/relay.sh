# Goes on from spawn.sh where a keeper holds the channel: passes the channel's signals on to the job, and says when the
# job has ended. Every line begins with rs_relay, a word of the keeper's.
#
# Given by the client: rs_relay, and rs_number, which is empty where the server has to be probed.
#
# A channel's signal carries no number, so both sides count: the first is a probe that goes no further, unless the server
# is known to pass signals on, and the one after it is number 1. Each is claimed before it is sent, by the same kind of file as a signal by pid, so that of this
# relay and a fallback that has become impatient only one sends.

# rs_pass NAME NUMBER : runs as the trap of a signal.
rs_pass() {
	if [ -z "$rs_number" ]; then
		rs_number=1
		printf '%s probe\n' "$rs_relay"
		return
	fi
	# Counted before the answer is given: the next signal may come once it is, and a trap must not meet another.
	rs_claim=sig.c$rs_number rs_answer="$rs_relay sent $rs_number" rs_number=$((rs_number + 1))
	set -C
	if ! true 2>/dev/null >"$rs_claim"; then
		set +C
		return
	fi
	set +C
	case $1 in
	USR1 | USR2)
		# Two that come together are one to a process: see deliver.sh.
		rs_tries=0
		[ ! -e untaken ] || while [ "$rs_tries" -lt 100 ] && rs_pending "$rs_pid" "$2"; do
			rs_tries=$((rs_tries + 1))
			sleep 0.002 2>/dev/null || break
		done
		;;
	esac
	true 2>/dev/null >untaken
	if ! rs_holds "$rs_pid" &&
		{ ! rs_process "$rs_pid" || [ "$rs_birth" != "$rs_born" ] || [ "$rs_run" = Z ]; }; then
		rs_sent=gone
	elif kill "-$1" "-$rs_pgid" 2>/dev/null; then
		rs_sent=yes
	else
		rs_sent=denied
	fi
	rs_fresh=$2
	printf '%s %s\n' "$1" "$rs_sent" 2>/dev/null >>"$rs_claim"
	printf '%s %s\n' "$rs_answer" "$rs_sent"
}

# rs_settle : lets others send without a look once the job has taken the last signal. Outside of the traps, and after the
# answer.
rs_settle() {
	while [ -n "$rs_fresh" ]; do
		rs_looked=$rs_fresh rs_fresh=
		rs_pending "$rs_pid" "$rs_looked" || [ -n "$rs_fresh" ] || rm -f untaken
	done
}

read -r rs_pid rs_pgid rs_born rs_rest <pid
rs_hold "$rs_pid"
rs_process "$rs_pid" && [ "$rs_birth" = "$rs_born" ] || rs_held=
# Servers signal the whole group: the helpers must not mind, from their first moment on.
trap '' HUP INT QUIT TERM USR1 USR2
# The supervisor held the FIFO before the job began, and holds it to its end.
cat <&6 4>&- >/dev/null 2>&1 &
rs_reader=$!
exec 3<&0 4>&- 6<&-
# The end of standard input is the end of the keeper. Told by the reader's death and not by a signal of its own: in dash,
# a trap that runs within a trap changes the status of the command that it came upon (to that which the outer one found),
# and a signal that was sent would be told as refused.
(
	cat <&3 >/dev/null
	kill -KILL "$rs_reader"
) >/dev/null 2>&1 &
rs_watcher=$!
# Their numbers are those of Linux; elsewhere nobody asks for them.
trap 'rs_pass HUP 1' HUP
trap 'rs_pass INT 2' INT
trap 'rs_pass QUIT 3' QUIT
trap 'rs_pass TERM 15' TERM
trap 'rs_pass USR1 10' USR1
trap 'rs_pass USR2 12' USR2
printf '%s ready\n' "$rs_relay"

# Traps run in the middle of a wait, and cut it short.
rs_fresh=
while
	wait "$rs_reader"
	rs_ended=$?
	kill -0 "$rs_reader"
do
	rs_settle
done 2>/dev/null
kill -KILL "$rs_watcher" 2>/dev/null
rs_tries=0
# 137: killed by the watcher.
while [ "$rs_ended" -ne 137 ] && [ ! -s status ] && [ "$rs_tries" -lt 200 ]; do
	rs_tries=$((rs_tries + 1))
	sleep 0.005 2>/dev/null || sleep 1
done
if [ -s status ]; then
	read -r rs_code rs_when rs_why <status
	printf '%s end %s %s %s\n' "$rs_relay" "$rs_code" "$rs_when" "$rs_why"
fi
exit 0
