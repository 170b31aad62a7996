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

rs_lease() {
	rs_beat='' rs_quiet=0
	while [ "$rs_quiet" -lt "$rs_tether" ]; do
		# A round is a second, whatever the clock says: the whole machine may have slept.
		rs_pause 100
		rs_quiet=$((rs_quiet + 1))
		! rs_is_held || rs_quiet=0
	done
	rs_end_job tied untied
}

rs_tie() {
	: >tied
	rs_beside_job rs_lease
}
