//! Jobs that were started with `--rm`: forgotten with their files once they have ended and their output is read.
//!
//! Read is what `tail` has shown to its end after the job had ended, of both streams; an empty one needs no reading.
//! Whoever sees that a job is over asks its host, which keeps what has been read and decides.

use crate::connection::Line;
use crate::error::Failure;
use crate::job::Record;
use crate::remote::look::{self, Streams};

/// Removes the files of those jobs that are over and read, and says of which. All are of the line's host; `read` is
/// what has just been passed on to the end.
pub fn forget_read(
    line: &mut Line<'_>,
    records: &mut [Record],
    read: Streams,
) -> Result<Vec<bool>, Failure> {
    let places: Vec<String> = records.iter().map(Record::job_dir).collect();
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    let host = line.host();
    let answers = look::forget_read(&host, line.shell()?.as_mut(), &places, read)?;
    let mut gone = Vec::with_capacity(records.len());
    for (record, (seen, removed)) in records.iter_mut().zip(answers) {
        seen.update(record);
        gone.push(removed);
    }
    Ok(gone)
}
