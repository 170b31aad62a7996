# Gives a job the environment that the login gave this shell, without the changes of our scripts, and default signal
# dispositions. A shell can't do either by itself.

# rs_boot_time : sets rs_epoch to the time of the boot in seconds, a blank, and its hundredths, so that later times can
# be computed without starting a process.
rs_boot_time() {
	[ -r /proc/uptime ] && read -r rs_up rs_rest </proc/uptime || return
	rs_now=$(date +%s.%N)
	case $rs_now in
	# Some systems print no fractions.
	*.[0-9][0-9]*) ;;
	*) rs_now=${rs_now%%.*}.00 ;;
	esac
	rs_rest=${rs_now#*.}
	rs_rest=$((1${rs_rest%"${rs_rest#??}"} - 1${rs_up#*.} + 100))
	rs_epoch="$((${rs_now%.*} - ${rs_up%.*} + rs_rest / 100 - 1)) $((rs_rest % 100))"
}

# rs_environ BYTE : prints the arguments for env(1) that turn the environment that this shell exports into the one that
# it was given, except for the job's own variables, rs_given, whose values may be secrets. BYTE (octal) stands for a
# newline within a value. Run it in a different directory than the shell's, as a job is.
rs_environ() {
	{
		/usr/bin/env cat /proc/self/environ | tr '\0\n' "\n\\$1"
		echo '='
		tr '\0\n' "\n\\$1" <"/proc/$$/environ"
	} | awk -v "line=\\$1" -v given="${rs_given-}" '
		BEGIN { quote = sprintf("%c", 39); split(given, names, " "); for (i in names) own[names[i]] }
		$0 == "=" { before = 1; next }
		{ name = substr($0, 1, index($0, "=") - 1) }
		!before { passed[$0]; left[name]; next }
		{ delete left[name] }
		name in own { next }
		name == "PWD" { words = words " PWD=\"$PWD\""; next }
		# A job that changes its directory may have lost this variable (job.sh).
		name == "OLDPWD" || !($0 in passed) {
			gsub(quote, quote "\\" quote quote)
			gsub(line, "\n")
			words = words " " quote $0 quote
		}
		END {
			for (name in left) if (!(name in own)) printf " -u %s", name
			print words
		}'
}

# rs_unsets : if rs_words only removes variables that the shell itself can unset, sets rs_names to them.
# shellcheck disable=SC2016,SC2086
rs_unsets() {
	rs_names=
	for rs_word in $rs_words; do
		case $rs_word in
		# PWD is exported as it is.
		-u | 'PWD="$PWD"') ;;
		PWD | OLDPWD | LC_ALL) rs_names="$rs_names $rs_word" ;;
		*) return 1 ;;
		esac
	done
	[ -n "$rs_names" ]
}

# rs_remember : sets rs_mask to the login's umask, rs_largest to its limit on file sizes, rs_setsid to a command that
# makes a session and forks, rs_epoch to the time of the boot, rs_words to the arguments for env(1), and rs_reset to a
# command that resets signals if env(1) can't. Runs only once per shell: they don't change while it runs.
rs_mask='' rs_largest='' rs_setsid='setsid setsid' rs_epoch='' rs_words='' rs_reset=
rs_remember() {
	if [ -z "$rs_mask" ]; then
		rs_mask=$(umask)
		rs_largest=$(ulimit -f)
		! setsid -f true || rs_setsid='setsid -f'
		rs_boot_time
	fi
	[ -z "$rs_words" ] && rs_restores || return 0
	rs_words=$(cd / && rs_environ 1)
	case $rs_words in
	*"$rs_newline"*)
		for rs_byte in 1 2 3 4 5 6 16 17 20 21 22 23; do
			[ -n "$(tr -dc "\\$rs_byte" <"/proc/$$/environ" | tr '\001-\037' x)" ] || break
		done
		rs_words=$(cd / && rs_environ "$rs_byte")
		;;
	esac
	# ksh93 adds this variable later.
	case ${KSH_VERSION-} in
	*93*) rs_words=" -u _AST_FEATURES$rs_words" ;;
	esac
	rs_ignored=''
	while read -r rs_key rs_bits; do
		[ "$rs_key" != SigIgn: ] || rs_ignored=$rs_bits
	done <"/proc/$$/status"
	case $rs_ignored in
	*[!0]*)
		if /usr/bin/env --default-signal true; then
			rs_words=" --default-signal$rs_words"
		elif perl -e 1; then
			rs_reset=" perl -e '\$SIG{\$_} = \"DEFAULT\" for keys %SIG; exec { \$ARGV[0] } @ARGV'"
		elif python3 -c 1; then
			rs_reset=" python3 -c 'import os, signal, sys
for s in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}: signal.signal(s, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])'"
		fi
		;;
	esac
} >/dev/null 2>&1
