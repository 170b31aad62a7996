# What scripts about jobs share: where a job is, whether it is this user's, what state it is in.
# Per job only builtins run, so that one script can look at a thousand of them.

# about_jobs : begins a script about jobs. Not done ahead of one: a job that is started would inherit some of it.
about_jobs() {
	umask 077
	rs_clean
	elapsed=0 left='' locks='' rs_me='' kept=$rs_newline
}

# private DIR : succeeds when DIR is this user's, and nobody else can write to it.
rs_private=
private() {
	[ "$1" != "$rs_private" ] || return 0
	[ -O "$1" ] || return 1
	case $(rs_clean && ls -ldn "$1/.") in
	?????w* | ????????w* | '') return 1 ;;
	esac
	rs_private=$1
} 2>/dev/null

# rs_prepare : in a shell that stays, before each script: finds out what holds for all of them. rs_trusted is the directory of
# jobs if it was private: only a fork can tell, which takes a signal longer than all the rest.
rs_trusted=
rs_prepare() {
	rs_host
	rs_identify
	if [ -z "$rs_trusted" ] && [ -d "$rs_base" ] && private "$rs_base"; then
		rs_trusted=$rs_base
	fi
	rs_private=
}

# place PLACE : sets dir to a job's directory, given by the job's id or by its path. What the client has on record about
# the job may stand before the path, for the case that the directory is gone: PID PGID BIRTH BOOT MACHINE.
place() {
	case $1 in
	/*) dir=$1 ;;
	*/*) dir=/${1#*/} kept="$kept$dir ${1%%/*}$rs_newline" ;;
	*) dir=$rs_base/$1 ;;
	esac
}

# enter DIR : goes into a job's directory. Else sets state: foreign (it can't be got at, is a link, or somebody else's, or
# somebody else could have changed it) or what absent says.
enter() {
	unknown
	if [ ! -d "$1" ] && [ ! -L "$1" ]; then
		absent "$1"
		return 1
	fi
	state=foreign
	[ ! -L "$1" ] && private "${1%/*}" && [ -O "$1" ] && cd -P "$1" && [ -O . ]
} 2>/dev/null

unknown() {
	code=- ended=- expired=- pid=- pgid=- birth=- boot=- system=- began=- machine=- home=-
}

# absent DIR : the state of a job whose directory is not there: running or stopped by the client's record, none (the job is
# gone), elsewhere, or away (nothing can be said: all jobs' directories are missing, as where the home is not mounted).
absent() {
	if [ -d "${1%/*}" ] && [ ! -x "${1%/*}" ]; then
		state=foreign
		return
	fi
	state=none
	case $kept in
	*"$rs_newline$1 "*) ;;
	*) return ;;
	esac
	record=${kept#*"$rs_newline$1 "}
	dir_above=${1%/*}
	# shellcheck disable=SC2086
	set -- ${record%%"$rs_newline"*}
	# The files in a directory are about its own job.
	cd /
	rs_origin "$4" "$5"
	case $rs_from in
	elsewhere) state=elsewhere ;;
	here)
		if alive "$1" "$3" "$4"; then
			pid=$1 pgid=$2 birth=$3 boot=$4 machine=$5 expired=dir
			is_running
		elif [ ! -d "$dir_above" ]; then
			state=away
		fi
		;;
	esac
}

# alive PID BIRTH BOOT : succeeds when the very process that was recorded is there and has not ended.
alive() {
	case $1 in
	'' | *[!0-9]* | 0 | 1) return 1 ;;
	esac
	[ "$3" = "$rs_boot" ] && rs_hold "$1" && rs_is_job "$1" "$2"
}

# is_running : after alive.
is_running() {
	state=running
	[ "$rs_run" != T ] || state=stopped
}

# has_end FILE : succeeds when the end of the job is recorded there, and sets code, ended and expired.
has_end() {
	[ -O "$1" ] && read -r code ended expired <"$1" && [ -n "$code" ]
}

# look : in a job's directory, sets state to exited, running, stopped, ending (gone, and its supervisor about to
# record it), starting, lost or elsewhere (it is another machine's that shares this home), and all that is known.
look() {
	unknown
	state=
	# shellcheck disable=SC2094 # a variable has the file's name
	[ ! -s pid ] || [ ! -O pid ] || read -r pid pgid birth boot system began machine home <pid
	if has_end status; then
		state=exited
		return
	fi
	[ "$pid" != - ] || [ ! -O made ] || read -r boot machine home <made
	rs_origin "$boot" "$machine"
	[ "$boot" != - ] || rs_from=here
	if [ "$rs_from" = elsewhere ]; then
		state=elsewhere
	elif [ "$rs_from" = here ] && ! has_end status.new && alive "$pid" "$birth" "$boot"; then
		is_running
	elif [ "$rs_from" = here ] && rs_is_supervised; then
		state=ending
		[ "$pid" != - ] || state=starting
	# Its time is not known where the supervisor has been killed before it said so.
	elif has_end status || has_end status.new; then
		state=exited
	elif [ "$pid" = - ] && [ "$boot" = "$rs_boot" ] && [ ! -e refused ] && [ -n "$(find made -prune -mmin -2)" ]; then
		state=starting
	elif [ "$boot" = - ] && [ ! -e gone ] && [ -n "$(find . -prune -mmin -2)" ]; then
		# Its directory was made a moment ago, and says nothing yet.
		state=starting
	else
		state=lost
	fi
	[ "$state" = exited ] || code=- ended=-
} 2>/dev/null

# report INDEX : the line about the job that was looked at.
report() {
	case $state in
	running | stopped)
		[ ! -e unkept ] || [ "$expired" = dir ] || expired=unkept
		;;
	esac
	rs_say job "$1" "$state" "$code" "${ended:--}" "${expired:--}" "$pid" "$pgid" "$began" "$system" \
		"$birth" "$boot" "$machine" "$home"
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
