# Identifies the machine and the boot that a script runs on, and cleans its environment.

# Functions that the login exported to bash: they would replace commands of the same name.
rs_functions=
[ -z "${BASH_VERSION-}" ] || rs_functions=$(
	unset -f declare
	# shellcheck disable=SC3044
	declare -Fx
) 2>/dev/null

# rs_clean : removes the login's variables and functions that change what tools print.
rs_clean() {
	# shellcheck disable=SC2086
	[ -z "$rs_functions" ] || unset -f $rs_functions
	unset TMOUT BLOCK_SIZE BLOCKSIZE LS_BLOCK_SIZE DD_BLOCK_SIZE DU_BLOCK_SIZE TIME_STYLE QUOTING_STYLE POSIXLY_CORRECT \
		LS_COLORS CDPATH ENV BASH_ENV GREP_OPTIONS AWKPATH AWKLIBPATH PS_FORMAT PS_PERSONALITY LANGUAGE
	LC_ALL=C
	export LC_ALL
} 2>/dev/null

# rs_restores : succeeds if a job can be given the login's environment again after rs_clean.
rs_restores() {
	[ -n "$rs_restorable" ]
}

# rs_host : sets rs_system, rs_node, rs_boot, rs_base (the directory of all jobs) and rs_restorable. Runs only once per
# shell: they don't change while it runs.
rs_boot='' rs_machine='' rs_restorable=
# Appended to a PATH that lacks the tools of the scripts. The dot tells it apart from a PATH of the login.
rs_tools=/usr/local/bin:/usr/bin:/bin/.
rs_host() {
	[ -z "$rs_boot" ] || return 0
	command -v mkdir >/dev/null 2>&1 || PATH=${PATH:+$PATH:}$rs_tools
	if [ -r "/proc/$$/environ" ] && [ -x /usr/bin/env ] && command -v awk >/dev/null; then
		rs_restorable=1
		rs_clean
	fi
	if [ -r /proc/sys/kernel/random/boot_id ]; then
		# Read instead of calling uname: a fork costs more than all of this.
		read -r rs_boot </proc/sys/kernel/random/boot_id
		read -r rs_system </proc/sys/kernel/ostype
		read -r rs_node </proc/sys/kernel/hostname
	else
		rs_node=$(uname -sn)
		rs_system=${rs_node%% *}
		rs_node=${rs_node#* }
		rs_boot=$(sysctl -n kern.bootsessionuuid || sysctl -n kern.boot_id ||
			sysctl -n kern.boottime | sed 's/^[^0-9]*\([0-9]*\).*/\1/') 2>/dev/null
	fi
	rs_boot=${rs_boot:--}
	case ${XDG_STATE_HOME-} in
	/*) rs_base=$XDG_STATE_HOME/rsig/jobs ;;
	*) rs_base=${HOME-}/.local/state/rsig/jobs ;;
	esac
}

# rs_time : sets rs_now to the time in seconds, from rs_epoch (environ.sh) if that is set, which saves starting date.
rs_time() {
	if [ -n "$rs_epoch" ]; then
		read -r rs_up rs_rest </proc/uptime
		rs_now=$((${rs_epoch% *} + ${rs_up%.*} + (${rs_epoch#* } + 1${rs_up#*.} - 100) / 100))
	else
		rs_now=$(date +%s)
	fi
}

# rs_identify : sets rs_machine to an identity that survives reboots, a colon, and the start time of process 1. A
# container has the boot id of its host, so only that start time tells one start of the container from the next.
rs_identify() {
	[ -z "$rs_machine" ] || return 0
	[ ! -r /etc/machine-id ] || read -r rs_machine </etc/machine-id
	case $rs_machine in
	'' | *[!0-9a-f]*) rs_machine=$rs_node ;;
	esac
	case $rs_machine in
	'' | *[!0-9A-Za-z._-]*) rs_machine=- ;;
	esac
	rs_machine=$rs_machine:
	! rs_process 1 || rs_machine=$rs_machine$rs_birth
} 2>/dev/null

# rs_origin BOOT MACHINE : sets rs_from to here (this boot of this machine), before (an earlier boot) or elsewhere
# (another machine).
rs_origin() {
	rs_from=here
	if [ "$1" = "$rs_boot" ]; then
		case $2 in
		*:?*) rs_identify ;;
		*) return 0 ;;
		esac
		case $rs_machine in
		*: | *:"${2##*:}") ;;
		*) rs_from=before ;;
		esac
		return
	fi
	rs_identify
	rs_from=elsewhere
	[ "${2%%:*}" = - ] || [ "${rs_machine%%:*}" != "${2%%:*}" ] || rs_from=before
}
