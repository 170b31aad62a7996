# The machine and the boot that a script runs on, and its environment.

# Functions that bash exports from the login: they would replace commands of the same name.
rs_functions=
[ -z "${BASH_VERSION-}" ] || rs_functions=$(
	unset -f declare
	# shellcheck disable=SC3044
	declare -Fx
) 2>/dev/null

# rs_clean : removes variables and functions of the login that change what tools print.
rs_clean() {
	# shellcheck disable=SC2086
	[ -z "$rs_functions" ] || unset -f $rs_functions
	unset TMOUT BLOCK_SIZE BLOCKSIZE LS_BLOCK_SIZE DD_BLOCK_SIZE DU_BLOCK_SIZE TIME_STYLE QUOTING_STYLE POSIXLY_CORRECT \
		LS_COLORS CDPATH ENV BASH_ENV GREP_OPTIONS AWKPATH AWKLIBPATH PS_FORMAT PS_PERSONALITY LANGUAGE
	LC_ALL=C
	export LC_ALL
} 2>/dev/null

# rs_restores : succeeds if a job can get the login's environment back after rs_clean.
rs_restores() {
	[ -n "$rs_restorable" ]
}

# rs_host : sets rs_system, rs_node, rs_boot, rs_base (the directory of all jobs) and rs_restorable. Does so once per
# shell: they don't change while it lives.
rs_boot='' rs_machine='' rs_restorable=
# Added to a PATH without the tools of the scripts. The dot tells it from a PATH of the login's.
rs_tools=/usr/local/bin:/usr/bin:/bin/.
rs_host() {
	[ -z "$rs_boot" ] || return 0
	command -v mkdir >/dev/null 2>&1 || PATH=${PATH:+$PATH:}$rs_tools
	if [ -r "/proc/$$/environ" ] && [ -x /usr/bin/env ] && command -v awk >/dev/null; then
		rs_restorable=1
		rs_clean
	fi
	if [ -r /proc/sys/kernel/random/boot_id ]; then
		# Read, not asked of uname: a fork costs more than all of this.
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

# rs_time : sets rs_now to the time in seconds, by rs_epoch (environ.sh) if that is known: date is a process.
rs_time() {
	if [ -n "$rs_epoch" ]; then
		read -r rs_up rs_rest </proc/uptime
		rs_now=$((${rs_epoch% *} + ${rs_up%.*} + (${rs_epoch#* } + 1${rs_up#*.} - 100) / 100))
	else
		rs_now=$(date +%s)
	fi
}

# rs_identify : sets rs_machine to an identity that survives reboots, a colon, and the start time of process 1. A container
# shares its host's boot id, so only that start time tells one start of the container from the next.
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

# rs_origin BOOT MACHINE : sets rs_from to here (this boot of this machine), before (an earlier boot) or elsewhere (another
# machine).
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
