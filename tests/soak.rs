//! Long random runs: `cargo test -- --ignored soak`. Each ends after at most `RSIG_SOAK_SECONDS` (200) and prints its
//! seed. `RSIG_SOAK_SEED` repeats a run.

use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use crate::harness::{Direction, Fixture, Login, Proxy, Rsig, Running, Server, poll_until, tool};
use crate::jobs::{STEP_TIMEOUT, json_lines};
use crate::keepers::{dots_written, keeper_pids, kill9, new_counter, with_keeper};
use crate::kit;

/// Pseudo-random numbers from a seed, by splitmix64.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let given = std::env::var("RSIG_SOAK_SEED").ok();
        let seed = given.and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 32);
        println!("RSIG_SOAK_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % limit
    }
}

fn limit() -> Duration {
    let given = std::env::var("RSIG_SOAK_SECONDS").ok();
    let seconds = given.and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(200))
}

/// Signals one job while connections are cut and keepers and clients are killed. A signal that a client confirmed was
/// counted exactly once; one whose client was killed or could not tell, at most once.
#[test]
#[ignore = "minutes"]
fn soak_2000_signals_are_neither_lost_nor_doubled() {
    const SIGNALS: usize = 2000;
    const AT_ONCE: usize = 10;
    let mut random = Random::new();
    let (f, proxy) = with_keeper(Server::openssh(Login::User).start()).through_proxy();
    let start = Instant::now();
    let (mut sent, mut confirmed_in_all) = (0, 0);
    while sent < SIGNALS && start.elapsed() < limit() {
        let job = new_counter(&f);
        let (mut confirmed, mut unknown) = (0, 0);
        for _ in 0..5 {
            let mut kills: Vec<Running> = (0..AT_ONCE)
                .map(|_| f.rsig.spawn_process(&["kill", "--json", &job, "USR1"]))
                .collect();
            sent += AT_ONCE;
            std::thread::sleep(Duration::from_millis(random.below(150)));
            match random.below(4) {
                0 => proxy.cut(),
                1 => keeper_pids(&f).into_iter().for_each(kill9),
                2 => {
                    let victim = random.below(AT_ONCE as u64);
                    drop(kills.swap_remove(usize::try_from(victim).expect("small")));
                    unknown += 1;
                }
                _ => {}
            }
            for kill in kills {
                let output = kill.wait();
                let told = json_lines(&output).remove(0);
                match told["sent"].as_bool() {
                    Some(true) => confirmed += 1,
                    Some(false) => {}
                    None => unknown += 1,
                }
            }
        }
        f.rsig.run(&["stop", &job]).ok();
        let counted = dots_written(&f, &job);
        assert!(
            (confirmed..=confirmed + unknown).contains(&counted),
            "{counted} are counted, {confirmed} confirmed, {unknown} unknown"
        );
        confirmed_in_all += confirmed;
    }
    println!(
        "{sent} signals, {confirmed_in_all} confirmed, {:?}",
        start.elapsed()
    );
    assert!(confirmed_in_all * 2 > sent, "most of them arrive");
}

/// Cuts the connections at random positions until a program has ended.
fn cut_at_random(
    running: &mut Running,
    proxy: &Proxy,
    random: &mut Random,
    directions: &[Direction],
) -> u64 {
    const BETWEEN_CUTS: u64 = 4_800_000;
    let start = Instant::now();
    let mut cuts = 0;
    while !running.has_ended() && start.elapsed() < limit() {
        let connections = proxy.connections();
        let direction = directions[usize::from(random.below(directions.len() as u64) == 1)];
        proxy.cut_after_bytes(direction, 20_000 + random.below(BETWEEN_CUTS));
        poll_until("it is cut, or has ended", STEP_TIMEOUT * 3, || {
            proxy.connections() > connections || running.has_ended()
        });
        cuts += 1;
    }
    println!("{cuts} cuts, {:?}", start.elapsed());
    cuts
}

/// Prints a given number of bytes, with every value among them, in which no part repeats soon.
const BYTES: &str = r#"my ($left, $n) = ($ARGV[0], 0);
while ($left > 0) { my $part = pack("N*", map { $n++ * 2654435761 % 4294967296 } 1 .. 16384); $left -= length $part; print $part }"#;
const SIZE: usize = 500 << 20;

/// The checksum and the size of the bytes, as cksum(1) prints them.
fn checksum() -> String {
    tool("sh")
        .args([
            "-c",
            r#"perl -e "$0" "$1" | cksum"#,
            BYTES,
            &SIZE.to_string(),
        ])
        .limit(limit())
        .run()
        .ok()
        .line()
}

/// Runs rsig between two programs of a pipeline.
fn piped(f: &Fixture, line: &str, words: &[&str]) -> Running {
    f.rsig
        .within(tool("sh").args([
            "-c",
            line,
            BYTES,
            &SIZE.to_string(),
            env!("CARGO_BIN_EXE_rsig"),
        ]))
        .args(words)
        .limit(limit() + STEP_TIMEOUT * 10)
        .start()
}

#[test]
#[ignore = "minutes"]
fn soak_500_mb_are_followed_over_200_cuts() {
    let mut random = Random::new();
    let (f, proxy) = with_keeper(Server::openssh(Login::User).start()).through_proxy();
    let job = f.spawn(&[], &["perl", "-e", BYTES, &SIZE.to_string()]);
    let words = ["tail", "-f", "-n", "all", &job];
    let mut tail = piped(&f, r#"shift; "$@" | cksum"#, &words);
    cut_at_random(&mut tail, &proxy, &mut random, &[Direction::ToClient]);
    tail.wait().ok().stdout_is(&(checksum() + "\n"));
}

#[test]
#[ignore = "minutes"]
fn soak_500_mb_go_through_run_both_ways_over_200_cuts() {
    let mut random = Random::new();
    let (f, proxy) = with_keeper(Server::openssh(Login::User).start()).through_proxy();
    let words = f.words("run", &["--tether", "5m"], &["--", "cat"]);
    let mut run = piped(
        &f,
        r#"size=$1; shift; perl -e "$0" "$size" | "$@" | cksum"#,
        &words,
    );
    let ways = [Direction::ToClient, Direction::ToServer];
    cut_at_random(&mut run, &proxy, &mut random, &ways);
    run.wait().ok().stdout_is(&(checksum() + "\n"));
}

/// 64 loops of commands on a state file whose disk fills up and is emptied: every job reported as started has its
/// record, every failure gave a reason, and the file stays intact.
#[test]
#[ignore = "minutes"]
fn soak_64_writers_outlive_a_disk_that_fills() {
    let rsig = Rsig::new();
    let line = r#"
        mount -t tmpfs -o size=2m,mode=700 small "$RSIG_STATE_DIR" || exit
        end=$(($(date +%s) + $2))
        for writer in 00 01 02 03 04 05 06 07 10 11 12 13 14 15 16 17 20 21 22 23 24 25 26 27 30 31 32 33 34 35 36 37 \
            40 41 42 43 44 45 46 47 50 51 52 53 54 55 56 57 60 61 62 63 64 65 66 67 70 71 72 73 74 75 76 77; do
            while [ "$(date +%s)" -lt "$end" ]; do
                if job=$("$1" spawn local -- true 2>"errors/$writer"); then
                    case $job in ????????) ;; *) echo "no id: $job" >>wrong ;; esac
                    "$1" wait -q "$job" 2>/dev/null
                    "$1" kill -q "$job" 2>/dev/null
                    echo "$job" >>"started/$writer"
                elif ! [ -s "errors/$writer" ]; then
                    echo "no message" >>wrong
                fi
            done &
        done
        while [ "$(date +%s)" -lt "$end" ]; do
            cat /dev/zero >"$RSIG_STATE_DIR/filler" 2>/dev/null
            sleep 1
            rm "$RSIG_STATE_DIR/filler"
            sleep 1
        done
        wait
        cp -a "$RSIG_STATE_DIR/." copy/"#;
    for dir in ["errors", "started", "copy"] {
        fs::create_dir(rsig.home().join(dir)).expect("a new directory");
    }
    let seconds = limit().as_secs().min(60).to_string();
    let words = [
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        line,
        "sh",
        env!("CARGO_BIN_EXE_rsig"),
        &seconds,
    ];
    rsig.within(tool("unshare").args(words))
        .limit(limit() + STEP_TIMEOUT)
        .run()
        .ok();
    let wrong = fs::read_to_string(rsig.home().join("wrong")).unwrap_or_default();
    assert_eq!(wrong, "");
    let mut started: Vec<String> = Vec::new();
    for entry in fs::read_dir(rsig.home().join("started"))
        .expect("ours")
        .flatten()
    {
        let ids = fs::read_to_string(entry.path()).expect("text");
        started.extend(ids.lines().map(str::to_owned));
    }
    println!("{} jobs were started", started.len());
    assert!(started.len() > 64);
    let copy = rsig.home().join("copy");
    for entry in fs::read_dir(&copy).expect("ours").flatten() {
        fs::rename(entry.path(), rsig.state().join(entry.file_name())).expect("the same disk");
    }
    let known = kit::recorded(&rsig);
    let unknown: Vec<&String> = started.iter().filter(|id| !known.contains(id)).collect();
    assert!(unknown.is_empty(), "no record of {unknown:?}");
    let verdict: String = kit::database(&rsig)
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("a verdict");
    assert_eq!(verdict, "ok");
}
