# Tells of jobs to somebody who has no record of them.

# In this locale a range of characters is one of bytes.
LC_ALL=C
rs_say base "$rs_base"
# Looked at anew each time, since all that is told here is believed.
rs_private=
# More than rsig writes is not read at all.
large=
if [ -d "$rs_base" ] && private "$rs_base"; then
	large=$(find "$rs_base" -name meta -size +31 2>/dev/null)
fi

# describe INDEX : in a job's directory, gives the line in which it says what it is, if that is plain ASCII as rsig writes it.
describe() {
	meta=
	case "$large" in
	*"$dir/meta"*) ;;
	*) [ ! -f meta ] || [ ! -O meta ] || read -r meta <meta ;;
	esac 2>/dev/null
	case $meta in
	'' | *[!\ -~]*) ;;
	*) rs_say meta "$1" "$meta" ;;
	esac
}

# meet INDEX ID : how the job of that id stands, and what it is.
meet() {
	place "$2"
	if enter "$dir"; then
		look
		describe "$1"
	fi
	report "$1"
}

# discover : the same for every job of this user.
discover() {
	[ -d "$rs_base" ] || return 0
	if ! private "$rs_base"; then
		rs_say foreign "$rs_base"
		return
	fi
	index=0
	for dir in "$rs_base"/????????; do
		case ${dir##*/} in
		*[!0-9abcdefghjkmnpqrstvwxyz]*) continue ;;
		esac
		# What a job in the foreground has left for those who wait for it.
		[ ! -e "$dir/gone" ] || continue
		if enter "$dir"; then
			look
			rs_say found "$index" "${dir##*/}"
			describe "$index"
		elif [ "$state" = foreign ]; then
			rs_say found "$index" "${dir##*/}"
		else
			continue
		fi
		report "$index"
		index=$((index + 1))
	done
}
