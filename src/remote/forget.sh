# Removes the files of jobs that have ended.

# erase : removes the current directory.
erase() {
	(cd .. && rm -rf "./${dir##*/}")
} 2>/dev/null

# forget INDEX PLACE : removes a job's files and reports whether they are gone. Keeps those of a job that has not ended,
# or whose state can't be determined on this machine.
forget() {
	place "$2"
	if enter "$dir"; then
		look
		case $state in
		exited | lost)
			# The supervisor or a spooler may still have written a last file.
			if erase || erase || why=$(sleep 1 && cd .. && rm -rf "./${dir##*/}" 2>&1); then
				rs_say gone "$1"
			else
				rs_say kept "$1" "$(printf '%s' "$why" | tr '\n' ' ')"
			fi
			cd /
			return
			;;
		esac
	fi
	case $state in
	none) rs_say gone "$1" ;;
	*) report "$1" ;;
	esac
}

# forget_read INDEX PLACE OUT ERR : reports the job's state, and removes its files if it has ended and all its output
# was read. OUT and ERR are 1 if all of that stream was read just now. Earlier reads are recorded here.
forget_read() {
	place "$2"
	! enter "$dir" || look
	report "$1"
	case $state in
	exited | lost) ;;
	*) return ;;
	esac
	[ "$3" = 0 ] || true >read.out
	[ "$4" = 0 ] || true >read.err
	# The output of a job in the foreground is not in these files, and its client says when it is delivered.
	if [ ! -e out.pipe ]; then
		[ -s out ] || true >read.out
		[ -s err ] || true >read.err
	fi
	if [ -e read.out ] && [ -e read.err ]; then
		! { erase || erase; } || rs_say gone "$1"
	fi
	cd /
}
