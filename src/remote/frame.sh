# The frame of every script: an answer stands between a begin line and an end line that nobody can guess, so that
# a chatty login in front of it and a broken connection behind it are told apart from the answer.
# Given by the client: rs_nonce.

# rs_end : closes the answer and ends the script.
rs_end() {
	printf '\n%s end\n' "$rs_nonce"
	exit 0
}
printf '\n%s begin\n' "$rs_nonce"
