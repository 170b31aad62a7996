//! Output split into whole, labelled lines, for several outputs that share a stream.

use std::io;

use super::print_bytes;

/// Maximum length of a line, in bytes; longer lines are split.
const LINE_MAX: usize = 64 << 10;

/// One of the outputs that are printed to the same stream.
pub struct LineWriter {
    label: String,
    error_stream: bool,
    /// The incomplete last line.
    partial: Vec<u8>,
}

impl LineWriter {
    pub fn new(label: String, error_stream: bool) -> Self {
        Self {
            label,
            error_stream,
            partial: Vec::new(),
        }
    }

    /// Prints the lines that are now complete, in one write.
    pub fn print(&mut self, bytes: &[u8]) -> io::Result<()> {
        let whole = self.take(bytes);
        print_bytes(self.error_stream, &whole)
    }

    /// Prints the incomplete last line, if any, with a newline.
    pub fn end(&mut self) -> io::Result<()> {
        if self.partial.is_empty() {
            return Ok(());
        }
        self.print(b"\n")
    }

    fn take(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut whole = Vec::new();
        while !bytes.is_empty() {
            let room = LINE_MAX - self.partial.len();
            let newline = memchr::memchr(b'\n', bytes).filter(|at| *at <= room);
            let (end, next) = match newline {
                Some(at) => (at, at + 1),
                None if bytes.len() > room => (room, room),
                None => {
                    self.partial.extend_from_slice(bytes);
                    break;
                }
            };
            let (line, rest) = (bytes.get(..end), bytes.get(next..));
            whole.extend_from_slice(self.label.as_bytes());
            whole.extend_from_slice(b": ");
            whole.append(&mut self.partial);
            whole.extend_from_slice(line.unwrap_or_default());
            whole.push(b'\n');
            bytes = rest.unwrap_or_default();
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(pieces: &[&[u8]]) -> String {
        let mut lines = LineWriter::new("web1".to_owned(), false);
        let mut all = Vec::new();
        for piece in pieces {
            all.extend(lines.take(piece));
        }
        if !lines.partial.is_empty() {
            all.extend(lines.take(b"\n"));
        }
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn lines_come_whole() {
        for (pieces, expected) in [
            (&[&b""[..]][..], ""),
            (&[b"a\n"], "web1: a\n"),
            (&[b"a\nb\n"], "web1: a\nweb1: b\n"),
            (&[b"a", b"b\nc", b"\n"], "web1: ab\nweb1: c\n"),
            (&[b"a\nb"], "web1: a\nweb1: b\n"),
            (&[b"\n\n"], "web1: \nweb1: \n"),
            (&[b"a", b"\nb"], "web1: a\nweb1: b\n"),
        ] {
            assert_eq!(printed(pieces), expected);
        }
    }

    #[test]
    fn a_long_line_is_split() {
        for (length, expected) in [
            (LINE_MAX - 1, vec![LINE_MAX - 1]),
            (LINE_MAX, vec![LINE_MAX]),
            (LINE_MAX + 1, vec![LINE_MAX, 1]),
            (3 * LINE_MAX, vec![LINE_MAX; 3]),
        ] {
            for end in ["\n", ""] {
                let line = "x".repeat(length) + end;
                for size in [1000, LINE_MAX, line.len()] {
                    let pieces: Vec<&[u8]> = line.as_bytes().chunks(size).collect();
                    let text = printed(&pieces);
                    let lines: Vec<usize> = text
                        .lines()
                        .map(|line| line.len() - "web1: ".len())
                        .collect();
                    assert_eq!(lines, expected, "{length} in pieces of {size}");
                }
            }
        }
    }
}
