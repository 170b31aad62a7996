# What every script about a job that exists shares: where it is, whether it is this user's, what state it is in.
# Per job only builtins run, so that one script can look at a thousand of them.

# about_jobs : begins a script about jobs. Not done ahead of one: a job that is started would inherit some of it.
about_jobs() {
	umask 077
	unset CDPATH
	elapsed=0 left='' locks='' rs_me=''
}

# private DIR : succeeds when DIR is this user's, and nobody else can write to it.
rs_private=
private() {
	[ "$1" != "$rs_private" ] || return 0
	[ -O "$1" ] || return 1
	case $(ls -ldn "$1/.") in
	?????w* | ????????w* | '') return 1 ;;
	esac
	rs_private=$1
} 2>/dev/null

# place PLACE : sets dir to a job's directory, given as such or as the job's id.
place() {
	case $1 in
	/*) dir=$1 ;;
	*) dir=$rs_base/$1 ;;
	esac
}

# enter DIR : goes into a job's directory. Else sets state to none (there is no such directory) or foreign (it can't
# be got at, is a link, or somebody else's, or somebody else could have changed it).
enter() {
	code=- ended=- expired='' pid=- pgid=- began=- home=- system=-
	state=none
	if [ ! -d "$1" ] && [ ! -L "$1" ]; then
		# What is behind a directory that can't be searched may well be there.
		[ ! -d "${1%/*}" ] || [ -x "${1%/*}" ] || state=foreign
		return 1
	fi
	state=foreign
	[ ! -L "$1" ] && private "${1%/*}" && [ -O "$1" ] && cd -P "$1" && [ -O . ]
} 2>/dev/null

# alive PID BIRTH BOOT : succeeds when the very process that was recorded is there and has not ended.
alive() {
	case $1 in
	'' | *[!0-9]* | 0 | 1) return 1 ;;
	esac
	[ "$3" = "$rs_boot" ] && rs_hold "$1" && rs_process "$1" && [ "$2" = "$rs_birth" ] && [ "$rs_run" != Z ] && [ "$rs_run" != X ]
}

# look : in a job's directory, sets state to exited, running, stopped, ending (gone, and its supervisor about to
# record it), starting, lost or elsewhere (it is another machine's that shares this home), and all that is known.
look() {
	code=- ended=- expired='' pid=- pgid=- birth=- boot=- system=- began=- home=- state=''
	# shellcheck disable=SC2094 # a variable has the file's name
	[ ! -O pid ] || read -r pid pgid birth boot system began home <pid
	if [ -O status ] && read -r code ended expired <status; then
		state=exited
		return
	fi
	# shellcheck disable=SC2094
	[ "$pid" != - ] || [ ! -O made ] || read -r boot home <made
	if [ "$home" != "$rs_node" ] && [ "$home" != - ]; then
		state=elsewhere
	elif alive "$pid" "$birth" "$boot"; then
		state=running
		[ "$rs_run" != T ] || state=stopped
	elif [ -O supervisor ] && read -r owner owner_birth owner_boot <supervisor &&
		alive "$owner" "$owner_birth" "$owner_boot"; then
		state=ending
		[ "$pid" != - ] || state=starting
	elif [ -O status ] && read -r code ended expired <status; then
		state=exited
	elif [ "$pid" = - ] && [ "$boot" = "$rs_boot" ] && [ ! -e refused ] && [ -n "$(find made -prune -mmin -2)" ]; then
		state=starting
	elif [ "$boot" = - ] && [ -n "$(find . -prune -mmin -2)" ]; then
		# Its directory was made a moment ago, and says nothing yet.
		state=starting
	else
		state=lost
	fi
} 2>/dev/null

# report INDEX : the line about the job that was looked at.
report() {
	[ "$expired" != timeout ] || expired=expired
	rs_say job "$1" "${expired:-$state}" "$code" "$ended" "$pid" "$pgid" "$began" "$system" "$home"
}

# nap MILLISECONDS : sleeps less than a second and counts it in `elapsed`; a whole one where sleep takes no fractions.
nap() {
	rs_flush
	case $1 in
	?) set -- "$1" "0.00$1" ;;
	??) set -- "$1" "0.0$1" ;;
	*) set -- "$1" "0.$1" ;;
	esac
	if sleep "$2" 2>/dev/null; then
		elapsed=$((elapsed + $1))
	else
		sleep 1
		elapsed=$((elapsed + 1000))
	fi
}
