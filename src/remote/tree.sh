# Signals a job and all processes that it has started: those of its session, those with its cookie in their environment,
# and the children of both, even if they have moved to another group or session.

# survey : looks at all processes once. Prints kin,PID,BIRTH for each new process of the job, the oldest first, and
# maybe,PID,BIRTH,END,NEAR for each process that only its environment could identify, which ends at the address END (it
# changes with exec(2)); NEAR is 1 in the job's session. Prints moving,STATE if a process of kin had not stopped
# before: a fork(2) goes on after STOP was sent, and its child may not be listed yet. Uses pid, birth and pgid of the
# job's first process, `first` (1 while that runs), `kin` and `strangers`.
#
# Spares this script with its children and ancestors, and the job's supervisor. A session's number is not reused while
# the session has members, so its members belong to the job while any known process of the job runs. Uses awk, since a
# shell reads /proc byte by byte.
survey() {
	{
		# shellcheck disable=SC2086
		printf 'kin,%s\n' $kin
		# shellcheck disable=SC2086
		printf 'stranger,%s\n' $strangers
		if [ "$rs_system" = Linux ]; then
			echo threads
			threads
			echo processes
			cat /proc/[0-9]*/stat
		else
			echo processes
			TZ=UTC0 ps -A -o pid= -o ppid= -o pgid= -o stat= -o lstart=
		fi
	} 2>/dev/null | awk -v linux="$([ "$rs_system" != Linux ] || echo 1)" -v own="$rs_me" -v above="$rs_owner" \
		-v pid="$pid" -v birth="$birth" -v session="$pgid" -v first="$first" '
	text == "" && /^(threads|processes)$/ { list = $0; next }
	list == "" {
		split($0, word, ",")
		if (word[1] == "kin") { kin[word[2]] = word[3]; denied[word[2]] = word[4] == "denied" }
		if (word[1] == "stranger") stranger[word[2]] = word[3] "," word[4]
		next
	}
	linux {
		# A name may contain newlines and parentheses: use what follows the last parenthesis (proc(5)).
		text = text == "" ? $0 : text "\n" $0
		end = split(text, part, ")")
		if (split(part[end], field, " ") < 20) next
		one = text + 0
		text = ""
		if (list == "threads") { note(field[1]); next }
		state[one] = field[1]; parent[one] = field[2]; group[one] = field[3]; leader[one] = field[4]; born[one] = field[20]
		ends[one] = field[49]
		# Only its first thread has ended.
		if (state[one] == "Z" && field[18] > 1) state[one] = "R"
		next
	}
	NF == 9 {
		state[$1] = substr($4, 1, 1); parent[$1] = $2; group[$1] = leader[$1] = $3
		born[$1] = $5 "_" $6 "_" $7 "_" $8 "_" $9
	}
	function is_kin(one) { return one in kin && kin[one] == born[one] }
	function note(letter) { if (letter !~ /^[TtZX]/ && moving != "R") moving = letter }
	END {
		if (first && born[pid] == birth) known[pid]
		for (one in born) if (is_kin(one)) known[one]
		for (one in known) if (leader[one] == session || group[one] == session) first = 1
		spared[own]
		do {
			more = 0
			for (one in born) if (!(one in spared) && parent[one] in spared) { spared[one]; more = 1 }
		} while (more)
		for (one in born) if (first && !(one in spared) && (leader[one] == session || group[one] == session)) known[one]
		do {
			more = 0
			for (one in born) {
				if (one in known || one in spared || !(parent[one] in known)) continue
				if (linux && born[one] + 0 < born[parent[one]] + 0) continue
				known[one]
				more = 1
			}
		} while (more)
		for (one = parent[own]; one in born && !(one in spared); one = parent[one]) spared[one]
		spared[above]
		for (one in born) {
			if (one in spared || state[one] ~ /^[ZX]/) continue
			if (one in known) {
				if (!is_kin(one)) print "kin," one "," born[one]
			} else if (linux && born[one] + 0 >= birth + 0) {
				seen = born[one] "," ends[one]
				if (one in stranger && stranger[one] == seen) continue
				print "maybe," one "," seen "," (leader[one] == session || group[one] == session)
			}
		}
		if (!linux) for (one in kin) if (is_kin(one) && !denied[one]) note(state[one])
		if (moving) print "moving," moving
	}' | sort -t, -k3n -k2n
}

# threads : prints the state of each thread of the processes in kin that STOP could be sent to. Before the list of all
# processes, so that a process that had stopped here has all its children there.
threads() {
	[ -n "$holding" ] || return 0
	set --
	for one in $kin; do
		[ "${one##*,}" = denied ] || set -- "$@" "/proc/${one%%,*}/task"/*/stat
	done
	[ $# -eq 0 ] || cat "$@"
}

# cookies PATH... : prints all cookies in these environments, one per line. Entries end in NUL and may contain newlines.
cookies() {
	cat "$@" | tr '\000\012' '\012\001' | sed -n '/RSIG_COOKIE=/p'
}

# bears PID NEAR : succeeds if the process has the job's cookie in its environment, or is in the job's session (NEAR is
# 1) and writes to its log.
bears() {
	case $rs_newline$(cookies "/proc/$1/environ")$rs_newline in
	*"${rs_newline}RSIG_COOKIE=$cookie$rs_newline"*) return 0 ;;
	esac
	# shellcheck disable=SC3013
	[ "$2" = 1 ] && { [ "/proc/$1/fd/1" -ef out ] || [ "/proc/$1/fd/2" -ef err ]; }
}

# recognise PID,BIRTH,END,NEAR... : sets new to those that belong to the job, and adds the others to strangers.
recognise() {
	new='' paths='' hits=''
	[ -n "$cookie" ] || return 0
	for one; do
		# Checks the owner, and that there is an environment, without a fork.
		if [ -O "/proc/${one%%,*}" ] && [ -e "/proc/${one%%,*}/exe" ]; then
			paths="$paths /proc/${one%%,*}/environ"
		fi
	done
	# Check all at once first: usually none matches.
	# shellcheck disable=SC2086
	[ -z "$paths" ] || case $(cookies $paths) in
	*"$cookie"*) hits=1 ;;
	esac
	for one; do
		case "$paths " in
		*" /proc/${one%%,*}/environ "*)
			if [ -n "$hits" ] || [ "${one##*,}" = 1 ]; then
				if bears "${one%%,*}" "${one##*,}"; then
					new="$new ${one%,*,*}"
					continue
				fi
			fi
			;;
		esac
		strangers="$strangers ${one%,*}"
	done
}

# hold PID,BIRTH... : adds these processes to kin, before the others, and with `holding` stops them. Marks with 1 those
# that were stopped before, and with `denied` those that can't be stopped.
hold() {
	for one; do
		rs_lives "${one%%,*}" "${one#*,}" || continue
		was=0
		# In later rounds a stopped process may have been stopped by hold_group, even if it has left the group since.
		if [ "$round" -eq 1 ] && rs_is_stopped "${one%%,*}"; then
			was=1
		fi
		if [ -n "$holding" ]; then
			if kill -STOP "${one%%,*}"; then
				rest "${one%%,*}"
			else
				was=denied
			fi
		fi
		# The youngest first: when a parent ends, the kernel sends HUP and CONT to a stopped group that is left behind.
		kin=" $one,$was$kin"
	done
}

# rest PID : waits briefly until the process has stopped. Some parents stop when they see a child stop (runuser).
rest() {
	tries=0
	while [ "$tries" -lt 10 ] && rs_process "$1"; do
		case $rs_run in [TtZX]) break ;; esac
		tries=$((tries + 1))
		sleep 0.002 || break
	done
}

# gather : sets kin to the job's processes, each as PID,BIRTH,STOPPED, and links to 1 if environments can't be read.
# With `holding`, stops each process when it is found, and repeats until all have stopped and no new one appears: a
# stopped process starts no others. Waits 3 s for one that runs, and 0.4 s for one in another state, which may be in
# vfork(2) or frozen.
gather() {
	LC_ALL=C
	export LC_ALL
	kin='' strangers='' round=0 first='' links='' cookie=''
	rs_self
	rs_waited=0
	case $pid in
	'' | *[!0-9]*) return 0 ;;
	esac
	! alive "$pid" "$birth" "$boot" || first=1
	[ "$rs_system" != Linux ] || [ ! -f cookie ] || [ ! -O cookie ] || read -r cookie <cookie
	case $cookie in
	????????????????????????????????) case $cookie in *[!0-9a-f]*) cookie= ;; esac ;;
	*) cookie= ;;
	esac
	[ -n "$cookie" ] || links=1
	[ "$boot" = "$rs_boot" ] || return 0
	rs_owner=0
	if [ -O supervisor ]; then
		read -r rs_owner rs_owner_birth rs_rest <supervisor
		rs_lives "$rs_owner" "$rs_owner_birth" || rs_owner=0
	fi
	while [ "$round" -lt 200 ]; do
		round=$((round + 1)) found='' maybe='' moving=''
		for one in $(survey); do
			case $one in
			kin,*) found="$found ${one#kin,}" ;;
			maybe,*) maybe="$maybe ${one#maybe,}" ;;
			moving,*) moving=${one#moving,} ;;
			esac
		done
		# shellcheck disable=SC2086
		hold $found
		# shellcheck disable=SC2086
		recognise $maybe
		# shellcheck disable=SC2086
		hold $new
		if [ -n "$found$new" ]; then
			[ -z "$holding" ] || hold_group
			continue
		fi
		case ${holding:+$moving} in
		'') break ;;
		R) [ "$rs_waited" -lt 3000 ] || break ;;
		*) [ "$rs_waited" -lt 400 ] || break ;;
		esac
		rs_nap
	done
} 2>/dev/null

# hold_group : stops the job's whole group at once, so that no fork is missed. Does nothing if this script or one of its
# ancestors is in the group.
hold_group() {
	case " $kin" in
	*" $pid,$birth,"*) ;;
	*) return 0 ;;
	esac
	one=$rs_me
	while [ "$one" -gt 1 ] && rs_process "$one"; do
		[ "$rs_group" != "$pgid" ] || return 0
		one=$rs_parent
	done
	! alive "$pid" "$birth" "$boot" || kill -STOP "-$pgid"
}

# each COMMAND... : runs the command for each living process of kin, with its number and whether it was stopped before.
# Succeeds if the command does for at least one.
each() {
	none=1
	for one in $kin; do
		rest=${one#*,}
		rs_lives "${one%%,*}" "${rest%,*}" || continue
		! "$@" "${one%%,*}" "${rest##*,}" || none=0
	done
	return "$none"
}

# hit PID STOPPED : sends the signal.
hit() {
	kill "-$argument" "$1"
}

# release PID STOPPED : continues a process that was stopped here, and with `wake` also one that was stopped before.
release() {
	if [ "$2" = 0 ] || [ "$wake" = 1 ]; then
		kill -CONT "$1"
	fi
}

# strike CLAIM NAME NUMBER ARGUMENT CONT RETRY : takes the job's lock, stops the tree, signals it and continues it. Runs
# in a process that only KILL ends, so that nothing stays stopped if the script or its channel dies. Prints the result,
# and whether environments could not be read.
strike() {
	trap '' HUP INT QUIT TERM PIPE ALRM USR1 USR2
	kin='' links=''
	rs_self
	rs_lock 10000
	claim "$1" "$6" 10000
	if [ -z "$sent" ]; then
		[ "$state" = stopped ] || rs_await "$pid" "$3" 400
		argument=$4 wake=$5 holding=1
		gather
		# CONT would cancel these.
		case $2 in
		TSTP | TTIN | TTOU) each release ;;
		esac
		sent=gone
		if each hit; then
			sent=yes
		elif each is_left; then
			sent=denied
		fi
		printf '%s %s\n' "$2" "$sent" >>"sig.$1"
		[ "$2" = STOP ] || each release
		# For scripts that wait for all of them to end.
		printf '%s\n' "$kin" >tree
	fi
	rs_unlock
	rs_settle "$pid" "$rs_locked"
	echo "$sent" "${links:-0}"
} 2>/dev/null

# is_left PID STOPPED : succeeds, for `each` to test whether any process is left.
is_left() {
	:
}

# tree INDEX PLACE CLAIM NAME NUMBER ARGUMENT TARGET CONT RETRY : as deliver, for the whole tree. The job's first
# process may have ended. Signal 0 only counts the processes.
tree() {
	approach "$1" "$2" || return 0
	if [ -n "$bare" ]; then
		deliver "$1" "$2" "$3" "$4" "$5" "$6" group "$8" "$9"
		return
	fi
	case $state in
	elsewhere | starting)
		report "$1"
		return
		;;
	esac
	if ! command -v awk >/dev/null 2>&1; then
		rs_say lacks "$1" awk
		report "$1"
		return
	fi
	if [ "$6" = 0 ]; then
		holding=
		gather
		count "$1"
		report "$1"
		return
	fi
	rs_flush
	index=$1
	eval "tree_$index=1"
	# shellcheck disable=SC2046
	set -- $(strike "$3" "$4" "$5" "$6" "$8" "$9" </dev/null)
	sent=${1:-unconfirmed}
	[ "${2:-0}" = 0 ] || rs_say links "$index"
	set -- "$index"
	[ "$sent" = denied ] || left="$left $1"
	rs_say sent "$1" "$sent"
	report "$1"
}

# count INDEX : reports how many processes of kin live.
count() {
	number=0
	each add
	rs_say kin "$1" "$number"
}

# add PID STOPPED : counts the process.
add() {
	number=$((number + 1))
}
