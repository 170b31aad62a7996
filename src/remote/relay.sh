# Goes on from spawn.sh where a keeper holds the channel: passes the channel's signals on to the job, and says when the
# job has ended. Every line begins with rs_relay, a word of the keeper's.
#
# Given by the client: rs_relay, and rs_number, which is empty where the server has to be probed.
#
# A channel's signal carries no number, so both sides count: the first is a probe that goes no further, unless the server
# is known to pass signals on, and the one after it is number 1. Each is claimed before it is sent, by the same kind of file
# as in a script, so that of this relay and a script that has become impatient only one sends.

# rs_send CLAIM NAME NUMBER : sends the signal to the job's group, and sets rs_sent to what came of it: to nothing if somebody
# else has the claim, to `unsent` if this is not to be the one that sends.
rs_send() {
	rs_sent=unsent
	rs_lock 300 || return 0
	# The claim comes last: a script that has become impatient must not find one that is not made use of at once.
	rs_await "$rs_pid" "$3" 150
	if ! rs_holds "$rs_pid" && ! rs_is_job "$rs_pid" "$rs_born"; then
		:
	elif rs_create "sig.$1"; then
		rs_sent=denied
		! kill "-$2" "-$rs_pgid" || rs_sent=yes
		printf '%s %s\n' "$2" "$rs_sent" >>"sig.$1"
	elif [ -e "sig.$1" ]; then
		rs_sent=
	fi
	rs_unlock
} 2>/dev/null

# rs_pass NAME NUMBER : runs as the trap of a signal.
rs_pass() {
	if [ -z "$rs_number" ]; then
		rs_number=1
		printf '%s probe\n' "$rs_relay"
		return
	fi
	# Counted before the answer is given: the next signal may come once it is, and a trap must not meet another.
	rs_count=$rs_number rs_number=$((rs_number + 1))
	rs_send "c$rs_count" "$1" "$2"
	[ -z "$rs_sent" ] || printf '%s sent %s %s\n' "$rs_relay" "$rs_count" "$rs_sent"
}

rs_self
rs_locked='' rs_settled=
read -r rs_pid rs_pgid rs_born rs_rest <pid
rs_hold "$rs_pid"
rs_process "$rs_pid" && [ "$rs_birth" = "$rs_born" ] || rs_held=
# Servers signal the whole group: the helpers must not mind, from their first moment on.
trap '' HUP INT QUIT TERM USR1 USR2
# The supervisor holds the FIFO to the job's end. Opened for both first, since that does not wait for anybody, should the
# job be over by now.
(
	exec 5<>ended
	exec 6<ended
	exec cat <&6 5>&- 6<&-
) >/dev/null 2>&1 &
rs_reader=$!
exec 3<&0
# The end of standard input is the end of the keeper. Told by the reader's death and not by a signal of its own: in dash,
# a trap that runs within a trap changes the status of the command that it came upon (to that which the outer one found),
# and a signal that was sent would be told as refused.
(
	while read -r rs_word; do :; done <&3
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
while
	wait "$rs_reader"
	rs_ended=$?
	kill -0 "$rs_reader"
do
	# In a process of its own, which no trap meets.
	if [ "$rs_locked" != "$rs_settled" ]; then
		rs_settled=$rs_locked
		rs_settle "$rs_pid" "$rs_settled" &
	fi
done 2>/dev/null
rs_tries=0
# 137: killed by the watcher.
while [ "$rs_ended" -ne 137 ] && [ ! -s status ] && [ "$rs_tries" -lt 200 ]; do
	rs_tries=$((rs_tries + 1))
	sleep 0.005 2>/dev/null || sleep 1
done
# The answer about a signal comes before the end that follows from it: by then, each claim says what came of it.
rs_tries=0
for rs_claim in sig.*; do
	while [ -e "$rs_claim" ] && [ ! -s "$rs_claim" ] && [ "$rs_tries" -lt 100 ]; do
		rs_tries=$((rs_tries + 1))
		sleep 0.002 2>/dev/null || break
	done
done
kill -KILL "$rs_watcher" 2>/dev/null
if [ -s status ]; then
	read -r rs_code rs_when rs_why <status
	printf '%s end %s %s %s\n' "$rs_relay" "$rs_code" "$rs_when" "$rs_why"
fi
exit 0
