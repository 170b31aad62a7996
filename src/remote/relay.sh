# Goes on from spawn.sh where a keeper holds the channel: passes the channel's signals on to the job, and says when the
# job has ended. Every line begins with rs_relay, a word of the keeper's.
#
# Given by the client: rs_relay, and rs_number, which is empty where the server has to be probed.
#
# A channel's signal carries no number, so both sides count: the first is a probe that goes no further, unless the server
# is known to pass signals on, and the one after it is number 1. Each is claimed before it is sent, by the same kind of file
# as in a script, so that of this relay and a script that has become impatient only one sends.

# rs_create FILE : makes a file that is not there yet. Of several who try, one succeeds.
rs_create() {
	set -C
	true >"$1"
	set -- $?
	set +C
	return "$1"
} 2>/dev/null

# rs_send CLAIM NAME NUMBER : sends the signal to the job's group, and sets rs_sent to what came of it. Fails where somebody
# else has the claim, or it can't be made: then this one must not send.
rs_send() {
	rs_create "sig.$1" || return 1
	# Two that come together are one to a process: see deliver.sh.
	rs_tries=0
	! rs_untaken || while [ "$rs_tries" -lt 100 ] && rs_pending "$rs_pid" "$3"; do
		rs_tries=$((rs_tries + 1))
		sleep 0.002 || break
	done
	true >"untaken/$1"
	if ! rs_holds "$rs_pid" && ! rs_is_job "$rs_pid" "$rs_born"; then
		rs_sent=gone
	elif kill "-$2" "-$rs_pgid"; then
		rs_sent=yes
	else
		rs_sent=denied
	fi
	printf '%s %s\n' "$2" "$rs_sent" >>"sig.$1"
	return 0
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
	rs_sent=unsent
	if rs_take_turn; then
		rs_send "c$rs_count" "$1" "$2" || rs_count=
		rm -f turn
	fi
	[ -n "$rs_count" ] || return 0
	printf '%s sent %s %s\n' "$rs_relay" "$rs_count" "$rs_sent"
}

# rs_take_turn : waits until nobody else signals this job, as turn in deliver.sh does; but not for long, since somebody waits
# for the answer, who has other ways.
rs_take_turn() {
	rs_tries=0
	until rs_create turn; do
		[ "$rs_tries" -lt 60 ] || return 1
		rs_tries=$((rs_tries + 1))
		sleep 0.005 || return 1
	done
} 2>/dev/null

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
do :; done 2>/dev/null
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
