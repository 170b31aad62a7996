# Ends a job whose client is gone. Runs in the supervisor, beside the job.
# Given by the client: rs_tether, the number of seconds without a heartbeat; rs_holder and rs_holder_birth, the client's
# process if it is on this machine. Otherwise each heartbeat writes a new word to the file beat.

# rs_is_held : succeeds if there was a heartbeat since the last call, or the client's process runs.
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

rs_lease() {
	rs_know_job tied
	rs_beat='' rs_quiet=0
	while [ "$rs_quiet" -lt "$rs_tether" ]; do
		# A round counts as one second, whatever the clock says: the machine may have been suspended.
		rs_pause 100
		rs_quiet=$((rs_quiet + 1))
		! rs_is_held || rs_quiet=0
	done
	rs_end_job tied untied
}

rs_tie() {
	true >tied
	# So that a full disk has room for the heartbeats.
	printf '%64s\n' '' >beat
	rs_beside_job rs_lease
}
