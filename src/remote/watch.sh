# Ends a job at its time limit. Needs no connection.

rs_watch() {
	read -r rs_limit <limit
	case $rs_limit in
	# Seconds with milliseconds.
	*.*) rs_limit=$(((1${rs_limit#*.} - 991) / 10 + ${rs_limit%.*} * 100)) ;;
	*) rs_limit=${rs_limit}00 ;;
	esac
	rs_know_job limit
	rs_pause "$rs_limit"
	rs_end_job limit expired
}

rs_guard() {
	rs_beside_job rs_watch
}
