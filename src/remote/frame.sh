# The frame of every script: an answer stands between a begin mark and an end mark that nobody can guess, so that
# a chatty login in front of it and a broken connection behind it are told apart from the answer.
# Given by the client: rs_nonce.
#
# What is said within a moment leaves in one write: a second one can have to wait for the acknowledgement of the first
# (RFC 896), which is another round trip.

rs_said='' rs_begun=
rs_newline='
'

# rs_say WORD... : one line of the answer, which leaves with the next flush or mark.
rs_say() {
	rs_said="$rs_said$*$rs_newline"
	[ "${#rs_said}" -lt 4000 ] || rs_flush
}

# rs_flush : lets go what was said; to be called before anything that takes time.
rs_flush() {
	if [ -z "$rs_begun" ]; then
		printf '\001%s begin\n%s' "$rs_nonce" "$rs_said"
	elif [ -n "$rs_said" ]; then
		printf '%s' "$rs_said"
	fi
	rs_begun=1 rs_said=
}

# rs_mark WORD : the same, and a mark behind it.
# shellcheck disable=SC2317 # not every script calls it by name
rs_mark() {
	if [ -z "$rs_begun" ]; then
		printf '\001%s begin\n%s\001%s %s\n' "$rs_nonce" "$rs_said" "$rs_nonce" "$1"
	else
		printf '%s\001%s %s\n' "$rs_said" "$rs_nonce" "$1"
	fi
	rs_begun=1 rs_said=
}

# rs_end : closes the answer and ends the script; rs_last, a function, is for what nobody need wait for.
rs_last=:
# shellcheck disable=SC2317
rs_end() {
	rs_mark end
	"$rs_last"
	exit 0
}
