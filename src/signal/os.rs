use std::fmt;

/// An operating system, as far as its signals differ from another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Os {
    Linux,
    Darwin,
    FreeBSD,
    /// OpenBSD, NetBSD and `DragonFly`: like FreeBSD below 32, each on its own above, where rsig
    /// knows nothing.
    Bsd,
    /// Any other: rsig knows the few numbers that POSIX fixes and leaves the names to the host.
    Other,
}

impl Os {
    pub(super) const ALL: [Self; 5] = [
        Self::Linux,
        Self::Darwin,
        Self::FreeBSD,
        Self::Bsd,
        Self::Other,
    ];

    /// The system whose `uname -s` printed `sysname`.
    pub fn from_uname(sysname: &str) -> Self {
        match sysname.trim() {
            "Linux" => Self::Linux,
            "Darwin" => Self::Darwin,
            "FreeBSD" => Self::FreeBSD,
            "OpenBSD" | "NetBSD" | "DragonFly" => Self::Bsd,
            _ => Self::Other,
        }
    }

    /// The system that rsig itself runs on.
    pub fn here() -> Self {
        match std::env::consts::OS {
            "linux" | "android" => Self::Linux,
            "macos" | "ios" => Self::Darwin,
            "freebsd" => Self::FreeBSD,
            "openbsd" | "netbsd" | "dragonfly" => Self::Bsd,
            _ => Self::Other,
        }
    }

    /// The value of `--os` that asks for this system's table, if it has one of its own.
    pub fn option(self) -> Option<&'static str> {
        match self {
            Self::Linux => Some("linux"),
            Self::Darwin => Some("darwin"),
            Self::FreeBSD => Some("freebsd"),
            Self::Bsd | Self::Other => None,
        }
    }
}

impl fmt::Display for Os {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Linux => "Linux",
            Self::Darwin => "macOS",
            Self::FreeBSD => "FreeBSD",
            Self::Bsd => "a BSD other than FreeBSD",
            Self::Other => "a system unknown to rsig",
        })
    }
}
