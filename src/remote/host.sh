# Tells this boot of this machine from every other, and where its jobs are.

# rs_host : sets rs_system, rs_node, rs_boot and rs_base.
rs_host() {
	rs_boot=
	if [ -r /proc/sys/kernel/random/boot_id ]; then
		# Read rather than asked of uname: a fork costs more than all of this.
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
