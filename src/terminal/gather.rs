//! Grouping of equal outputs: each distinct output is printed once, with its hosts, like dshbak(1) and `clush -b`.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::{self, Read as _, Seek as _, Write as _};

use sha2::{Digest as _, Sha256};
use tempfile::SpooledTempFile;

use super::print_bytes;
use crate::hosts::fold;

/// Maximum size of an output kept in memory, in bytes; larger ones go to an unnamed temporary file.
const MEMORY_MAX: usize = 64 << 10;
const RULE: &str = "---------------";

/// The complete output of one host.
pub struct GatheredOutput {
    bytes: SpooledTempFile,
    hash: Sha256,
    last: Option<u8>,
}

impl Default for GatheredOutput {
    fn default() -> Self {
        Self {
            bytes: SpooledTempFile::new(MEMORY_MAX),
            hash: Sha256::new(),
            last: None,
        }
    }
}

impl GatheredOutput {
    pub fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.last = bytes.last().copied().or(self.last);
        self.bytes.write_all(bytes)
    }

    /// Adds a final newline if it is missing.
    pub fn end(&mut self) -> io::Result<()> {
        match self.last {
            None | Some(b'\n') => Ok(()),
            Some(_) => self.add(b"\n"),
        }
    }

    fn print(&mut self) -> io::Result<()> {
        self.bytes.rewind()?;
        let mut buffer = vec![0; MEMORY_MAX];
        while let size @ 1.. = self.bytes.read(&mut buffer)? {
            print_bytes(false, buffer.get(..size).unwrap_or_default())?;
        }
        Ok(())
    }
}

/// Prints each distinct output once, after its hosts. Outputs of more hosts come first, others in order of first
/// occurrence. Empty outputs are omitted.
pub fn print_gathered(outputs: Vec<(String, GatheredOutput)>) -> io::Result<()> {
    let mut groups: Vec<(Vec<String>, GatheredOutput)> = Vec::new();
    let mut known = HashMap::new();
    for (host, output) in outputs {
        if output.last.is_none() {
            continue;
        }
        let at = *known
            .entry(output.hash.clone().finalize())
            .or_insert(groups.len());
        match groups.get_mut(at) {
            Some((hosts, _)) => hosts.push(host),
            None => groups.push((vec![host], output)),
        }
    }
    groups.sort_by_key(|(hosts, _)| Reverse(hosts.len()));
    for (hosts, mut output) in groups {
        let folded = fold(hosts.iter().map(String::as_str));
        let count = match hosts.len() {
            1 => String::new(),
            count => format!(" ({count})"),
        };
        let heading = format!("{RULE}\n{folded}{count}\n{RULE}\n");
        print_bytes(false, heading.as_bytes())?;
        output.print()?;
    }
    Ok(())
}
