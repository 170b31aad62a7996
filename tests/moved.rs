//! Commands that find a keeper running notice that their destination has come to mean another host.

use std::fs;
use std::path::Path;

use crate::harness::{Fixture, Login, Server, poll_until, tool};
use crate::jobs::STEP_TIMEOUT;
use crate::keepers::keepers;
use crate::kit::lines;

/// Two servers. The configuration makes `web` one or the other.
struct Two {
    f: Fixture,
    other: Server,
    config: String,
    /// The configuration text for each server.
    texts: [String; 2],
}

impl Two {
    fn start() -> Self {
        let mut f = Fixture::with(Some(Server::openssh(Login::User).start()));
        f.rsig.keeper = true;
        let config = f.rsig.dir().join("moving");
        let config = config.to_str().expect("our paths are UTF-8").to_owned();
        let other = Server::openssh(Login::User).start();
        let text = |server: &Server| {
            fs::read_to_string(server.ssh_config("web")).expect("a configuration")
        };
        let texts = [text(f.server.as_ref().expect("a server")), text(&other)];
        Self {
            f,
            other,
            config,
            texts,
        }
    }

    fn text(&self, is_other: bool) -> &str {
        &self.texts[usize::from(is_other)]
    }

    /// The user that a new job runs as.
    #[track_caller]
    fn user(&self) -> String {
        let rsig = &self.f.rsig;
        let job = ["spawn", "-F", &self.config, "web", "id", "-u"];
        let job = rsig.run(&job).ok().line();
        rsig.run(&["wait", &job]).ok();
        rsig.run(&["tail", &job]).ok().line()
    }

    #[track_caller]
    fn assert_at(&self, other: bool) {
        let own = self.f.server.as_ref().expect("a server");
        let server = if other { &self.other } else { own };
        assert_eq!(self.user(), server.uid().to_string());
    }
}

fn write(file: &str, text: &str) {
    fs::write(file, text).expect("a directory of ours");
}

/// Waits until a change is old enough for its timestamp to be trusted. Until then, ssh is asked in any case.
fn settle() {
    std::thread::sleep(std::time::Duration::from_secs(3));
}

#[test]
fn a_changed_alias_is_another_host() {
    let two = Two::start();
    write(&two.config, two.text(false));
    two.assert_at(false);
    settle();
    two.assert_at(false);
    two.assert_at(false);
    poll_until("there is one keeper", STEP_TIMEOUT, || {
        keepers(&two.f).len() == 1
    });
    let job = two
        .f
        .rsig
        .run(&["spawn", "-F", &two.config, "web", "sleep", "1000"]);
    let job = job.ok().line();
    write(&two.config, two.text(true));
    two.assert_at(true);
    poll_until("there are two keepers", STEP_TIMEOUT, || {
        keepers(&two.f).len() == 2
    });
    // The job's process exists even if another host is asked for it: nothing shows that it is lost.
    assert_ne!(two.f.state(&job), "lost");
    // Back to the first keeper, which still runs.
    write(&two.config, two.text(false));
    two.assert_at(false);
    poll_until("there are two keepers", STEP_TIMEOUT, || {
        keepers(&two.f).len() == 2
    });
    assert_eq!(two.f.state(&job), "running");
    two.f.rsig.run(&["kill", "-9", &job, "--wait", "20s"]).ok();
}

#[test]
fn a_file_that_is_included_or_only_then_there_counts() {
    let two = Two::start();
    let directory = format!("{}.d", two.config);
    let late = format!("{}.late", two.config);
    fs::create_dir(&directory).expect("a directory of ours");
    let text = format!(
        "Include {directory}/*.conf\nInclude {late}\n{}",
        two.text(false)
    );
    write(&two.config, &text);
    two.assert_at(false);
    settle();
    two.assert_at(false);
    write(&format!("{directory}/a.conf"), two.text(true));
    two.assert_at(true);
    settle();
    two.assert_at(true);
    write(&format!("{directory}/a.conf"), two.text(false));
    two.assert_at(false);
    // A file in the same directory that is read first.
    write(&format!("{directory}/0.conf"), two.text(true));
    two.assert_at(true);
    fs::remove_dir_all(&directory).expect("a directory of ours");
    two.assert_at(false);
    write(&late, two.text(true));
    two.assert_at(true);
}

#[test]
fn ssh_is_asked_once() {
    let two = Two::start();
    let count = format!("{}.count", two.config);
    let text = format!("Match exec \"echo x >>{count}\"\n{}", two.text(false));
    write(&two.config, &text);
    settle();
    for _ in 0..3 {
        two.assert_at(false);
    }
    assert_eq!(lines(Path::new(&count)), 1);
}

#[test]
fn another_network_is_another_host() {
    let two = Two::start();
    write(&two.config, two.text(false));
    two.assert_at(false);
    let spawn = ["-F", &two.config, "web", "true"];
    let there = |words: &[&str]| {
        let unshare = tool("unshare").args(["--net", env!("CARGO_BIN_EXE_rsig")]);
        two.f.rsig.within(unshare.args(words)).run()
    };
    there(&[&["spawn"][..], &spawn].concat()).code(255);
    poll_until("the keeper is still there", STEP_TIMEOUT, || {
        keepers(&two.f).len() == 1
    });
    two.assert_at(false);
}
