//! What an answer of `ssh -G` depends on: the files that ssh has read, and those that it would read if they existed.
//!
//! Not noticed: a new directory that an `Include` with wildcards in a directory name would match.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How long an answer remains valid that depends on a command or the network, in seconds.
const VOLATILE_AGE_MAX: u64 = 60;
/// How old a change must be so that another one certainly leads to a later stamp, in seconds.
const STAMP_AGE_MIN: u64 = 2;
/// What ssh prints for each file that it reads, and for an `Include` without a match.
const READS: &str = "debug1: Reading configuration data ";
const INCLUDES: &str = ": include ";
const MATCHED_NONE: &str = " matched no files";
/// The system's file. If it exists, ssh names it itself.
const SYSTEM_CONFIG: &str = "/etc/ssh/ssh_config";

/// Device, inode, size, and the times of the last changes of content and inode; `None` if the file does not exist.
type Stamp = Option<(u64, u64, u64, i64, i64, i64, i64)>;

/// What ssh prints about a destination's configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// `None` without an ssh program.
    pub(super) text: Option<String>,
    pub(super) warnings: Vec<String>,
    /// The debug output, which names the files.
    #[serde(skip)]
    pub(super) said: String,
}

impl Answer {
    /// Distinguishes this configuration from others.
    pub fn digest(&self) -> String {
        let digest = Sha256::digest(self.text.as_deref().unwrap_or_default());
        digest.iter().take(8).map(|b| format!("{b:02x}")).collect()
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Sources {
    stamps: Vec<(PathBuf, Stamp)>,
    /// When the answer expires even if no file changes, in seconds since 1970.
    until: Option<u64>,
}

impl Sources {
    /// Finds the files in the output of `ssh -v -G`. `volatile`: the answer depends on more than files.
    pub fn new(said: &str, config: Option<&Path>, home: &Path, volatile: bool) -> Self {
        let mut paths = match config {
            Some(config) => vec![config.to_owned()],
            None => vec![home.join(".ssh/config"), SYSTEM_CONFIG.into()],
        };
        let main = paths.len();
        paths.extend(read_files(said));
        // A file may be added beside one that was included.
        let beside: Vec<PathBuf> = paths
            .iter()
            .skip(main)
            .filter(|path| !paths.iter().take(main).any(|own| own == *path))
            .filter_map(|path| path.parent().map(Path::to_owned))
            .collect();
        paths.extend(beside);
        paths.extend(
            said.lines()
                .filter_map(|line| unmatched_include(line, home)),
        );
        paths.sort();
        paths.dedup();
        let stamps: Vec<(PathBuf, Stamp)> = paths
            .into_iter()
            .map(|path| {
                let stamp = stamp(&path);
                (path, stamp)
            })
            .collect();
        let now = seconds();
        let is_fresh = |stamp: &Stamp| {
            stamp.is_some_and(|(.., changed, _)| {
                u64::try_from(changed).is_ok_and(|changed| changed + STAMP_AGE_MIN > now)
            })
        };
        let fresh = stamps.iter().any(|(_, stamp)| is_fresh(stamp));
        let until = match (fresh, volatile) {
            (true, _) => Some(now + STAMP_AGE_MIN),
            (false, true) => Some(now + VOLATILE_AGE_MAX),
            (false, false) => None,
        };
        Self { stamps, until }
    }

    /// Whether the answer is still valid.
    pub fn are_current(&self) -> bool {
        let now = seconds();
        self.until
            .is_none_or(|until| now < until && until <= now + VOLATILE_AGE_MAX)
            && self
                .stamps
                .iter()
                .all(|(path, known)| stamp(path) == *known)
    }
}

/// The files that ssh reports to have read.
pub fn read_files(said: &str) -> impl Iterator<Item = PathBuf> {
    said.lines()
        .filter_map(|line| line.strip_prefix(READS))
        .map(PathBuf::from)
}

/// The directory to watch for an `Include` that matched nothing: the deepest one above its pattern's wildcards.
fn unmatched_include(line: &str, home: &Path) -> Option<PathBuf> {
    let pattern = line.strip_suffix(MATCHED_NONE)?.split_once(INCLUDES)?.1;
    let pattern = match pattern.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None => PathBuf::from(pattern),
    };
    let is_plain = |path: &Path| !path.to_string_lossy().contains(['*', '?', '[']);
    pattern
        .ancestors()
        .skip(1)
        .find(|path| is_plain(path))
        .map(Path::to_owned)
}

fn stamp(path: &Path) -> Stamp {
    let file = fs::metadata(path).ok()?;
    Some((
        file.dev(),
        file.ino(),
        file.size(),
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec(),
    ))
}

fn seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_the_directories_of_includes_are_watched() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/one"), "").unwrap();
        fs::write(at("main"), "").unwrap();
        let said = format!(
            "OpenSSH_9.2\ndebug1: Reading configuration data {0}/main\n\
             debug1: {0}/main line 1: include ~/none/*.conf matched no files\n\
             debug1: Reading configuration data {0}/d/one\n",
            home.path().display()
        );
        let main = at("main");
        let now = || Sources::new(&said, Some(&main), home.path(), false);
        // A second change of the directory within one tick of the clock would not be seen.
        let directory = fs::File::open(at("d")).unwrap();
        directory.set_modified(std::time::UNIX_EPOCH).unwrap();
        for change in [|| "main", || "d/one", || "d/two", || "none"] {
            let mut sources = now();
            sources.until = None;
            assert!(sources.are_current());
            fs::write(at(change()), change()).unwrap();
            assert!(!sources.are_current(), "{}", change());
        }
        // A file that has just changed may change again without a new stamp.
        let mut just_changed = (0..20).map(|_| {
            fs::write(at("main"), "x").unwrap();
            now().until.is_some()
        });
        assert!(just_changed.any(|is_fresh| is_fresh));
        let mut sources = Sources::new(&said, Some(&main), home.path(), true);
        sources.until = Some(seconds());
        assert!(!sources.are_current());
    }
}
