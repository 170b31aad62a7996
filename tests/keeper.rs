//! The keeper: signals by channel first, one round trip, and nothing lost when it dies.

use std::time::Duration;

use crate::harness::{Fixture, Login, Proxy, Server, Site, on_every_kept_site, poll_until};

const SOON: Duration = Duration::from_secs(10);

/// A job that writes a dot for each USR1, and ends by TERM with status 7. Its handlers run at once, one at a time:
/// perl's own deferred ones are merged.
const COUNTER: &str = "use POSIX;
my ($all, $none) = (POSIX::SigSet->new, POSIX::SigSet->new);
$all->fillset;
sigprocmask(SIG_SETMASK, $all);
sigaction(SIGUSR1, POSIX::SigAction->new(sub { syswrite STDOUT, '.' }, $all));
sigaction(SIGTERM, POSIX::SigAction->new(sub { POSIX::_exit(7) }, $all));
syswrite STDOUT, \"ready\\n\";
sigsuspend($none) while 1";

fn counter(f: &Fixture) -> String {
    let job = f.spawn(&[], &["perl", "-e", COUNTER]);
    poll_until("the counter is ready", SOON, || tail(f, &job).contains("ready"));
    job
}

fn tail(f: &Fixture, job: &str) -> String {
    f.rsig.run(&["tail", "-n", "all", job]).ok().stdout()
}

fn counted(f: &Fixture, job: &str) -> usize {
    tail(f, job).matches('.').count()
}

/// The value of a key in one line of JSON, as it is written there.
fn value(json: &str, key: &str) -> String {
    let rest = json.split_once(&format!("\"{key}\":")).unwrap_or_else(|| panic!("no {key} in {json}")).1;
    rest.split([',', '}']).next().unwrap_or_default().to_owned()
}

/// Whether the server passes a channel's signals on.
fn honours(f: &Fixture) -> bool {
    f.way() == "channel"
}

on_every_kept_site! {
    fn a_signal_goes_by_the_channel_where_the_server_takes_it(f: &Fixture) {
        let job = counter(f);
        let json = f.rsig.run(&["kill", "--json", &job, "USR1"]).ok().line();
        assert_eq!(value(&json, "via"), if honours(f) { "\"channel\"" } else { "\"pid\"" });
        assert_eq!(value(&json, "sent"), "true");
        let json = f.rsig.run(&["kill", "--json", "--via", "pid", &job, "USR1"]).ok().line();
        assert_eq!(value(&json, "via"), "\"pid\"");
        let forced = f.rsig.run(&["kill", "--json", "--via", "channel", &job, "USR1"]);
        if honours(f) {
            assert_eq!(value(&forced.ok().line(), "via"), "\"channel\"");
        } else {
            let json = forced.code(1).line();
            assert_eq!((value(&json, "sent"), value(&json, "via")), ("false".into(), "null".into()));
            assert!(json.contains("\"no_channel\""), "{json}");
        }
        let expected = if honours(f) { 3 } else { 2 };
        poll_until("every signal is counted", SOON, || counted(f, &job) == expected);
        let json = f.rsig.run(&["kill", "--json", "--wait", "10s", &job]).ok().line();
        assert_eq!((value(&json, "exit_status"), value(&json, "still_running")), ("7".into(), "false".into()));
        assert_eq!(counted(f, &job), expected);
    }

    fn ten_kills_at_once_count_ten(f: &Fixture) {
        let job = counter(f);
        let kills: Vec<_> = (0..10).map(|_| f.rsig.spawn_process(&["kill", &job, "USR1"])).collect();
        kills.into_iter().for_each(|mut kill| { kill.wait().ok(); });
        poll_until("ten are counted", SOON, || counted(f, &job) == 10);
        f.rsig.run(&["stop", &job]).ok();
        assert_eq!(counted(f, &job), 10);
    }
}
