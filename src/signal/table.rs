//! The signals of each system: numbers, default actions and descriptions.
//!
//! Linux: signal(7), with the numbers of x86, Arm, POWER, RISC-V and s390, and glibc's real-time range
//! (musl's begins at 35). MIPS, SPARC, Alpha and PA-RISC have other numbers and are not handled.
//! BSDs: `sys/signal.h`, with the actions from `sigprop` in XNU's `sys/signalvar.h` and from
//! `sigproptbl` in FreeBSD's `kern_sig.c`. Below 32, all BSDs have 4.4BSD's numbers.

use std::fmt;
use std::ops::RangeInclusive;

use DefaultAction::{Continue, Core, Ignore, Stop, Terminate};

use super::os::Os;

/// What a signal does to a process that neither catches, blocks nor ignores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DefaultAction {
    Terminate,
    /// Terminates with a core dump, if the system and the limits allow one.
    Core,
    Ignore,
    Stop,
    Continue,
}

impl fmt::Display for DefaultAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Terminate => "terminate",
            Core => "core",
            Ignore => "ignore",
            Stop => "stop",
            Continue => "continue",
        })
    }
}

type Entry = Option<(u8, DefaultAction)>;

/// A named signal, as opposed to a real-time one, with its number and action on each system.
pub(super) struct NamedSignal {
    pub name: &'static str,
    pub description: &'static str,
    linux: Entry,
    bsd: Entry,
}

const fn known(
    name: &'static str,
    linux: Entry,
    bsd: Entry,
    description: &'static str,
) -> NamedSignal {
    NamedSignal {
        name,
        description,
        linux,
        bsd,
    }
}

#[rustfmt::skip]
pub(super) const KNOWN: &[NamedSignal] = &[
    //               Linux                  BSDs
    known("HUP",    Some((1, Terminate)),  Some((1, Terminate)),  "the terminal is gone; many daemons reload"),
    known("INT",    Some((2, Terminate)),  Some((2, Terminate)),  "interrupt, as Ctrl-C sends it"),
    known("QUIT",   Some((3, Core)),       Some((3, Core)),       "quit and leave a core dump, as Ctrl-\\ sends it"),
    known("ILL",    Some((4, Core)),       Some((4, Core)),       "illegal instruction"),
    known("TRAP",   Some((5, Core)),       Some((5, Core)),       "breakpoint or trace trap, for debuggers"),
    known("ABRT",   Some((6, Core)),       Some((6, Core)),       "the program gave itself up with abort()"),
    known("BUS",    Some((7, Core)),       Some((10, Core)),      "memory access misaligned or past a file's end"),
    known("EMT",    None,                  Some((7, Core)),       "instruction that the system should emulate"),
    known("FPE",    Some((8, Core)),       Some((8, Core)),       "arithmetic error, such as division by zero"),
    known("KILL",   Some((9, Terminate)),  Some((9, Terminate)),  "ends at once; can't be caught or ignored"),
    known("USR1",   Some((10, Terminate)), Some((30, Terminate)), "free for a program's own use"),
    known("SEGV",   Some((11, Core)),      Some((11, Core)),      "access to memory that is not the program's"),
    known("USR2",   Some((12, Terminate)), Some((31, Terminate)), "free for a program's own use"),
    known("PIPE",   Some((13, Terminate)), Some((13, Terminate)), "write to a pipe or socket that nobody reads"),
    known("ALRM",   Some((14, Terminate)), Some((14, Terminate)), "a timer set with alarm() ran out"),
    known("TERM",   Some((15, Terminate)), Some((15, Terminate)), "please end; what `rsig kill` sends by default"),
    known("STKFLT", Some((16, Terminate)), None,                  "coprocessor stack fault; Linux never sends it"),
    known("CHLD",   Some((17, Ignore)),    Some((20, Ignore)),    "a child ended, stopped or continued"),
    known("CONT",   Some((18, Continue)),  Some((19, Continue)),  "go on after a stop"),
    known("STOP",   Some((19, Stop)),      Some((17, Stop)),      "stops at once; can't be caught or ignored"),
    known("TSTP",   Some((20, Stop)),      Some((18, Stop)),      "stop, as Ctrl-Z sends it"),
    known("TTIN",   Some((21, Stop)),      Some((21, Stop)),      "read from the terminal in the background"),
    known("TTOU",   Some((22, Stop)),      Some((22, Stop)),      "write to the terminal in the background"),
    known("URG",    Some((23, Ignore)),    Some((16, Ignore)),    "urgent data on a socket"),
    known("XCPU",   Some((24, Core)),      Some((24, Terminate)), "limit on processor time exceeded"),
    known("XFSZ",   Some((25, Core)),      Some((25, Terminate)), "limit on file size exceeded"),
    known("VTALRM", Some((26, Terminate)), Some((26, Terminate)), "a timer of own processor time ran out"),
    known("PROF",   Some((27, Terminate)), Some((27, Terminate)), "a profiler's timer ran out"),
    known("WINCH",  Some((28, Ignore)),    Some((28, Ignore)),    "the terminal window changed its size"),
    known("INFO",   None,                  Some((29, Ignore)),    "status request, as Ctrl-T sends it"),
    known("IO",     Some((29, Terminate)), Some((23, Ignore)),    "a descriptor is ready for input or output"),
    known("PWR",    Some((30, Terminate)), None,                  "power failure"),
    known("SYS",    Some((31, Core)),      Some((12, Core)),      "bad system call, or one that seccomp forbids"),
    known("THR",    None,                  Some((32, Terminate)), "reserved for the threads library"),
    known("LIBRT",  None,                  Some((33, Terminate)), "reserved for the real-time library"),
];

/// Other names of the same signals, with the systems that have them.
const ALIASES: &[(&str, &str, &[Os])] = &[
    ("IOT", "ABRT", &Os::ALL),
    ("CLD", "CHLD", &[Os::Linux]),
    ("POLL", "IO", &[Os::Linux]),
    ("UNUSED", "SYS", &[Os::Linux]),
    ("LWP", "THR", &[Os::FreeBSD]),
];

/// Names that some shell's built-in `kill` lacks, as tested: zsh lacks ABRT, dash STKFLT, mksh IO, and
/// all but bash and ksh93 lack some real-time ones. Names that only BSDs have are included to be safe.
pub(super) const NAMES_SHELLS_LACK: [&str; 7] =
    ["ABRT", "STKFLT", "IO", "EMT", "INFO", "THR", "LIBRT"];

/// The numbers that mean the same on every system (POSIX, `kill -signal_number`).
const POSIX_NUMBERS: [u8; 7] = [1, 2, 3, 6, 9, 14, 15];

impl NamedSignal {
    fn entry(&self, os: Os) -> Entry {
        match os {
            Os::Linux => self.linux,
            Os::FreeBSD => self.bsd,
            Os::Darwin | Os::Bsd => self.bsd.filter(|(number, _)| *number < 32),
            Os::Other => self.linux.filter(|(n, _)| POSIX_NUMBERS.contains(n)),
        }
    }

    pub fn number(&self, os: Os) -> Option<u8> {
        self.entry(os).map(|(number, _)| number)
    }

    /// Whether a system has this signal. An unknown system is assumed to have those shared by Linux and the BSDs.
    pub fn is_on(&self, os: Os) -> bool {
        self.entry(os).is_some() || os == Os::Other && self.linux.is_some() && self.bsd.is_some()
    }

    /// The signal that `name` or alias means on a system.
    pub fn named(name: &str, os: Os) -> Option<&'static Self> {
        let name = ALIASES
            .iter()
            .find(|(alias, _, systems)| *alias == name && systems.contains(&os))
            .map_or(name, |(_, canonical, _)| canonical);
        KNOWN
            .iter()
            .find(|known| known.name == name && known.is_on(os))
    }

    pub fn numbered(number: u8, os: Os) -> Option<&'static Self> {
        KNOWN.iter().find(|known| known.number(os) == Some(number))
    }
}

/// All names on any system, including aliases.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let aliases = ALIASES.iter().map(|(alias, ..)| *alias);
    KNOWN.iter().map(|known| known.name).chain(aliases)
}

/// The real-time signals that a program may use, RTMIN to RTMAX. On Linux, 32 and 33 belong to the C
/// library; on FreeBSD, 34 to 64 have no names.
pub(super) fn real_time(os: Os) -> Option<RangeInclusive<u8>> {
    match os {
        Os::Linux => Some(34..=64),
        Os::FreeBSD => Some(65..=126),
        Os::Darwin | Os::Bsd | Os::Other => None,
    }
}

/// One line of `rsig kill -l`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub number: u8,
    /// Without `SIG`.
    pub name: String,
    pub action: DefaultAction,
    pub description: &'static str,
}

/// All signals of a system whose numbers rsig knows, sorted by number.
pub fn table(os: Os) -> Vec<Row> {
    let named = KNOWN.iter().filter_map(|known| {
        let (number, action) = known.entry(os)?;
        Some(Row {
            number,
            name: known.name.to_owned(),
            action,
            description: known.description,
        })
    });
    let real_time = real_time(os).into_iter().flat_map(|range| {
        range.clone().map(move |number| Row {
            number,
            name: RealTime::nearest(number, &range).to_string(),
            action: Terminate,
            description: "real-time: queued, free for a program's own use",
        })
    });
    let mut rows: Vec<_> = named.chain(real_time).collect();
    rows.sort_by_key(|row| row.number);
    rows
}

/// A real-time signal, counted from one end of the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum RealTime {
    MinPlus(u8),
    MaxMinus(u8),
}

impl RealTime {
    /// `RTMIN`, `RTMIN+n`, `RTMAX-n` or `RTMAX`, in upper case.
    pub fn parse(name: &str) -> Option<Self> {
        let (from_end, sign, rest): (fn(u8) -> Self, _, _) = match name.split_at_checked(5)? {
            ("RTMIN", rest) => (Self::MinPlus, '+', rest),
            ("RTMAX", rest) => (Self::MaxMinus, '-', rest),
            _ => return None,
        };
        if rest.is_empty() {
            return Some(from_end(0));
        }
        let distance = rest.strip_prefix(sign)?;
        // The integer parser would accept a second `+`.
        let digit_first = distance.starts_with(|c: char| c.is_ascii_digit());
        distance.parse().ok().filter(|_| digit_first).map(from_end)
    }

    /// Counted from the nearer end, or from RTMIN in the middle, like bash's `kill -l`.
    pub fn nearest(number: u8, range: &RangeInclusive<u8>) -> Self {
        let above = number.saturating_sub(*range.start());
        let below = range.end().saturating_sub(number);
        if above <= below {
            Self::MinPlus(above)
        } else {
            Self::MaxMinus(below)
        }
    }

    pub fn number(self, range: &RangeInclusive<u8>) -> Option<u8> {
        match self {
            Self::MinPlus(n) => range.start().checked_add(n),
            Self::MaxMinus(n) => range.end().checked_sub(n),
        }
        .filter(|number| range.contains(number))
    }
}

impl fmt::Display for RealTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MinPlus(0) => f.pad("RTMIN"),
            Self::MaxMinus(0) => f.pad("RTMAX"),
            Self::MinPlus(n) => f.pad(&format!("RTMIN+{n}")),
            Self::MaxMinus(n) => f.pad(&format!("RTMAX-{n}")),
        }
    }
}
