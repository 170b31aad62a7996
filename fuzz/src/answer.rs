//! Answers from hosts: everything that parses the output of a host's script, once the frame has separated it from
//! noise.
//!
//! The first three bytes choose the script, its options, and the number of jobs. The rest is the shell's output, in
//! which these bytes stand for what a fuzzer can't know or seldom produces:
//!
//!     \x01  the beginning of a mark      \x04  the end of one read
//!     \x02  a literal \x01               \x05  the same, and a switch to the shell's other stream
//!     \x03  a mark that is cut short

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::connection::{Chunk, Shell, ShellInput};
use crate::error::Failure;
use crate::host::{Connect, Destination};
use crate::job::{JobId, Record, State, Target};
use crate::remote::output::{self, Progress, ReadRequest, StartPosition};
use crate::remote::search::{Search, SearchResult};
use crate::remote::signal::{Answer, Attempt, JobPlan, Plan};
use crate::remote::start::{Spool, StartRequest};
use crate::remote::stream::{JobEnd, Positions, Runner};
use crate::remote::{
    self, Observation, Stream, Usage, look, discover, pids, search, send, signal, start, stream,
};
use crate::signal::{Os, SignalWord};
use crate::terminal::{self, JobJson, ListedJob};

/// Words of the marks that end an answer.
const END_WORDS: [&[u8]; 4] = [b"end", b"cut", b"paused", b"ended "];

/// A shell whose output the fuzzer makes up.
struct Said {
    template: Vec<u8>,
    chunks: VecDeque<(bool, Vec<u8>)>,
    checked_in: bool,
}

impl Said {
    fn new(template: &[u8]) -> Self {
        Self {
            template: template.to_vec(),
            chunks: VecDeque::new(),
            checked_in: false,
        }
    }

    /// Inserts the script's nonce where the template has a mark.
    fn fill(&mut self, nonce: &[u8]) {
        let mark = [b"\x01", nonce, b" "].concat();
        let (mut errors, mut chunk) = (false, Vec::new());
        for byte in &self.template {
            match byte {
                1 => chunk.extend_from_slice(&mark),
                2 => chunk.push(1),
                3 => chunk.extend_from_slice(&mark[..mark.len() - 2]),
                4 | 5 => {
                    self.chunks.push_back((errors, std::mem::take(&mut chunk)));
                    errors ^= *byte == 5;
                }
                other => chunk.push(*other),
            }
        }
        self.chunks.push_back((errors, chunk));
    }

    /// Whether the template can contain a complete answer.
    fn has_end(&self) -> bool {
        let out: Vec<u8> = whole_output(&self.template);
        END_WORDS.iter().any(|word| {
            let mark = [b"\x01", *word].concat();
            out.windows(mark.len()).any(|found| found == mark)
        })
    }
}

/// All standard output of a template.
fn whole_output(template: &[u8]) -> Vec<u8> {
    let mut errors = false;
    let mut out = Vec::new();
    for byte in template {
        match byte {
            4 => {}
            5 => errors = !errors,
            _ if errors => {}
            other => out.push(*other),
        }
    }
    out
}

impl Shell for Said {
    /// Claims to have the primer, so scripts are sent without it.
    fn primed(&self) -> Option<u64> {
        static PRIMED: LazyLock<u64> = LazyLock::new(|| remote::primer().mark);
        Some(*PRIMED)
    }

    fn send_script(&mut self, text: &[u8], _: Option<String>, _: Instant) -> io::Result<()> {
        let nonce = text
            .split(|byte| *byte == b'\n')
            .find_map(|line| line.strip_prefix(b"rs_nonce="))
            .expect("every script has a nonce");
        self.fill(nonce);
        Ok(())
    }

    fn write(&mut self, _: &[u8], _: Instant) -> io::Result<()> {
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8], _: Instant) -> io::Result<Chunk> {
        while let Some((errors, mut chunk)) = self.chunks.pop_front() {
            if chunk.is_empty() {
                continue;
            }
            let rest = chunk.split_off(chunk.len().min(buffer.len()));
            buffer[..chunk.len()].copy_from_slice(&chunk);
            if !rest.is_empty() {
                self.chunks.push_front((errors, rest));
            }
            return Ok(match errors {
                true => Chunk::Err(chunk.len()),
                false => Chunk::Out(chunk.len()),
            });
        }
        Ok(Chunk::End)
    }

    fn is_wanted(&self) -> bool {
        self.template.len() % 2 == 1
    }

    fn check_in(&mut self) {
        self.checked_in = true;
    }

    fn input(&self) -> io::Result<ShellInput> {
        Err(ErrorKind::Unsupported.into())
    }
}

/// A client that runs a job in the foreground.
struct Foreground {
    delivered: u64,
    pauses: bool,
}

impl Runner for Foreground {
    fn begun(&mut self) {}

    fn data(&mut self, _: Stream, bytes: &[u8]) -> Result<(), Failure> {
        assert!(!bytes.is_empty());
        self.delivered += bytes.len() as u64;
        Ok(())
    }

    fn have(&mut self, _: u64, room: u64) {
        assert!(i64::try_from(room).is_ok());
    }

    fn unkept(&mut self) {}

    fn ping(&mut self, _: &[u8]) {}

    fn wants_pause(&self) -> bool {
        self.pauses
    }

    fn finish(&mut self, _: &str, _: Duration) -> bool {
        true
    }

    fn may_forget(&mut self, end: &JobEnd) -> bool {
        end.state == State::Exited
    }
}

fn record() -> Record {
    let destination = Destination {
        host: "web1".parse().expect("a host"),
        connect: Connect::default(),
    };
    let id: JobId = "0123abcd".parse().expect("an id");
    let command = vec!["make".to_owned(), "test".to_owned()];
    Record::new(id, None, destination, command)
}

/// Asserts that a text to be shown has no character that a terminal would act on.
pub fn assert_plain(text: &str) {
    let acted_on = |c: char| c.is_control() && c != '\n';
    assert!(!text.contains(acted_on), "{text:?}");
}

/// Updates a record with a host's answer about a job, and formats it. The record's previous state depends on the
/// answer.
fn take(seen: &Observation, usage: Option<Usage>) {
    let mut record = record();
    let state = seen.pid.unwrap_or_default() as usize % State::ALL.len();
    record.state = State::ALL[state];
    show(record, Some((seen.clone(), usage)));
}

fn show(record: Record, answer: Option<(Observation, Option<Usage>)>) {
    let mut listed = ListedJob::from(record);
    listed.take(answer);
    let ListedJob {
        record,
        state,
        usage,
    } = &listed;
    let cells = [
        terminal::state(record, *state),
        terminal::since(record, *state),
        terminal::command_line(&record.command),
        terminal::ended(record),
        record.label(),
        record.caution().unwrap_or_default(),
        record.why_lost().to_owned(),
    ];
    let uses = terminal::usage(usage.as_ref());
    cells
        .iter()
        .chain(&uses)
        .for_each(|cell| assert_plain(cell));
    let json = serde_json::to_string(&JobJson::new(record, *state)).expect("JSON");
    serde_json::from_str::<serde_json::Value>(&json).expect("JSON that can be read");
    // A record that is written to the state file is read back unchanged.
    let kept = serde_json::to_string(record).expect("JSON");
    assert_eq!(
        serde_json::from_str::<Record>(&kept).expect("a record"),
        *record
    );
    let _ = (record.job_dir(), record.system(), record.exit_signal());
}

fn places(jobs: usize) -> Vec<&'static str> {
    ["0123abcd", "/d/1123abcd", "7 7 9 b mx/d/2123abcd"]
        .into_iter()
        .cycle()
        .take(jobs)
        .collect()
}

fn plan(jobs: usize, option: u8) -> Plan {
    let attempt = |claim: &str| Attempt {
        claim: claim.to_owned(),
        signal: SignalWord::TERM.on(Os::Linux).expect("it has TERM"),
        wake: option & 1 == 1,
        retry: option & 2 == 2,
    };
    let job = |(index, place): (usize, &str)| JobPlan {
        job_dir: place.to_owned(),
        target: [Target::Group, Target::Process, Target::Tree][index % 3],
        first: (option & 4 == 0).then(|| attempt("c1")),
        then: (option & 8 == 0).then(|| attempt("c2")),
    };
    Plan {
        jobs: places(jobs).into_iter().enumerate().map(job).collect(),
        wait: (option & 16 == 0).then_some(Duration::from_secs(1)),
        then_wait: Duration::ZERO,
    }
}

fn start(shell: &mut Said, option: u8) -> Result<(), Failure> {
    let id: JobId = "0123abcd".parse().expect("an id");
    let request = StartRequest {
        id: &id,
        cookie: "c",
        meta: "{}",
        jobs_dir: None,
        command: &["true".into()],
        env: &[],
        directory: None,
        stays: false,
        merge: false,
        timeout: None,
        input: None,
        open: false,
        log_max: None,
        last: (option & 3 == 2).then_some(64 << 10),
        spool: (option & 1 == 1).then_some(Spool {
            input: true,
            limit: 1 << 20,
        }),
        tether: None,
    };
    // A refusal is final, even if the script does not reach its end.
    let (started, mut hearing) = start::start_and_follow("web1", shell, &request)??;
    assert!(started.dir.starts_with('/'));
    let mut record = record();
    (record.pid, record.pgid) = (Some(started.pid), Some(started.pgid));
    record.os = Some(started.os);
    (record.birth, record.boot) = (Some(started.birth), Some(started.boot));
    record.machine = Some(started.machine);
    record.started_at = Some(started.started_at);
    record.dir = Some(started.dir);
    show(record, None);
    if request.spool.is_some() || request.last.is_some() {
        let mut runner = Foreground {
            delivered: 0,
            pauses: false,
        };
        stream::follow_started("web1", shell, &mut hearing, &mut runner)?;
    }
    Ok(())
}

/// Reads a log, then once more from the position that the first reading reached.
fn tail(shell: &mut Said, option: u8) -> Result<(), Failure> {
    let gone: RefCell<BTreeMap<u8, u64>> = RefCell::default();
    let passed = Cell::new(0);
    let wanted = ReadRequest {
        place: "0123abcd",
        out: option & 1 == 0,
        err: option & 2 == 0,
        from: [
            StartPosition::LastLines(3),
            StartPosition::Line(u64::MAX),
            StartPosition::LastBytes(u64::MAX),
            StartPosition::Byte(0),
            StartPosition::Behind {
                out: u64::MAX,
                err: 5,
            },
        ][usize::from(option >> 5) % 5],
        follow: option & 4 == 0,
        most: None,
        pause: if option & 8 == 0 {
            None
        } else {
            Some(&|| true)
        },
        enough: None,
        gone: &|gone_now| {
            // Positions within a stream only grow.
            let last = gone
                .borrow_mut()
                .insert(gone_now.stream as u8, gone_now.position);
            assert!(last.is_none_or(|last| last < gone_now.position));
            assert!(gone_now.bytes > 0 && gone_now.bytes <= gone_now.position);
        },
    };
    let mut progress = Progress::default();
    let mut sink = |_: Stream, bytes: &[u8]| {
        assert!(!bytes.is_empty());
        passed.set(passed.get() + bytes.len());
        Ok(())
    };
    let limit = shell.template.len();
    let read = output::read("web1", shell, &wanted, &mut progress, &mut sink);
    assert!(passed.get() <= limit * 40);
    if let Ok(read) = &read {
        take(&read.seen, None);
    }
    let mut again = Said::new(&shell.template.clone());
    let _ = output::read("web1", &mut again, &wanted, &mut progress, &mut sink);
    read.map(drop)
}

fn ask(shell: &mut Said, script: u8, option: u8, jobs: usize) -> Result<(), Failure> {
    let host = "web1";
    let places = places(jobs);
    match script % 14 {
        0 => {
            let all = look::see(host, shell, &places)?;
            assert_eq!(all.len(), jobs);
            all.iter().for_each(|seen| take(seen, None));
        }
        1 => {
            let all = look::forget(host, shell, &places)?;
            assert_eq!(all.len(), jobs);
            for removal in all {
                if let look::Removal::Kept(why) = removal {
                    assert_plain(&why);
                }
            }
        }
        2 => {
            let read = look::StreamSelection {
                out: true,
                err: option & 1 == 1,
            };
            assert_eq!(look::forget_read(host, shell, &places, read)?.len(), jobs);
        }
        3 => {
            let all = remote::measure(host, shell, &places)?;
            assert_eq!(all.len(), jobs);
            all.iter().for_each(|(seen, usage)| take(seen, *usage));
        }
        4 => {
            let shown = (option & 1 == 1).then_some("0123abcd");
            let glance = remote::glance(host, shell, &places, shown)?;
            assert_eq!(glance.jobs.len(), jobs);
            assert!(glance.out.len() <= 32 << 10 && glance.err.len() <= 32 << 10);
        }
        5 => {
            let place = |place: &&str| Search {
                place: (*place).to_owned(),
                at: [0, 7],
            };
            let jobs: Vec<Search> = places.iter().map(place).collect();
            let all = search::search(host, shell, &jobs, "x", Duration::from_secs(1))?;
            assert_eq!(all.len(), jobs.len());
            for searched in all {
                if let SearchResult::Over(seen, found) = searched {
                    take(&seen, None);
                    assert!(found.is_none_or(|found| found.line.len() <= 1 << 20));
                }
            }
        }
        6 => {
            let plan = plan(jobs, option);
            let mut stated = vec![false; jobs];
            signal::carry_out(host, shell, &plan, &mut |index, answer| {
                if let Answer::State(seen) = answer {
                    take(&seen, None);
                    stated[index] = true;
                }
            })?;
            assert!(!stated.contains(&false));
        }
        7 => {
            let data = send::Data::Text(b"x".to_vec());
            let sending = send::SendRequest {
                place: "0123abcd",
                claim: "c",
                data: &data,
                eof: option & 1 == 1,
            };
            match send::send(host, shell, &sending)? {
                send::SendResult::Refused(why) => assert_plain(&why),
                send::SendResult::State(seen) => take(&seen, None),
                _ => {}
            }
        }
        8 => start(shell, option)?,
        9 => start::cancel(host, shell, "0123abcd")?,
        10 => {
            let mut runner = Foreground {
                delivered: 0,
                pauses: option & 1 == 1,
            };
            stream::stream(host, shell, "0123abcd", Positions::default(), &mut runner)?;
        }
        11 => tail(shell, option)?,
        12 => {
            let (seen, _) = pids::pids(host, shell, "0123abcd")?;
            take(&seen, None);
        }
        _ => {
            let ids = ["0123abcd", "1123abcd", "2123abcd"];
            let ids: Vec<JobId> = ids.iter().take(jobs).flat_map(|id| id.parse()).collect();
            let found = if option & 1 == 1 {
                discover::discover(host, shell, Some("/jobs"))?
            } else {
                discover::find(host, shell, &ids, None)?
            };
            for job in found {
                let mut record = record();
                record.id = job.id.clone();
                take(&job.seen, None);
                job.fill_in(&mut record);
                let meta = discover::JobMetadata::of(&record).line().expect("JSON");
                assert!(
                    meta.len() <= 15_000 && meta.bytes().all(|byte| (b' '..=b'~').contains(&byte))
                );
                show(record, None);
            }
        }
    }
    Ok(())
}

pub fn answer(data: &[u8]) {
    let [script, option, jobs, template @ ..] = data else {
        return;
    };
    let mut shell = Said::new(template);
    let result = ask(&mut shell, *script, *option, usize::from(*jobs % 4));
    match result {
        Ok(()) => assert!(shell.has_end(), "complete without an end"),
        Err(failure) => assert_plain(&failure.message),
    }
    assert!(!shell.checked_in || shell.has_end());
}
