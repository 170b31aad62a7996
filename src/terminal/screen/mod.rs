//! The screen of `top`: its content and its keys. This module does no I/O, neither with a terminal nor with a host.

mod draw;

use std::cmp::Ordering;
use std::collections::HashSet;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::ListedJob;
use crate::escape::printable;
use crate::job::{JobId, Record};
use crate::signal::SignalWord;

/// Maximum length of a line of output, in characters.
const LINE_MAX: usize = 1000;

/// What the list is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SortKey {
    /// CPU use, the highest first
    #[default]
    Cpu,
    /// Resident memory, the highest first
    Memory,
    /// CPU time, the longest first
    Time,
    /// The oldest job first
    Started,
    /// By name
    Name,
    /// By host
    Host,
    /// By state
    State,
}

impl SortKey {
    const ALL: [(Self, &str); 7] = [
        (Self::Cpu, "cpu"),
        (Self::Memory, "memory"),
        (Self::Time, "time"),
        (Self::Started, "started"),
        (Self::Name, "name"),
        (Self::Host, "host"),
        (Self::State, "state"),
    ];

    fn place(self) -> usize {
        Self::ALL
            .iter()
            .position(|(key, _)| *key == self)
            .unwrap_or_default()
    }

    fn word(self) -> &'static str {
        Self::ALL[self.place()].1
    }

    fn next(self) -> Self {
        Self::ALL[(self.place() + 1) % Self::ALL.len()].0
    }

    fn compare(self, one: &ListedJob, other: &ListedJob) -> Ordering {
        let by = |value: fn(&ListedJob) -> Option<f64>| {
            let value = |job| value(job).unwrap_or(-1.0);
            value(other).total_cmp(&value(one))
        };
        let name = |job: &ListedJob| {
            job.record
                .name
                .as_ref()
                .map(|name| name.as_str().to_owned())
        };
        match self {
            Self::Cpu => by(|job| job.usage?.cpu_percent),
            #[allow(clippy::cast_precision_loss, reason = "to sort by")]
            Self::Memory => by(|job| job.usage?.rss_bytes.map(|bytes| bytes as f64)),
            Self::Time => by(|job| job.usage.map(|usage| usage.cpu_seconds)),
            Self::Started => one.record.created_at.cmp(&other.record.created_at),
            Self::Name => {
                (name(one).is_none(), name(one)).cmp(&(name(other).is_none(), name(other)))
            }
            Self::Host => one
                .record
                .host()
                .to_string()
                .cmp(&other.record.host().to_string()),
            Self::State => one.state.word().cmp(other.state.word()),
        }
    }
}

/// An action that a key requests.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Send(SignalWord, Vec<Record>),
    /// TERM, CONT, and KILL after a grace.
    End(Vec<Record>),
    Wait(Vec<Record>),
    Quit,
    /// Ctrl-C.
    Interrupt,
}

impl Action {
    /// The signals and the number of jobs, for the confirmation question.
    fn signals(&self) -> Option<(String, usize)> {
        match self {
            Self::Send(signal, jobs) => Some((signal.to_string(), jobs.len())),
            Self::End(jobs) => Some(("TERM, then KILL".to_owned(), jobs.len())),
            _ => None,
        }
    }

    /// Whether the user must confirm: several jobs may get KILL, which can't be caught.
    fn needs_confirmation(&self) -> bool {
        match self {
            Self::Send(signal, jobs) => signal.is_kill() && jobs.len() > 1,
            Self::End(jobs) => jobs.len() > 1,
            _ => false,
        }
    }
}

/// The input mode.
#[derive(Clone, Debug, Default, PartialEq)]
enum Mode {
    #[default]
    Browse,
    /// The user types a filter.
    Filter,
    /// The user types a signal's name.
    Signal(String),
    /// Waits for a confirmation.
    Question(Action),
}

/// The last lines of a job's two streams.
#[derive(Debug, Default)]
struct OutputPane {
    of: Option<JobId>,
    out: Vec<String>,
    err: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Screen {
    /// All listed jobs, the oldest first.
    pub jobs: Vec<ListedJob>,
    /// The result of the last action.
    pub message: String,
    /// The hosts that do not answer, and why.
    pub host_errors: Vec<String>,
    is_coloured: bool,
    sort: SortKey,
    is_reversed: bool,
    filter: String,
    mode: Mode,
    selected: Option<JobId>,
    marked: HashSet<JobId>,
    output: OutputPane,
    /// Index of the first listed job on the screen.
    top: usize,
    /// Number of jobs that fit on the screen.
    page: usize,
}

impl Screen {
    pub fn new(sort: SortKey, is_coloured: bool) -> Self {
        Self {
            is_coloured,
            sort,
            ..Self::default()
        }
    }

    /// The jobs that match the filter, sorted.
    fn shown(&self) -> Vec<&ListedJob> {
        let wanted = self.filter.to_lowercase();
        let fits = |job: &&ListedJob| {
            if wanted.is_empty() {
                return true;
            }
            let words = [
                job.record.label(),
                job.state.to_string(),
                super::command_line(&job.record.command),
            ];
            words
                .iter()
                .any(|word| word.to_lowercase().contains(&wanted))
        };
        let mut shown: Vec<&ListedJob> = self.jobs.iter().filter(fits).collect();
        shown.sort_by(|one, other| self.sort.compare(one, other));
        if self.is_reversed {
            shown.reverse();
        }
        shown
    }

    /// The selected job, or the first one if the selected job is no longer shown.
    pub fn selected(&self) -> Option<&Record> {
        let shown = self.shown();
        let place = self.place(&shown);
        shown.get(place).map(|job| &job.record)
    }

    fn place(&self, shown: &[&ListedJob]) -> usize {
        let is_selected = |job: &&ListedJob| Some(&job.record.id) == self.selected.as_ref();
        shown.iter().position(is_selected).unwrap_or_default()
    }

    /// The marked jobs, or the selected one if none is marked. Jobs hidden by the filter are never included.
    fn targets(&self) -> Vec<Record> {
        let shown = self.shown();
        let marked: Vec<Record> = shown
            .iter()
            .filter(|job| self.marked.contains(&job.record.id))
            .map(|job| job.record.clone())
            .collect();
        if marked.is_empty() {
            self.selected().cloned().into_iter().collect()
        } else {
            marked
        }
    }

    /// Shows the last bytes of a job's streams.
    pub fn take_output(&mut self, id: &JobId, out: &[u8], err: &[u8]) {
        self.output = OutputPane {
            of: Some(id.clone()),
            out: lines(out),
            err: lines(err),
        };
    }

    pub fn key(&mut self, key: KeyEvent) -> Option<Action> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return (key.code == KeyCode::Char('c')).then_some(Action::Interrupt);
        }
        match std::mem::take(&mut self.mode) {
            Mode::Browse => self.browse(key.code),
            Mode::Filter => {
                match key.code {
                    KeyCode::Enter => return None,
                    KeyCode::Esc => {
                        self.filter.clear();
                        return None;
                    }
                    code => edit(&mut self.filter, code),
                }
                self.mode = Mode::Filter;
                None
            }
            Mode::Signal(mut word) => match key.code {
                KeyCode::Enter => match word.parse() {
                    Ok(signal) => self.ask(Action::Send(signal, self.targets())),
                    Err(error) => {
                        self.message = format!("{error}");
                        None
                    }
                },
                KeyCode::Esc => None,
                code => {
                    edit(&mut word, code);
                    self.mode = Mode::Signal(word);
                    None
                }
            },
            Mode::Question(action) => {
                if matches!(key.code, KeyCode::Char('y' | 'Y')) {
                    return Some(action);
                }
                "nothing was sent".clone_into(&mut self.message);
                None
            }
        }
    }

    fn browse(&mut self, code: KeyCode) -> Option<Action> {
        self.message.clear();
        match code {
            KeyCode::Up => self.go(-1),
            KeyCode::Down => self.go(1),
            KeyCode::PageUp => self.go(-self.page_length()),
            KeyCode::PageDown => self.go(self.page_length()),
            KeyCode::Home => self.go(isize::MIN),
            KeyCode::End => self.go(isize::MAX),
            KeyCode::Esc if self.marked.is_empty() => self.filter.clear(),
            KeyCode::Esc => self.marked.clear(),
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Char('o') => self.sort = self.sort.next(),
            KeyCode::Char('r') => self.is_reversed = !self.is_reversed,
            KeyCode::Char('q') => return Some(Action::Quit),
            _ if self.targets().is_empty() => {}
            KeyCode::Char(' ') => {
                if let Some(id) = self.selected().map(|record| record.id.clone())
                    && !self.marked.remove(&id)
                {
                    self.marked.insert(id);
                }
                self.go(1);
            }
            KeyCode::Char('x') => self.mode = Mode::Signal(String::new()),
            KeyCode::Char('e') => return self.ask(Action::End(self.targets())),
            KeyCode::Char('w') => return Some(Action::Wait(self.targets())),
            KeyCode::Char(letter) => {
                let name = ["TERM", "KILL", "STOP", "CONT"].into_iter().find(|name| {
                    name.starts_with(letter.to_ascii_uppercase()) && letter.is_lowercase()
                })?;
                let signal = name.parse().ok()?;
                return self.ask(Action::Send(signal, self.targets()));
            }
            _ => {}
        }
        None
    }

    fn page_length(&self) -> isize {
        isize::try_from(self.page.max(1)).unwrap_or(1)
    }

    /// Moves the selection down by `rows`, or up if negative.
    fn go(&mut self, rows: isize) {
        let shown = self.shown();
        let last = shown.len().saturating_sub(1);
        let place = self.place(&shown).saturating_add_signed(rows).min(last);
        self.selected = shown.get(place).map(|job| job.record.id.clone());
    }

    fn ask(&mut self, action: Action) -> Option<Action> {
        if action.needs_confirmation() {
            self.mode = Mode::Question(action);
            return None;
        }
        Some(action)
    }
}

/// Applies a key to a line of input.
fn edit(line: &mut String, code: KeyCode) {
    match code {
        KeyCode::Backspace => drop(line.pop()),
        KeyCode::Char(letter) if !letter.is_control() => line.push(letter),
        _ => {}
    }
}

/// The lines of output, escaped for a terminal. Of text overwritten with carriage returns, only the last remains.
fn lines(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    let visible = |line: &[u8]| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let last = line
            .rsplit(|byte| *byte == b'\r')
            .next()
            .unwrap_or_default();
        let parts = last.split(|byte| *byte == b'\t');
        let parts: Vec<String> = parts.map(|part| printable(part, LINE_MAX)).collect();
        parts.join("    ")
    };
    bytes.split(|byte| *byte == b'\n').map(visible).collect()
}

#[cfg(test)]
mod tests;
