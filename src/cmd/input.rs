//! What a job reads: this process's standard input, or a file.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::dispatch::usage;
use crate::remote::start::Input;

/// All of a file, or of standard input where that is `-`. What has no size that is known before it is read is copied
/// first, into a file that has no name.
pub fn whole(path: &Path) -> Result<Input> {
    let unreadable = |error: io::Error| usage(format!("--stdin {}: {error}", path.display()));
    let mut file = if path == Path::new("-") {
        File::from(
            io::stdin()
                .as_fd()
                .try_clone_to_owned()
                .map_err(unreadable)?,
        )
    } else {
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.is_file() {
            return Ok(Input::new(file, metadata.len()));
        }
        file
    };
    let copied =
        tempfile::tempfile().and_then(|mut copy| Ok((io::copy(&mut file, &mut copy)?, copy)));
    let (size, copy) = copied
        .with_context(|| format!("--stdin {}: it can't be read to its end", path.display()))?;
    Ok(Input::new(copy, size))
}
