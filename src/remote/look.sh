# Finds a job, checks that it belongs to this user, and determines its state. It runs only builtins for each job, so
# that one script can check a thousand jobs.

# about_jobs : begins a script about jobs. Not part of rs_prepare: a job that is started would inherit the umask.
about_jobs() {
	umask 077
	rs_clean
	elapsed=0 left='' locks='' kept=$rs_newline rs_private=$rs_trusted
}

# private DIR : succeeds if DIR belongs to this user and is not writable by others. Sets rs_look to the output of ls for
# it.
rs_private=
private() {
	[ "$1" != "$rs_private" ] || return 0
	[ -O "$1" ] || return 1
	rs_look=$(rs_clean && ls -ldn "$1/.")
	case $rs_look in
	?????w* | ????????w* | '') return 1 ;;
	esac
	rs_private=$1
} 2>/dev/null

# rs_prepare : in a pooled shell, before each script: determines what is valid for all scripts of the shell. rs_trusted
# is the directory of all jobs, if it was private, and rs_listed the output of ls for it: starting a process costs more
# than the rest of a signal. Scripts hold locks in the name of the shell (lock.sh), so a script that fails ends the
# shell.
rs_trusted='' rs_listed=
rs_prepare() {
	rs_host
	rs_identify
	[ -n "$rs_me" ] || rs_self
	if [ -z "$rs_trusted" ] && [ -d "$rs_base" ] && private "$rs_base"; then
		rs_trusted=$rs_base rs_listed=$rs_look
	fi
	rs_private=
}

# place PLACE : sets dir to a job's directory, given by the job's id or by its path. In case the directory is gone, the
# client's record of the job may precede the path: PID PGID BIRTH BOOT MACHINE.
place() {
	case $1 in
	/*) dir=$1 ;;
	*/*) dir=/${1#*/} kept="$kept$dir ${1%%/*}$rs_newline" ;;
	*) dir=$rs_base/$1 ;;
	esac
}

# enter DIR : changes to a job's directory. On failure sets state: foreign (not accessible, a link, or owned or writable
# by others), or as `absent` does.
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

# absent DIR : sets the state of a job whose directory is missing: running or stopped by the client's record, none (the
# job is gone), elsewhere, or away (unknown: the directory of all jobs is missing, as when the home is not mounted).
absent() {
	if [ -d "${1%/*}" ] && [ ! -x "${1%/*}" ]; then
		state=foreign
		return
	fi
	state=none
	recall "$1" || return 0
	# The files in the current directory describe another job.
	cd /
	rs_origin "$boot" "$machine"
	case $rs_from in
	elsewhere) state=elsewhere ;;
	before) expired=boot ;;
	here)
		if alive "$pid" "$birth" "$boot"; then
			expired=dir
			is_running
			return
		elif [ ! -d "${1%/*}" ]; then
			state=away
		fi
		;;
	esac
	pid=- pgid=- birth=- boot=- machine=-
}

# recall DIR : sets pid, pgid, birth, boot and machine from the client's record. Fails if the client gave none.
recall() {
	case $kept in
	*"$rs_newline$1 "*) record=${kept#*"$rs_newline$1 "} ;;
	*) return 1 ;;
	esac
	# shellcheck disable=SC2086
	set -- ${record%%"$rs_newline"*}
	pid=$1 pgid=$2 birth=$3 boot=$4 machine=$5
}

# alive PID BIRTH BOOT : succeeds if the recorded process has not ended.
alive() {
	case $1 in
	'' | *[!0-9]* | 0 | 1) return 1 ;;
	esac
	[ "$3" = "$rs_boot" ] && rs_hold "$1" && rs_is_job "$1" "$2"
}

# is_running : after `alive`, sets state.
is_running() {
	state=running
	! rs_is_stopped "$pid" || state=stopped
}

# has_ended : in a job's directory, succeeds if its end is recorded, and sets code, ended and expired.
has_ended() {
	# Read twice, since the first read may have begun before it was written. The time is written last.
	[ -O status ] && read -r code ended expired <status && [ -n "$ended" ] && read -r code ended expired <status
}

# is_ending : after has_ended has failed, succeeds if the supervisor has recorded the status but not yet the time.
is_ending() {
	case $code in - | '') return 1 ;; esac
}

# look : in a job's directory, sets state to exited, running, stopped, ending (the supervisor is about to record the
# end), starting, lost or elsewhere (a job of another machine that shares this home), and the variables of the job's
# record.
look() {
	unknown
	state=
	# shellcheck disable=SC2094 # a variable has the file's name
	[ ! -s pid ] || [ ! -O pid ] || read -r pid pgid birth boot system began machine home <pid
	if has_ended; then
		state=exited
		return
	fi
	# A job may have removed its files and left the directory.
	note=-
	if [ ! -s pid ] && recall "$dir"; then
		note=dir
	elif [ "$pid" = - ] && [ -O made ] && [ -s made ]; then
		read -r boot machine home <made
	fi
	rs_origin "$boot" "$machine"
	[ "$boot" != - ] || rs_from=here
	if [ "$rs_from" = elsewhere ]; then
		state=elsewhere
	elif [ "$rs_from" = here ] && ! is_ending && alive "$pid" "$birth" "$boot"; then
		is_running
		expired=$note
	elif [ "$rs_from" = here ] && rs_is_supervised; then
		state=ending
		[ "$pid" != - ] || state=starting
	# The time of the end is unknown if the supervisor was killed before it recorded it.
	elif has_ended || is_ending; then
		state=exited
	elif [ "$pid" = - ] && [ "$boot" = "$rs_boot" ] && [ ! -e refused ] && [ -n "$(find made -prune -mmin -2)" ]; then
		state=starting
	elif [ "$boot" = - ] && [ ! -e gone ] && [ -d "$PWD" ] && [ -n "$(find . -prune -mmin -2)" ]; then
		# Its directory was created a moment ago and not removed.
		state=starting
	else
		state=lost
		[ "$rs_from" != before ] || expired=boot
	fi
	[ "$state" = exited ] || code=- ended=-
} 2>/dev/null

# report INDEX : adds the `job` line to the answer.
report() {
	case $state in
	running | stopped)
		[ ! -e unkept ] || [ "$expired" = dir ] || expired=unkept
		;;
	esac
	rs_say job "$1" "$state" "$code" "${ended:--}" "${expired:--}" "$pid" "$pgid" "$began" "$system" \
		"$birth" "$boot" "$machine" "$home"
}

# fraction MILLISECONDS : sets seconds to that time as a decimal fraction. It must be less than a second.
fraction() {
	seconds=00$1
	seconds=0.${seconds#"${seconds%???}"}
}

# nap MILLISECONDS : sleeps for less than a second and adds the time to `elapsed`. Sleeps a whole second if sleep(1)
# takes no fractions.
nap() {
	rs_flush
	fraction "$1"
	if sleep "$seconds" 2>/dev/null; then
		elapsed=$((elapsed + $1))
	else
		sleep 1
		elapsed=$((elapsed + 1000))
	fi
}
