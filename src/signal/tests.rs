use super::table::DefaultAction;
use super::*;
use nix::libc;

fn on(os: Os, word: &str) -> Result<Signal, BadSignal> {
    word.parse::<SignalWord>()?.on(os)
}

#[test]
fn systems_by_uname() {
    for (uname, os) in [
        ("Linux\n", Os::Linux),
        ("Darwin", Os::Darwin),
        ("FreeBSD", Os::FreeBSD),
        ("OpenBSD", Os::Bsd),
        ("NetBSD", Os::Bsd),
        ("DragonFly", Os::Bsd),
        ("SunOS", Os::Other),
        ("linux", Os::Other),
        ("", Os::Other),
    ] {
        assert_eq!(Os::from_uname(uname), os, "{uname}");
    }
    assert_eq!(Os::Darwin.to_string(), "macOS");
}

#[test]
fn one_word_on_each_system() {
    // The argument of `kill -X` on each system; "" if the system has no such signal.
    for (word, [linux, darwin, freebsd, bsd, other]) in [
        ("TERM", ["TERM"; 5]),
        ("term", ["TERM"; 5]),
        ("sigTerm", ["TERM"; 5]),
        ("15", ["TERM"; 5]),
        ("09", ["KILL"; 5]),
        ("0", ["0"; 5]),
        ("iot", ["6"; 5]),
        ("ABRT", ["6"; 5]),
        ("USR1", ["USR1"; 5]),
        ("10", ["USR1", "BUS", "BUS", "BUS", ""]),
        ("7", ["BUS", "7", "7", "7", ""]),
        ("12", ["USR2", "SYS", "SYS", "SYS", ""]),
        ("29", ["29", "29", "29", "29", ""]),
        ("30", ["PWR", "USR1", "USR1", "USR1", ""]),
        ("31", ["SYS", "USR2", "USR2", "USR2", ""]),
        ("CLD", ["CHLD", "", "", "", ""]),
        ("POLL", ["29", "", "", "", ""]),
        ("IO", ["29", "23", "23", "23", "IO"]),
        ("UNUSED", ["SYS", "", "", "", ""]),
        ("STKFLT", ["16", "", "", "", ""]),
        ("PWR", ["PWR", "", "", "", ""]),
        ("EMT", ["", "7", "7", "7", ""]),
        ("INFO", ["", "29", "29", "29", ""]),
        ("THR", ["", "", "32", "", ""]),
        ("LWP", ["", "", "32", "", ""]),
        ("33", ["", "", "33", "", ""]),
        ("40", ["40", "", "", "", ""]),
        ("RTMIN", ["34", "", "65", "", ""]),
        ("SIGrtmin+3", ["37", "", "68", "", ""]),
        ("rtmax-1", ["63", "", "125", "", ""]),
        ("RTMAX", ["64", "", "126", "", ""]),
        ("RTMIN+31", ["", "", "96", "", ""]),
        ("RTMAX-255", [""; 5]),
        ("128", [""; 5]),
    ] {
        for (os, wire) in Os::ALL
            .into_iter()
            .zip([linux, darwin, freebsd, bsd, other])
        {
            let signal = on(os, word);
            let got = signal.as_ref().map_or_else(|_| String::new(), Signal::wire);
            assert_eq!(got, wire, "{word} on {os}: {signal:?}");
        }
    }
}

#[test]
fn names_are_canonical_and_numbers_the_hosts() {
    for (os, word, name, number) in [
        (Os::Linux, "iot", "ABRT", Some(6)),
        (Os::Linux, "poll", "IO", Some(29)),
        (Os::Linux, "37", "RTMIN+3", Some(37)),
        (Os::Linux, "RTMAX-15", "RTMIN+15", Some(49)),
        (Os::Linux, "RTMIN+16", "RTMAX-14", Some(50)),
        (Os::FreeBSD, "RTMIN+31", "RTMAX-30", Some(96)),
        (Os::Darwin, "usr1", "USR1", Some(30)),
        (Os::Other, "15", "TERM", Some(15)),
        (Os::Other, "usr1", "USR1", None),
        (Os::Linux, "0", "0", Some(0)),
    ] {
        let signal = on(os, word).unwrap();
        assert_eq!(
            (signal.name().as_str(), signal.number()),
            (name, number),
            "{word} on {os}"
        );
        assert_eq!(on(os, name), Ok(signal), "{name} names itself on {os}");
    }
}

#[test]
fn what_is_no_signal_is_refused_with_a_hint() {
    for (word, message) in [
        ("", "a signal can't be empty; `rsig kill -l` lists them all"),
        (
            "TREM",
            "'TREM' is not a signal (did you mean TERM?); `rsig kill -l` lists them all",
        ),
        (
            "sigkil",
            "'sigkil' is not a signal (did you mean KILL?); `rsig kill -l` lists them all",
        ),
        (
            "nonsense",
            "'nonsense' is not a signal; `rsig kill -l` lists them all",
        ),
        (
            "SIG",
            "'SIG' is not a signal; `rsig kill -l` lists them all",
        ),
        (
            "SIGSIGINT",
            "'SIGSIGINT' is not a signal; `rsig kill -l` lists them all",
        ),
        ("+9", "'+9' is not a signal; `rsig kill -l` lists them all"),
        (
            "RTMIN-1",
            "'RTMIN-1' is not a signal; `rsig kill -l` lists them all",
        ),
        (
            "RTMIN++1",
            "'RTMIN++1' is not a signal; `rsig kill -l` lists them all",
        ),
        (
            "RTMAX-256",
            "'RTMAX-256' is not a signal; `rsig kill -l` lists them all",
        ),
        (
            "\u{1b}[2Jé\u{202e}",
            "'\\u{1b}[2Jé\\u{202e}' is not a signal; `rsig kill -l` lists them all",
        ),
        (
            "129",
            "no system has a signal 129: numbers run from 0 to 128 \
             (for an exit status, ask `rsig kill -l STATUS`)",
        ),
        (
            &"9".repeat(99),
            "no system has a signal 99999999999999999999999999999999…: numbers run from 0 to 128 \
             (for an exit status, ask `rsig kill -l STATUS`)",
        ),
    ] {
        assert_eq!(word.parse::<SignalWord>().unwrap_err().to_string(), message);
    }
    for (os, word, message) in [
        (
            Os::Linux,
            "siginfo",
            "Linux has no signal INFO; `rsig kill -l --os linux` lists those it has",
        ),
        (
            Os::Darwin,
            "rtmin+3",
            "macOS has no signal RTMIN+3; `rsig kill -l --os darwin` lists those it has",
        ),
        (Os::Bsd, "32", "a BSD other than FreeBSD has no signal 32"),
        (
            Os::Other,
            "10",
            "10 does not mean the same on every system, and rsig does not know this one: give a \
             name that all have, or 0, 1, 2, 3, 6, 9, 14 or 15",
        ),
    ] {
        assert_eq!(on(os, word).unwrap_err().to_string(), message);
    }
}

#[test]
fn slips_of_one_letter() {
    for word in ["TREM", "TER", "TERMM", "TURM", "ERMT", "TE", "MRET"] {
        let message = word.parse::<SignalWord>().unwrap_err().to_string();
        let is_near = !["ERMT", "TE", "MRET"].contains(&word);
        assert_eq!(
            message.contains("(did you mean TERM?)"),
            is_near,
            "{message}"
        );
    }
}

#[test]
fn kinds_of_signals() {
    let of = |is: fn(&Signal) -> bool| -> Vec<String> {
        let rows = table(Os::Linux).into_iter().map(|row| row.name);
        std::iter::once("0".to_owned())
            .chain(rows)
            .filter(|name| is(&on(Os::Linux, name).unwrap()))
            .collect()
    };
    assert_eq!(of(Signal::is_existence_check), ["0"]);
    assert_eq!(
        of(Signal::stops_only_interactively),
        ["TSTP", "TTIN", "TTOU"]
    );
    assert_eq!(
        of(|signal| signal.channel_name().is_some()),
        ["HUP", "INT", "QUIT", "USR1", "USR2", "TERM"]
    );
    for (word, name) in [(SignalWord::TERM, "TERM"), (SignalWord::KILL, "KILL")] {
        assert_eq!(name.parse(), Ok(word));
        assert!(Os::ALL.iter().all(|os| word.on(*os).is_ok()), "{name}");
    }
}

#[test]
fn only_upper_case_after_a_dash_is_a_signal() {
    for argument in [
        "-9",
        "-0",
        "-KILL",
        "-SIGKILL",
        "-FPE",
        "-IOT",
        "-RTMIN+3",
        "-SIGRTMAX",
    ] {
        assert_eq!(dashed(argument), argument[1..].parse().ok(), "{argument}");
        assert!(dashed(argument).is_some(), "{argument}");
    }
    for argument in [
        "-kill", "-Kill", "-SIGkill", "-w", "-F", "-FOO", "-", "--", "--9", "--KILL", "KILL", "9",
        "", "-137", "-9 ", "-J",
    ] {
        assert_eq!(dashed(argument), None, "{argument}");
    }
}

#[test]
fn rows_for_names_numbers_and_exit_statuses() {
    for (os, word, number, name, action) in [
        (Os::Linux, "kill", 9, "KILL", DefaultAction::Terminate),
        (Os::Linux, "10", 10, "USR1", DefaultAction::Terminate),
        (Os::Linux, "137", 9, "KILL", DefaultAction::Terminate),
        (Os::Darwin, "138", 10, "BUS", DefaultAction::Core),
        (Os::Linux, "192", 64, "RTMAX", DefaultAction::Terminate),
        (Os::FreeBSD, "193", 65, "RTMIN", DefaultAction::Terminate),
        (Os::Linux, "xcpu", 24, "XCPU", DefaultAction::Core),
        (Os::FreeBSD, "xcpu", 24, "XCPU", DefaultAction::Terminate),
        (Os::Linux, "IO", 29, "IO", DefaultAction::Terminate),
        (Os::Darwin, "IO", 23, "IO", DefaultAction::Ignore),
        (Os::Other, "143", 15, "TERM", DefaultAction::Terminate),
    ] {
        let row = row_for(os, word).unwrap();
        assert_eq!(
            (row.number, row.name.as_str(), row.action),
            (number, name, action),
            "{word}"
        );
    }
    for (os, word, error) in [
        (Os::Linux, "0", BadSignal::NoRowForZero),
        (Os::Linux, "256", BadSignal::TooHigh("256".to_owned())),
        (
            Os::Linux,
            "160",
            BadSignal::Lacking {
                os: Os::Linux,
                word: SignalWord(Word::Number(32)),
            },
        ),
        (
            Os::Other,
            "usr1",
            BadSignal::NoRow(SignalWord(Word::Name("USR1"))),
        ),
    ] {
        assert_eq!(row_for(os, word), Err(error), "{word}");
    }
}

#[test]
fn exit_statuses_with_a_signal_in_them() {
    for (os, status, name) in [
        (Os::Linux, 143, Some("TERM")),
        (Os::Linux, 138, Some("USR1")),
        (Os::Darwin, 138, Some("BUS")),
        (Os::Other, 138, None),
        (Os::Other, 137, Some("KILL")),
        (Os::Linux, 171, Some("RTMIN+9")),
        (Os::FreeBSD, 171, None),
        (Os::Linux, 0, None),
        (Os::Linux, 127, None),
        (Os::Linux, 128, None),
        (Os::Linux, 160, None),
        (Os::Linux, 255, None),
        (Os::Linux, 256 + 15, None),
        (Os::Linux, u32::MAX, None),
    ] {
        assert_eq!(
            name_of_exit_status(os, status).as_deref(),
            name,
            "{status} on {os}"
        );
    }
}

#[test]
fn tables_are_whole_sorted_and_fit_a_terminal() {
    for (os, numbers) in [
        (Os::Linux, (1..=31).chain(34..=64).collect::<Vec<u8>>()),
        (Os::Darwin, (1..=31).collect()),
        (Os::FreeBSD, (1..=33).chain(65..=126).collect()),
        (Os::Bsd, (1..=31).collect()),
        (Os::Other, vec![1, 2, 3, 6, 9, 14, 15]),
    ] {
        let rows = table(os);
        assert_eq!(
            rows.iter().map(|row| row.number).collect::<Vec<_>>(),
            numbers,
            "{os}"
        );
        for row in rows {
            // Number, name and action take 3 + 8 + 9 columns, with 2 between each.
            assert!(row.description.chars().count() <= 54, "{row:?}");
            let caught = !row.description.contains("can't be caught");
            let signal = on(os, &row.name).unwrap();
            assert_eq!(
                ["KILL", "STOP"].contains(&row.name.as_str()),
                !caught,
                "{row:?}"
            );
            assert_eq!(signal.number(), Some(row.number), "{row:?}");
            assert_eq!(row_for(os, &row.number.to_string()), Ok(row));
        }
    }
}

#[test]
fn default_actions_of_each_system() {
    for (os, action, names) in [
        (
            Os::Linux,
            DefaultAction::Core,
            "QUIT ILL TRAP ABRT BUS FPE SEGV XCPU XFSZ SYS",
        ),
        (Os::Linux, DefaultAction::Ignore, "CHLD URG WINCH"),
        (
            Os::Darwin,
            DefaultAction::Core,
            "QUIT ILL TRAP ABRT EMT FPE BUS SEGV SYS",
        ),
        (Os::Darwin, DefaultAction::Ignore, "URG CHLD IO WINCH INFO"),
        (
            Os::FreeBSD,
            DefaultAction::Core,
            "QUIT ILL TRAP ABRT EMT FPE BUS SEGV SYS",
        ),
        (Os::FreeBSD, DefaultAction::Ignore, "URG CHLD IO WINCH INFO"),
        (Os::Linux, DefaultAction::Stop, "STOP TSTP TTIN TTOU"),
        (Os::FreeBSD, DefaultAction::Stop, "STOP TSTP TTIN TTOU"),
        (Os::Linux, DefaultAction::Continue, "CONT"),
        (Os::FreeBSD, DefaultAction::Continue, "CONT"),
    ] {
        let rows = table(os).into_iter().filter(|row| row.action == action);
        let theirs: Vec<String> = rows.map(|row| row.name).collect();
        assert_eq!(theirs.join(" "), names, "{action} on {os}");
    }
}

/// The numbers of the 31 common names, compared with the C library of the machine that runs the tests.
#[cfg(unix)]
#[test]
fn numbers_here_are_those_of_the_c_library() {
    let mut numbers = vec![
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ILL", libc::SIGILL),
        ("TRAP", libc::SIGTRAP),
        ("ABRT", libc::SIGABRT),
        ("BUS", libc::SIGBUS),
        ("FPE", libc::SIGFPE),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("SEGV", libc::SIGSEGV),
        ("USR2", libc::SIGUSR2),
        ("PIPE", libc::SIGPIPE),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
        ("CHLD", libc::SIGCHLD),
        ("CONT", libc::SIGCONT),
        ("STOP", libc::SIGSTOP),
        ("TSTP", libc::SIGTSTP),
        ("TTIN", libc::SIGTTIN),
        ("TTOU", libc::SIGTTOU),
        ("URG", libc::SIGURG),
        ("XCPU", libc::SIGXCPU),
        ("XFSZ", libc::SIGXFSZ),
        ("VTALRM", libc::SIGVTALRM),
        ("PROF", libc::SIGPROF),
        ("WINCH", libc::SIGWINCH),
        ("IO", libc::SIGIO),
        ("SYS", libc::SIGSYS),
    ];
    #[cfg(target_os = "linux")]
    numbers.extend([("STKFLT", libc::SIGSTKFLT), ("PWR", libc::SIGPWR)]);
    #[cfg(not(target_os = "linux"))]
    numbers.extend([("EMT", libc::SIGEMT), ("INFO", libc::SIGINFO)]);
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    numbers.extend([("RTMIN", libc::SIGRTMIN()), ("RTMAX", libc::SIGRTMAX())]);
    for (name, number) in numbers {
        let signal = on(Os::here(), name).unwrap();
        assert_eq!(
            signal.number().map(libc::c_int::from),
            Some(number),
            "{name}"
        );
    }
}

/// The table compared with the shells and the kernel of this machine.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod on_this_linux {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn bash_lists_the_same_signals() {
        let listing = Command::new("bash")
            .args(["-c", "kill -l"])
            .output()
            .unwrap();
        let listing = String::from_utf8(listing.stdout).unwrap();
        let words: Vec<&str> = listing.split_whitespace().collect();
        let theirs: Vec<String> = words
            .chunks(2)
            .map(|pair| pair.concat().replace(")SIG", " "))
            .collect();
        let ours: Vec<String> = table(Os::Linux)
            .iter()
            .map(|row| format!("{} {}", row.number, row.name))
            .collect();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn every_shell_takes_what_goes_over_the_wire() {
        // Not waited for until the end, so the pid is not reused and every kill succeeds.
        let mut target = Command::new("true").spawn().unwrap();
        let mut refusals = Vec::new();
        for shell in [
            &["dash"][..],
            &["bash"],
            &["busybox", "sh"],
            &["mksh"],
            &["ksh"],
            &["zsh"],
        ] {
            let script = r#"pid=$1; shift; for s; do kill -"$s" "$pid" || echo "$s"; done"#;
            let wires = table(Os::Linux)
                .into_iter()
                .map(|row| on(Os::Linux, &row.name).unwrap().wire());
            let refused = Command::new(shell[0])
                .args(&shell[1..])
                .args(["-c", script, "sh", &target.id().to_string()])
                .args(wires)
                .output();
            refusals.push((
                shell,
                refused.map(|output| (output.status.code(), output.stdout)),
            ));
        }
        target.kill().unwrap();
        target.wait().unwrap();
        for (shell, refused) in refusals {
            let (status, refused) = refused.unwrap();
            assert_eq!(
                (status, String::from_utf8_lossy(&refused).as_ref()),
                (Some(0), ""),
                "{shell:?}"
            );
        }
    }

    /// Stop is left to the tests that stop real jobs, since a stopped shell can't report it.
    #[test]
    fn default_actions_are_the_kernels() {
        for row in table(Os::Linux) {
            let ends = match row.action {
                DefaultAction::Stop => continue,
                DefaultAction::Terminate | DefaultAction::Core => true,
                DefaultAction::Ignore | DefaultAction::Continue => false,
            };
            // Otherwise signals that the test runner ignores would stay ignored in the shell.
            let status = Command::new("env")
                .args([
                    "--default-signal",
                    "sh",
                    "-c",
                    r#"ulimit -c 0; kill -"$1" $$; exit 0"#,
                ])
                .args(["sh", &on(Os::Linux, &row.name).unwrap().wire()])
                .stderr(Stdio::null())
                .status()
                .unwrap();
            let signal = ends.then_some(i32::from(row.number));
            assert_eq!(status.signal(), signal, "{row:?}: {status}");
            assert!(ends || status.success(), "{row:?}: {status}");
        }
    }
}
