# Takes what a job is to get as its input, and keeps it until the job has taken it. Ends with its own input, which is
# not yet the end of the job's: that is told by finish.
# Given by the client: place. It says how much is here: first of all, and now and then.

# sum FILE... : sets total to how many bytes they hold.
sum() {
	total=0
	# shellcheck disable=SC2046
	set -- $(LC_ALL=C TIME_STYLE=locale ls -ln "$@" 2>/dev/null)
	while [ $# -ge 9 ]; do
		total=$((total + $5))
		shift 9
	done
}

# received : sets at to how much has come so far.
received() {
	at=0
	for file in in.[0-9]*; do
		case ${file##*.} in
		*[!0-9]*) continue ;;
		esac
		if [ "${file##*.}" -ge "$at" ]; then
			at=${file##*.}
		fi
	done
	sum "in.$at"
	at=$((at + total))
}

# receive : one at a time: a connection that was cut may have left one behind that still writes.
receive() {
	if [ -O receiver ]; then
		read -r other other_birth <receiver
		[ "$other" = $$ ] || ! alive "$other" "$other_birth" "$rs_boot" || kill -KILL "-$other"
	fi 2>/dev/null
	rs_process $$ && printf '%s %s\n' $$ "$rs_birth" >receiver
	received
	rs_say have "$at"
	while :; do
		rs_flush
		while
			sum in.[0-9]*
			[ "$total" -gt 16777216 ]
		do
			[ ! -s status ] || return
			nap 50
		done
		dd bs=65536 count=16 of="in.$at" 2>/dev/null || break
		sum "in.$at"
		[ "$total" -gt 0 ] || break
		at=$((at + total))
		rs_say have "$at"
	done
}

# finish TOTAL : that many bytes are all; what is still on its way is waited for.
finish() {
	received
	while [ "$at" -lt "$1" ] && [ "$elapsed" -lt 20000 ] && [ ! -e status ]; do
		nap 10
		received
	done
	[ "$at" -lt "$1" ] || { printf '%s\n' "$1" >in.end.new && mv in.end.new in.end; }
	rs_say have "$at"
}
