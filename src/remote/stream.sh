# Passes a spooled job's output on as it comes, standard output on fd 1 and standard error on fd 2, from given
# positions on, until the job has ended.
# Given by the client: place. It says on standard input what it has passed on itself, in lines of two positions: what lies
# before them is deleted.

# numbers STREAM : sets numbers to the positions that the names of a stream's files end in.
numbers() {
	numbers=
	for file in "$1".[0-9]*; do
		case ${file##*.} in
		*[!0-9]*) ;;
		*) numbers="$numbers ${file##*.}" ;;
		esac
	done
}

# behind STREAM POSITION : deletes the files of a stream that lie before a position, but for the one that it is in and
# the one before that: tail shows them, and whoever reads may not have gone on from there yet.
behind() {
	numbers "$1"
	in=0 before=0 old=
	for number in $numbers; do
		if [ "$number" -gt "$2" ]; then
			continue
		elif [ "$number" -gt "$in" ]; then
			before=$in in=$number
		elif [ "$number" -gt "$before" ]; then
			before=$number
		fi
	done
	for number in $numbers; do
		[ "$number" -ge "$before" ] || old="$old $1.$number"
	done
	# shellcheck disable=SC2086
	[ -z "$old" ] || rm -f $old
}

# after STREAM POSITION : sets next to the first file of a stream behind that of a position, and to nothing while there
# is none. By the names, not by a size: the file that is being read may be deleted by now.
after() {
	numbers "$1"
	next=
	for number in $numbers; do
		if [ "$number" -gt "$2" ] && { [ -z "$next" ] || [ "$number" -lt "$next" ]; }; then
			next=$number
		fi
	done
}

# begin STREAM POSITION : sets at to the name's number of the file that a position is in, and skip to where in it.
begin() {
	numbers "$1"
	at=0
	for number in $numbers; do
		if [ "$number" -le "$2" ] && [ "$number" -gt "$at" ]; then
			at=$number
		fi
	done
	skip=$(($2 - at))
}

# size FILE : sets total to its size.
size() {
	# shellcheck disable=SC2046
	set -- $(LC_ALL=C TIME_STYLE=locale ls -ln "$1" 2>/dev/null)
	total=${5:-0}
}

# out_flow, err_flow : all that is there of a stream, file by file. The next file is asked for before the reading: once
# it is there, the one before it is whole.
out_flow() {
	while :; do
		after out "$out_at"
		cat <&6
		[ -n "$next" ] || break
		exec 6<"out.$next"
		out_at=$next
	done
}
err_flow() {
	while :; do
		after err "$err_at"
		cat <&7 >&2
		[ -n "$next" ] || break
		exec 7<"err.$next"
		err_at=$next
	done
}

# both MARK : on both streams.
both() {
	rs_mark "$1"
	printf '\001%s %s\n' "$rs_nonce" "$1" >&2
}

# stream OUT_AT ERR_AT : in the job's directory, after a look.
stream() {
	begin out "$1"
	exec 6<"out.$at"
	[ "$skip" -eq 0 ] || dd bs=1 skip="$skip" count=0 <&6 2>/dev/null
	out_at=$at
	begin err "$2"
	exec 7<"err.$at"
	[ "$skip" -eq 0 ] || dd bs=1 skip="$skip" count=0 <&7 2>/dev/null
	err_at=$at
	both data

	watcher=
	if [ "$follow" = 1 ]; then
		exec 3<&0
		(
			trap '' HUP INT QUIT TERM USR1 USR2
			was=0
			while read -r out_done err_done <&3; do
				behind out "$out_done"
				[ "$err_done" = "$was" ] || behind err "$err_done"
				was=$err_done
			done
			kill -KILL $$
		) >/dev/null 2>&1 6<&- 7<&- &
		watcher=$!
	fi

	step=5 round=0 patience=1000 now=
	while :; do
		over=
		case $state in
		exited | lost | elsewhere)
			# What still holds the pipes is not the job: it gets a moment to be read, no more.
			if { [ -e out.end ] || [ -e out.full ]; } && { [ -e err.end ] || [ -e err.full ]; }; then
				patience=0
			fi
			over=1
			;;
		esac
		[ -z "$has_out" ] || out_flow
		[ -z "$has_err" ] || err_flow
		[ "$follow" = 1 ] || break
		if [ -n "$over" ]; then
			[ "$patience" -gt 0 ] || break
			patience=$((patience - step))
		fi
		nap "$step"
		before=$now
		now=$(written)
		if [ "$before" != "$now" ]; then
			step=5
		elif [ "$step" -lt 80 ]; then
			step=$((step * 2))
		fi
		round=$((round + 1))
		if [ -z "$over" ] && { [ -e status ] || [ $((round % 16)) -eq 0 ]; }; then
			look
		fi
	done
	full=
	[ ! -e out.full ] && [ ! -e err.full ] || full=" full"
	[ "$expired" != timeout ] || state=expired
	both "ended $state $code $ended$full"
	[ -z "$watcher" ] || kill -KILL "$watcher"
	exit 0
}

# written : what stands in the files that are being read, to see whether there is more.
written() {
	LC_ALL=C ls -ln "out.$out_at" "err.$err_at" 2>/dev/null
}

# run_along OUT_AT ERR_AT : the same for the job that is named, once its streams have begun.
run_along() {
	place "$place"
	if ! enter "$dir"; then
		report 0
		rs_end
	fi
	look
	until [ -e out.0 ] || [ -e "out.$1" ] || [ "$elapsed" -gt 2000 ]; do
		nap 5
	done
	[ -e err.0 ] || : >>err.0
	report 0
	has_out=1 has_err=1 follow=1
	stream "$1" "$2"
}
