# Ends a job whose time is over: a watchdog beside it, never above it, that goes when the job does.
# The limit is counted by a sleep, so a clock that jumps doesn't matter, and nobody need be connected.

# rs_pause SECONDS : sleeps that long, whatever signals come. (A trap cuts a wait short.)
rs_pause() {
	sleep "$1" &
	while kill -0 $!; do
		wait $!
	done
}

# rs_is_job : succeeds while the process that was recorded is there and has not ended.
rs_is_job() {
	[ -n "$rs_born" ] && rs_process "$rs_pid" && [ "$rs_birth" = "$rs_born" ] && [ "$rs_run" != Z ]
}

# rs_watch : TERM when the time is over, CONT so that a stopped job can die of it, KILL 10 s later.
rs_watch() {
	# What was started before is not the watchdog's.
	rs_before=$!
	trap '[ "$!" = "$rs_before" ] || kill -KILL $!; exit' ALRM
	trap : HUP INT QUIT PIPE TERM USR1 USR2
	read -r rs_limit <limit
	sleep 0.001 || rs_limit=$((${rs_limit%.*} + 1))
	rs_pause "$rs_limit"
	until [ -s pid ] || [ ! -e limit ]; do
		sleep 0.01 || sleep 1
	done
	read -r rs_pid rs_pgid rs_born rs_rest <pid
	# Noted first, by a rename: a disk that is full by then has no room for a new file.
	rs_is_job && mv -f limit expired || return
	if ! kill -TERM "-$rs_pgid"; then
		mv -f expired limit
		return
	fi
	kill -CONT "-$rs_pgid"
	rs_pause 10
	! rs_is_job || kill -KILL "-$rs_pgid"
}

# rs_guard : leaves the watchdog behind.
rs_guard() {
	rs_watch </dev/null >/dev/null 2>&1 5>&- &
	rs_watchdog=$!
}

# rs_end_watch : ends the watchdog and its sleep. As often as it takes, since a shell can lose a signal that comes while
# it is being forked.
rs_end_watch() {
	while kill -ALRM "$rs_watchdog"; do
		sleep 0.01 || sleep 1
	done 2>/dev/null
}
