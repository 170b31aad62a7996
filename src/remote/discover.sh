# Describes jobs to a client that has no record of them.

# In this locale, a range of characters is a range of bytes.
LC_ALL=C
rs_say base "$rs_base"
# Checked again for each script, since everything reported here is trusted.
rs_private=
# A file longer than rsig writes is not read.
large=
if [ -d "$rs_base" ] && private "$rs_base"; then
	large=$(find "$rs_base" -name meta -size +31 2>/dev/null)
fi

# describe INDEX : in a job's directory, reports the job's description, if it is plain ASCII as rsig writes it.
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

# find_job INDEX ID : reports the state and the description of the job with that id.
find_job() {
	place "$2"
	if enter "$dir"; then
		look
		describe "$1"
	fi
	report "$1"
}

# discover : does the same for each job of this user.
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
		# The tombstone of a job in the foreground, for clients that wait for the job.
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
