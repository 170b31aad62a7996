# The frame of every script: an answer stands between a begin mark and an end mark that nobody can guess, so that
# a chatty login in front of it and a broken connection behind it are told apart from the answer.
# Given by the client: rs_nonce.

# rs_end : closes the answer and ends the script.
# shellcheck disable=SC2317 # not every script calls it by name
rs_end() {
	printf '\001%s end\n' "$rs_nonce"
	exit 0
}
printf '\001%s begin\n' "$rs_nonce"
