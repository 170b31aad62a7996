//! Cleanup for `run`: removes a job's files once it has ended and its output has been delivered.

use crate::connection::HostConnection;
use crate::error::Failure;
use crate::job::Record;
use crate::remote::look::{self, StreamSelection};

/// Removes the files of those jobs on the connection's host that have ended and whose output has been read. Returns for
/// each job whether its files are gone. `read`: the streams that have just been delivered to their ends.
pub fn forget_read(
    connection: &mut HostConnection<'_>,
    records: &mut [Record],
    read: StreamSelection,
) -> Result<Vec<bool>, Failure> {
    let dirs: Vec<String> = records.iter().map(Record::job_dir).collect();
    let dirs: Vec<&str> = dirs.iter().map(String::as_str).collect();
    let host = connection.host();
    let answers = connection.ask(|shell| look::forget_read(&host, shell, &dirs, read))?;
    let mut gone = Vec::with_capacity(records.len());
    for (record, (seen, removed)) in records.iter_mut().zip(answers) {
        seen.update(record);
        gone.push(removed);
    }
    Ok(gone)
}
