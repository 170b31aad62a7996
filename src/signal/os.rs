use std::fmt;

/// An operating system; systems with the same signals are not distinguished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Os {
    Linux,
    Darwin,
    FreeBSD,
    /// OpenBSD, NetBSD and `DragonFly`: the same as FreeBSD below 32. From 32 on they differ, and rsig
    /// knows none of those signals.
    Bsd,
    /// Any other: rsig knows the few numbers that POSIX specifies and leaves names to the host.
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

    /// The system on which `uname -s` prints `sysname`.
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

    /// The value of `--os` for this system's table, if it has its own table.
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
