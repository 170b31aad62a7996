# Appends to the input of a job that gets it by `rsig send` (spool.sh), exactly once.
# Given by the client: claim, the same for every attempt of one send; text, or size, the number of bytes that the client
# sends when asked; eof, 1 if the input ends there.
#
# The data is first written to a file of its own. Then one line in in.last, written under the job's lock, decides that
# this file comes next in the input. The next holder of the lock completes the last decision, so a sender may die at any
# point.

# redo : completes the last decision. Sets next to the position of the input's end.
redo() {
	next=0
	[ -s in.last ] || return 0
	read -r last_claim last_file last_at last_size last_eof <in.last
	next=$((last_at + last_size))
	[ ! -e "$last_file" ] || mv -f "$last_file" "in.$last_at" || return
	if [ "$last_eof" = 1 ] && [ ! -s in.end ]; then
		printf '%s\n' "$next" >in.end.new && mv -f in.end.new in.end || return
	fi
	true >"put.$last_claim"
} 2>/dev/null

# is_put : succeeds if in.last has named an earlier attempt with the same claim.
is_put() {
	[ ! -e "put.$claim" ] || return 0
	[ -s in.last ] && read -r last_claim last_file <in.last && [ "$last_claim" = "$claim" ]
} 2>/dev/null

# write_new : writes the bytes to a file of this attempt, or sets why.
write_new() {
	if [ -n "$size" ]; then
		rs_say input
		rs_flush
		why=$(head -c "$size" 2>&1 >"$new") || return
		why='not all of the input came'
		[ "$(($(wc -c <"$new")))" -eq "$size" ]
	else
		why=$({ printf '%s' "$text" >"$new"; } 2>&1)
	fi
}

# put : with the lock held, appends the file to the input.
put() {
	why='what was sent before could not be appended'
	redo || return
	! is_put || return 0
	why=closed
	[ ! -s in.end ] || return
	total=$(($(wc -c <"$new")))
	[ "$total" -gt 0 ] || rm -f "$new"
	why=$({ printf '%s\n' "$claim $new $next $total $eof" >"$new.last" && mv -f "$new.last" in.last; } 2>&1) || return
	# If this fails, the next sender does it.
	redo || :
}

# send PLACE : answers `sent`, `closed`, `never` (the job has no such input) or `refused` and why, or reports the job if
# it has ended or its state can't be determined.
send() {
	place "$1"
	dir_0=$dir
	if ! enter "$dir"; then
		report 0
		return
	fi
	look
	while [ "$state" = ending ] && [ "$elapsed" -lt 2000 ]; do
		nap 10
		look
	done
	if is_put; then
		rs_say sent
		return
	fi
	case $state in
	running | stopped | ending | starting) ;;
	*)
		report 0
		return
		;;
	esac
	if [ ! -e in.open ]; then
		rs_say never
		return
	elif [ -s in.end ]; then
		rs_say closed
		return
	fi
	new=in.new.$rs_nonce
	if ! write_new; then
		:
	elif ! rs_lock 0 && { rs_flush && ! rs_lock 10000; }; then
		why='another rsig process holds its lock and does not respond'
	elif [ -z "$rs_locked" ]; then
		why='its lock can not be taken: the disk is full, or the directory is gone'
	else
		why=
		put && why=sent
		rs_unlock
		# No signal was sent.
		[ -z "$rs_taken" ] || echo clean >>"$rs_locked"
		locks="0:$pid:$rs_locked" rs_last=tidy
	fi
	case $why in
	sent | closed) rs_say "$why" ;;
	*)
		set -f
		# shellcheck disable=SC2086
		set -- $why
		rs_say refused "$*"
		set +f
		;;
	esac
	[ "$why" = sent ] || rm -f "$new" "$new.last"
}

# tidy : runs after the answer. Removes old claims: an attempt is not repeated after a day.
tidy() {
	settle
	set -- put.*
	[ $# -lt 100 ] || find . \( -name 'put.*' -o -name 'in.new.*' \) -mmin +1440 -exec rm -f {} +
} 2>/dev/null
