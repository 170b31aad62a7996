# Removes the files of jobs that have ended.

# forget INDEX PLACE : answers whether they are gone. What is not finished, or not this machine's to judge, stays.
forget() {
	place "$2"
	if enter "$dir"; then
		look
		case $state in
		exited | lost)
			if why=$(cd .. && rm -rf "./${dir##*/}" 2>&1); then
				answer gone "$1"
			else
				answer kept "$1" "$(printf '%s' "$why" | tr '\n' ' ')"
			fi
			cd /
			return
			;;
		esac
	fi
	case $state in
	none) answer gone "$1" ;;
	*) report "$1" ;;
	esac
}
