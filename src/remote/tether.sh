# Ends a job that nobody holds on to any more. Runs in the supervisor, beside the job.
# Given by the client: rs_tether, how many seconds may pass without a sign of life; rs_holder and rs_holder_birth, the
# process that holds it where that is on this machine. Elsewhere the sign of life is a new word in the file beat.

# rs_is_held : succeeds when there was a sign of life since it was last asked.
rs_is_held() {
	if [ -n "$rs_holder" ]; then
		rs_process "$rs_holder" && [ "$rs_birth" = "$rs_holder_birth" ] && [ "$rs_run" != Z ]
		return
	fi
	rs_word=
	[ ! -s beat ] || read -r rs_word <beat
	[ "$rs_word" != "$rs_beat" ] || return 1
	rs_beat=$rs_word
}

rs_hold() {
	rs_beat='' rs_quiet=0
	# Counted by sleeps: a clock may jump.
	while sleep 1; do
		rs_quiet=$((rs_quiet + 1))
		! rs_is_held || rs_quiet=0
		[ "$rs_quiet" -lt "$rs_tether" ] || break
	done
	[ -s pid ] && read -r rs_pid rs_pgid rs_born rs_rest <pid || exit
	rs_left=10
	for rs_name in TERM CONT; do
		rs_process "$rs_pid" && [ "$rs_birth" = "$rs_born" ] && kill "-$rs_name" "-$rs_pgid"
	done
	while [ "$rs_left" -gt 0 ] && [ ! -s status ]; do
		rs_left=$((rs_left - 1))
		sleep 1
	done
	[ -s status ] || { rs_process "$rs_pid" && [ "$rs_birth" = "$rs_born" ] && kill -KILL "-$rs_pgid"; }
}

rs_tie() {
	rs_hold </dev/null >/dev/null 2>&1 5>&- &
	rs_watchdogs="$rs_watchdogs $!"
}
