# The frame of every script: an answer stands between a begin mark and an end mark that can't be guessed, so that output
# of the login before it, or a broken connection after it, can't be taken for the answer. Given by the client: rs_nonce.
#
# Lines are collected and sent in one write: a second write may have to wait until the first one is acknowledged (RFC
# 896), which costs a round trip.

rs_said='' rs_begun=
rs_newline='
'

# rs_say WORD... : adds a line to the answer; the next rs_flush or rs_mark sends it.
rs_say() {
	rs_said="$rs_said$*$rs_newline"
	[ "${#rs_said}" -lt 4000 ] || rs_flush
}

# rs_flush : sends the collected lines. Call it before anything that takes time.
rs_flush() {
	if [ -z "$rs_begun" ]; then
		printf '\001%s begin\n%s' "$rs_nonce" "$rs_said"
	elif [ -n "$rs_said" ]; then
		printf '%s' "$rs_said"
	fi
	rs_begun=1 rs_said=
}

# rs_mark WORD : as rs_flush, followed by a mark.
# shellcheck disable=SC2317
rs_mark() {
	if [ -z "$rs_begun" ]; then
		printf '\001%s begin\n%s\001%s %s\n' "$rs_nonce" "$rs_said" "$rs_nonce" "$1"
	else
		printf '%s\001%s %s\n' "$rs_said" "$rs_nonce" "$1"
	fi
	rs_begun=1 rs_said=
}

# rs_end : closes the answer and ends the script. rs_last names a function to run after that, when the client no longer
# waits.
rs_last=:
# shellcheck disable=SC2317
rs_end() {
	rs_mark end
	"$rs_last"
	exit 0
}
