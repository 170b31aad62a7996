# Attaches a keeper's channel to a job: passes the channel's signals on to the job, and reports when the job ends. Every
# line begins with rs_relay, a word chosen by the keeper.
#
# Given by the client: rs_relay, and rs_number, which is empty if the server has to be probed.
#
# A channel signal carries no number, so both sides count. Unless the server is known to pass signals on, the first one
# is a probe that is not sent to the job; number 1 follows. Each signal is claimed before it is sent, with the same
# files as in a script, so that of this relay and a script that took over from it only one sends the signal.

# rs_send CLAIM NAME NUMBER : sends the signal to the job's group, and sets rs_sent to the result: empty if a script has
# the claim, `unsent` if a script should send it.
rs_send() {
	rs_sent=unsent
	rs_lock 300 || return 0
	# Claim last: a script that takes over must not find a claim whose signal is not sent at once.
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

# rs_pass NAME NUMBER : the trap of each signal.
rs_pass() {
	if [ -z "$rs_number" ]; then
		rs_number=1
		printf '%s probe\n' "$rs_relay"
		return
	fi
	# Count before the answer, since the next signal may arrive right after it.
	rs_count=$rs_number rs_number=$((rs_number + 1))
	rs_send "c$rs_count" "$1" "$2"
	[ -z "$rs_sent" ] || printf '%s sent %s %s\n' "$rs_relay" "$rs_count" "$rs_sent"
}

rs_self
rs_locked='' rs_settled=
read -r rs_pid rs_pgid rs_born rs_rest <pid
rs_hold "$rs_pid"
rs_process "$rs_pid" && [ "$rs_birth" = "$rs_born" ] || rs_held=
# Servers signal the whole group: the helpers below must ignore that from the start.
trap '' HUP INT QUIT TERM USR1 USR2
# The supervisor holds the FIFO open until the job ends. Opened for reading and writing first, since that does not block
# if the job has ended.
(
	exec 5<>ended
	exec 6<ended
	exec cat <&6 5>&- 6<&-
) >/dev/null 2>&1 &
rs_reader=$!
exec 3<&0
# End of file on standard input means that the keeper is gone. The watcher then kills the reader instead of signalling
# this shell: in dash, a nested trap changes the status of the interrupted command, and a signal that was sent would be
# reported as refused.
(
	while read -r rs_word; do :; done <&3
	kill -KILL "$rs_reader"
) >/dev/null 2>&1 &
rs_watcher=$!
# The numbers are those of Linux; rs_pending ignores them elsewhere.
trap 'rs_pass HUP 1' HUP
trap 'rs_pass INT 2' INT
trap 'rs_pass QUIT 3' QUIT
trap 'rs_pass TERM 15' TERM
trap 'rs_pass USR1 10' USR1
trap 'rs_pass USR2 12' USR2
printf '%s ready\n' "$rs_relay"

# A trap that runs during wait cuts it short.
while
	wait "$rs_reader"
	rs_ended=$?
	kill -0 "$rs_reader"
do
	# In a separate process, which no trap interrupts.
	if [ "$rs_locked" != "$rs_settled" ]; then
		rs_settled=$rs_locked
		rs_settle "$rs_pid" "$rs_settled" &
	fi
done 2>/dev/null
rs_tries=0
# 137: killed by the watcher.
until [ "$rs_ended" -eq 137 ] || has_ended || [ "$rs_tries" -ge 200 ]; do
	rs_tries=$((rs_tries + 1))
	sleep 0.005 2>/dev/null || sleep 1
done
# The result of a signal must precede an end caused by the signal, so wait until each claim has its result.
rs_tries=0
for rs_claim in sig.*; do
	while [ -e "$rs_claim" ] && [ ! -s "$rs_claim" ] && [ "$rs_tries" -lt 100 ]; do
		rs_tries=$((rs_tries + 1))
		sleep 0.002 2>/dev/null || break
	done
done
kill -KILL "$rs_watcher" 2>/dev/null
! has_ended || printf '%s end %s %s %s\n' "$rs_relay" "$code" "$ended" "$expired"
exit 0
