# Measures what jobs use: the processes of a job's session, those with its cookie in their environment, and the children
# of both.

rs_measured=
# examine INDEX PLACE : reports the job's state, and adds the job to those that usage measures if it runs.
examine() {
	place "$2"
	! enter "$dir" || look
	report "$1"
	case $state in
	running | stopped) ;;
	*) return 0 ;;
	esac
	cookie=-
	if [ "$expired" != dir ] && [ -f cookie ] && [ -O cookie ]; then
		read -r cookie <cookie || cookie=-
	fi 2>/dev/null
	case $cookie in
	'' | *[!0-9a-f]*) cookie=- ;;
	esac
	rs_measured="${rs_measured}job $1 $pgid $birth $cookie$rs_newline"
}

# processes : prints the data of all processes once.
processes() {
	echo look
	if [ "$rs_system" = Linux ]; then
		cat /proc/uptime /proc/[0-9]*/stat
	else
		TZ=UTC0 ps -A -o pid= -o ppid= -o pgid= -o stat= -o lstart= -o time= -o rss= -o pcpu=
	fi
}

# page_size : prints the page size in bytes; nothing if it can't be found out.
page_size() {
	getconf PAGESIZE || sed -n '/^KernelPageSize/{s/[^0-9]*\([0-9]*\).*/\1 1024/p;q;}' /proc/self/smaps
} 2>/dev/null

# usage NAP : prints a line for each job that runs: its CPU time in ms, its resident memory in bytes, the number of its
# processes, and its CPU use in tenths of a percent. CPU use is measured between two samples that are NAP seconds apart;
# on systems without /proc it is that of ps(1). A child that was waited for counts with its parent (proc(5)), so that a
# job's CPU time does not decrease when its processes end.
usage() {
	[ -n "$rs_measured" ] && command -v awk >/dev/null || return 0
	rs_flush
	{
		printf '%s' "$rs_measured"
		processes
		if [ "$rs_system" = Linux ]; then
			sleep "$1" || sleep 1
			# A pattern, so that no cookie appears in an argument.
			grep -aosH 'RSIG_COOKIE=[0-9a-f]\{32\}' /proc/[0-9]*/environ
			processes
		fi
	} 2>/dev/null | awk -v linux="$([ "$rs_system" != Linux ] || echo 1)" -v hz="$(getconf CLK_TCK 2>/dev/null || echo 100)" \
		-v page="$(page_size)" '
	BEGIN {
		split(page, factor, " ")
		page = factor[1] * (factor[2] ? factor[2] : 1)
	}
	!looks && $1 == "job" {
		job[$2]
		of_session[$3] = $2
		birth[$2] = $4
		if ($5 != "-") of_cookie[$5] = $2
		next
	}
	$0 == "look" && text == "" {
		looks++
		next
	}
	linux && looks != timed {
		up[looks] = $1
		timed = looks
		next
	}
	linux && text == "" && /^\/proc\/[0-9]*\/environ:RSIG_COOKIE=/ {
		split($0, word, /[\/=]/)
		cookie[word[3]] = word[5]
		next
	}
	linux {
		# A name may contain newlines and parentheses: use what follows the last parenthesis (proc(5)).
		text = text == "" ? $0 : text "\n" $0
		end = split(text, part, ")")
		if (split(part[end], field, " ") < 22) next
		one = text + 0
		text = ""
		if (one in born && born[one] != field[20]) delete before[one]
		born[one] = field[20]; parent[one] = field[2]; group[one] = field[3]; leader[one] = field[4]
		spent = field[12] + field[13] + field[14] + field[15]
		if (looks == 1) before[one] = spent
		else {
			after[one] = spent
			resident[one] = field[22] * page
			lives[one] = field[1] !~ /^[ZX]/ || field[18] > 1
		}
		next
	}
	NF == 12 {
		born[$1] = $5; parent[$1] = $2; group[$1] = leader[$1] = $3
		days = split($10, day, "-")
		units = split(day[days], unit, ":")
		spent = 0
		for (n = 1; n <= units; n++) spent = spent * 60 + unit[n]
		after[$1] = spent + (days > 1 ? day[1] * 86400 : 0)
		resident[$1] = $11 * 1024
		share[$1] = $12
		lives[$1] = $4 !~ /^Z/
	}
	END {
		if (!linux) hz = 1
		for (one in born) {
			if (leader[one] in of_session) found = of_session[leader[one]]
			else if (group[one] in of_session) found = of_session[group[one]]
			else if (one in cookie && cookie[one] in of_cookie) found = of_cookie[cookie[one]]
			else continue
			if (!linux || born[one] + 0 >= birth[found] + 0) owner[one] = found
		}
		do {
			more = 0
			for (one in born) {
				if (one in owner || !(parent[one] in owner)) continue
				if (linux && born[one] + 0 < born[parent[one]] + 0) continue
				owner[one] = owner[parent[one]]
				more = 1
			}
		} while (more)
		for (one in owner) {
			index_of = owner[one]
			cpu[index_of] += after[one]
			earlier[index_of] += before[one]
			memory[index_of] += resident[one]
			percent[index_of] += share[one]
			count[index_of] += lives[one]
		}
		for (one in job) {
			if (!count[one]) continue
			tenths = "-"
			if (!linux) tenths = sprintf("%.0f", percent[one] * 10)
			else if (up[2] > up[1]) {
				used = (cpu[one] - earlier[one]) / hz
				tenths = sprintf("%.0f", used > 0 ? used / (up[2] - up[1]) * 1000 : 0)
			}
			bytes = "-"
			if (page || !linux) bytes = sprintf("%.0f", memory[one])
			printf "use %s %.0f %s %d %s\n", one, cpu[one] / hz * 1000, bytes, count[one], tenths
		}
	}'
}
