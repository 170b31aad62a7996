//! The regular expression of `wait --for`, and the last lines of output for the message if no line matched.

use std::io::ErrorKind;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::connection::HostConnection;
use crate::escape::printable;
use crate::remote::output::{Progress, ReadRequest, StartPosition, read};

/// Number of lines of each stream that a message shows, and their maximum length in characters.
const LAST_LINES: u64 = 3;
const LAST_LINE_MAX: usize = 200;
/// Maximum number of bytes of each stream kept to find these lines.
const TAIL_MAX: usize = 64 << 10;

/// An extended regular expression, matched against single lines by the grep of the job's host, in the C locale.
#[derive(Clone, Debug)]
pub struct Pattern(Arc<str>);

impl Pattern {
    /// Rejects what this machine's grep rejects, if there is one. The host's grep may reject more.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.contains(['\n', '\0']) {
            return Err(
                "it is matched against single lines: it can't contain a line break or NUL"
                    .to_owned(),
            );
        }
        let checked = Command::new("grep")
            .args(["-E", "-e", text])
            .env("LC_ALL", "C")
            .env_remove("GREP_OPTIONS")
            .stdin(Stdio::null())
            .output();
        match checked {
            Err(error) if error.kind() == ErrorKind::ArgumentListTooLong => {
                Err("it is too long".to_owned())
            }
            Ok(output) if output.status.code() == Some(2) => {
                let said = output
                    .stderr
                    .split(|byte| *byte == b'\n')
                    .next()
                    .unwrap_or_default();
                let said = printable(said, LAST_LINE_MAX);
                Err(said.trim_start_matches("grep: ").to_owned())
            }
            _ => Ok(Self(text.into())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The last lines of a job's output for a message, each preceded by a line break. Empty if they can't be read.
pub fn last_lines(connection: &mut HostConnection<'_>, place: &str) -> String {
    let wanted = ReadRequest {
        place,
        out: true,
        err: true,
        from: StartPosition::LastLines(LAST_LINES),
        follow: false,
        most: None,
        pause: None,
        enough: None,
        gone: &|_| (),
    };
    let (host, mut texts) = (connection.host(), [vec![], vec![]]);
    let result = connection.ask(|shell| {
        texts = [vec![], vec![]];
        read(
            &host,
            shell,
            &wanted,
            &mut Progress::default(),
            &mut |stream, bytes| {
                let text: &mut Vec<u8> = &mut texts[stream as usize];
                text.extend_from_slice(bytes);
                text.drain(..text.len().saturating_sub(TAIL_MAX));
                Ok(())
            },
        )
    });
    if result.is_err() {
        return String::new();
    }
    let lines = texts
        .iter()
        .flat_map(|text| text.split(|byte| *byte == b'\n'));
    lines
        .filter(|line| !line.is_empty())
        .map(|line| format!("\n  {}", printable(line, LAST_LINE_MAX)))
        .collect()
}
