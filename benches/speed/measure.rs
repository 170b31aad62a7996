//! Times and memory sizes of whole processes.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Milliseconds,
    /// A megabyte is 10^6 bytes.
    MegabytesPerSecond,
    Megabytes,
    Number,
}

/// Summary of several runs.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    pub unit: Unit,
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Figure {
    pub fn of(unit: Unit, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Self {
            unit,
            median,
            min: values[0],
            max: values[values.len() - 1],
        }
    }

    pub fn times(times: &[Duration]) -> Self {
        Self::of(
            Unit::Milliseconds,
            times.iter().map(|time| time.as_secs_f64() * 1e3).collect(),
        )
    }

    /// Throughput of runs that transferred `size` bytes each.
    pub fn rates(times: &[Duration], size: u64) -> Self {
        let size = f64::from(u32::try_from(size / 1000).expect("a size below 4 TB")) / 1e3;
        Self::of(
            Unit::MegabytesPerSecond,
            times.iter().map(|time| size / time.as_secs_f64()).collect(),
        )
    }

    pub fn number(count: u64) -> Self {
        Self::of(
            Unit::Number,
            vec![f64::from(u32::try_from(count).expect("a small number"))],
        )
    }
}

/// Time of one process from start to end. Its output is discarded.
///
/// # Panics
/// If the process fails, since its time would be meaningless.
pub fn time(command: &mut Command) -> Duration {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    let start = Instant::now();
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("{command:?} can't be started: {error}"));
    let time = start.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    time
}

/// Times of two commands that run alternately, `runs` times each, so that other load on the machine affects both. One
/// run of each goes first and is not counted.
pub fn in_turns(
    runs: usize,
    one: &mut Command,
    other: &mut Command,
) -> (Vec<Duration>, Vec<Duration>) {
    time(one);
    time(other);
    (0..runs).map(|_| (time(one), time(other))).unzip()
}

/// Times of one command, after one run that is not counted.
pub fn alone(runs: usize, command: &mut Command) -> Vec<Duration> {
    time(command);
    (0..runs).map(|_| time(command)).collect()
}

/// Peak resident memory of a process in megabytes, and the number of bytes that it wrote.
pub fn peak(command: &mut Command) -> (f64, u64) {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} can't be started: {error}"));
    let mut stdout = child.stdout.take().expect("stdout is a pipe");
    let ended = AtomicBool::new(false);
    let found = thread::scope(|scope| {
        // The kernel drops the mark when the process ends, so it is read repeatedly until then.
        let mark = scope.spawn(|| {
            let mut mark = 0;
            while !ended.load(Ordering::Relaxed) {
                mark = high_water_mark(&child).unwrap_or(mark);
                thread::sleep(Duration::from_millis(2));
            }
            mark
        });
        let mut buffer = vec![0; 1 << 20];
        let mut size = 0;
        while let count @ 1.. = stdout.read(&mut buffer).expect("a pipe can be read") {
            size += count as u64;
        }
        ended.store(true, Ordering::Relaxed);
        (
            f64::from(
                mark.join()
                    .expect("the thread that reads the mark does not panic"),
            ) / 1e3,
            size,
        )
    });
    let status = child.wait().expect("our child can be waited for");
    assert!(status.success(), "{command:?}: {status}");
    found
}

/// `VmHWM` of a process in kB (proc(5)).
fn high_water_mark(child: &Child) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?
        .trim()
        .strip_suffix(" kB")?
        .parse()
        .ok()
}
