# Becomes the job: leads a session of its own, and finally replaces itself with the job's command.
# Given by the client: rs_directory, exported variables, and the command as arguments of rs_start.
# $1: the supervisor's system, $2: boot, $3: machine, $4: node, $5: the login's umask, $6: its home directory, $7: the
# directory to start in, which relative directories start from, $8: the time of the start.

# rs_refuse KIND TEXT : reports that the job can't start. spawn.sh passes the reason on; the FIFO carries it even if the
# disk is full.
rs_refuse() {
	printf '%s\n' "$*" >"$rs_here/refused"
	[ ! -p "$rs_here/ended" ] || printf 'refused %s\n' "$*" 1<>"$rs_here/ended"
	exit 126
} 2>/dev/null

# rs_find COMMAND : sets rs_file to the file that exec will run.
rs_find() {
	case $1 in
	*/*)
		[ -e "$1" ] || rs_refuse missing "there is no file $1"
		[ ! -d "$1" ] || rs_refuse denied "$1 is a directory"
		[ -x "$1" ] || rs_refuse denied "$1 is not executable"
		rs_file=$1
		return
		;;
	esac
	rs_rest=${PATH-/usr/bin:/bin}
	if [ "$rs_exec" = rs_become ]; then
		rs_rest=${rs_rest%"$rs_tools"}
		rs_rest=${rs_rest%:}
	fi
	rs_rest=$rs_rest:
	rs_seen=
	while [ -n "$rs_rest" ]; do
		rs_file=${rs_rest%%:*}
		rs_file=${rs_file:-.}/$1
		rs_rest=${rs_rest#*:}
		if [ -f "$rs_file" ]; then
			[ ! -x "$rs_file" ] || return 0
			rs_seen=$rs_file
		fi
	done
	[ -z "$rs_seen" ] || rs_refuse denied "$rs_seen is not executable"
	rs_refuse missing "there is no $1 in its PATH"
}

rs_here=$PWD
rs_system=$1 rs_boot=$2 rs_machine=$3 rs_node=$4 rs_mask=$5 rs_home=$6 rs_from=$7 rs_began=$8
unset CDPATH
rs_exec='exec'
if [ -s become ]; then
	# rs_become undoes the changes made here.
	# shellcheck disable=SC1091
	. ./become
	rs_clean
	rs_exec=rs_become
fi
# Not expanded by the shell: the home directory comes from the supervisor.
# shellcheck disable=SC2088
case $rs_directory in
'') rs_directory=$rs_from ;;
'~') rs_directory=$rs_home ;;
/*) ;;
'~/'*) rs_directory=$rs_home/${rs_directory#??} ;;
*) rs_directory=$rs_from/$rs_directory ;;
esac
[ -d "$rs_directory" ] || rs_refuse directory "there is no directory $rs_directory"
# A cd that fails ends some shells, so check first.
[ -x "$rs_directory" ] || rs_refuse directory "the directory $rs_directory can't be entered"
cd "$rs_directory" || exit
unset OLDPWD

# rs_start COMMAND [ARG]... : records the job's identity, empties files that are no longer needed, and becomes the job.
rs_start() {
	rs_find "$1"
	rs_process $$ || rs_refuse start "its own process can't be read from /proc or ps"
	# Otherwise a signal to the group would reach other processes.
	[ "$rs_group" = $$ ] || rs_refuse start "it got no process group of its own"
	rs_began="$$ $rs_group $rs_birth $rs_boot $rs_system $rs_began $rs_machine $rs_node"
	# Emptied with builtins; the files themselves are removed when the job ends.
	{
		true >"$rs_here/job" && true >"$rs_here/supervise" && { [ ! -s "$rs_here/become" ] || true >"$rs_here/become"; } &&
			printf '%s\n' "$rs_began" >"$rs_here/pid"
	} 2>/dev/null || rs_refuse disk "its process can't be recorded in $rs_here: the disk is full, or the directory is gone"
	# Checked after the record, which cancel.sh reads after it has created this file.
	[ ! -e "$rs_here/cancelled" ] || {
		kill -TERM $$
		# TERM may be ignored.
		exit 143
	}
	[ ! -p "$rs_here/ended" ] || printf 'begun %s\n' "$rs_began" 1<>"$rs_here/ended"
	umask "$rs_mask"
	# exec takes a word with a leading dash as an option, and env(1) a word with = as a variable.
	case $1 in
	-* | *=*)
		shift
		set -- "$rs_file" "$@"
		;;
	esac
	# shellcheck disable=SC2016
	case $rs_exec$1 in
	rs_become*=*) set -- /bin/sh -c 'exec "$0" "$@"' "$@" ;;
	esac
	"$rs_exec" "$@"
}
