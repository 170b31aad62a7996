//! Drawing of the screen of `top`, at any size.

use std::collections::HashSet;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::{LINE_MAX, Mode, OutputPane, Screen};
use crate::escape::printable;
use crate::job::{JobName, State};
use crate::terminal::{self, ListedJob};

/// The help on keys in the last lines.
const HELP: [&str; 12] = [
    "q quit",
    "Space mark",
    "/ filter",
    "o order",
    "r reverse",
    "t TERM",
    "k KILL",
    "s STOP",
    "c CONT",
    "x any signal",
    "e end",
    "w wait",
];
/// Maximum height of the help, in lines.
const HELP_HEIGHT_MAX: usize = 2;
/// Minimum height of the list, in rows: its header and the selected job.
const LIST_HEIGHT_MIN: u16 = 2;
/// Minimum height of the output pane, with its heading, in rows.
const OUTPUT_HEIGHT_MIN: u16 = 4;
/// Maximum number of lines for hosts that do not answer.
const TROUBLES_MAX: usize = 3;
/// Maximum width of a cell other than the command, in columns.
const CELL_WIDTH_MAX: usize = 22;
/// Width to keep free for the command, in columns.
const COMMAND_WIDTH_MIN: usize = 14;

impl Screen {
    pub fn draw(&mut self, frame: &mut Frame<'_>) {
        // The selection stays with this job even if the order changes.
        self.selected = self.selected().map(|record| record.id.clone());
        let area = frame.area();
        let help = help(area.width);
        let mut spare = area.height.saturating_sub(LIST_HEIGHT_MIN);
        let mut take = |wanted: usize| {
            let taken = spare.min(u16::try_from(wanted).unwrap_or(u16::MAX));
            spare -= taken;
            taken
        };
        let (message, title) = (take(1), take(1));
        let (help_height, troubles) = (
            take(help.len()),
            take(self.host_errors.len().min(TROUBLES_MAX)),
        );
        let jobs = u16::try_from(self.shown().len()).unwrap_or(u16::MAX);
        let output = match spare.max(1).div_ceil(2).max(spare.saturating_sub(jobs)) {
            height @ OUTPUT_HEIGHT_MIN.. => height.min(spare),
            _ => 0,
        };
        let list = area.height - message - title - help_height - troubles - output;
        let mut y = area.y;
        let mut part = |height: u16| {
            let rect = Rect::new(area.x, y, area.width, height);
            y += height;
            rect
        };
        let mut show = |lines: Vec<Line<'_>>, height: u16| {
            frame.render_widget(Paragraph::new(lines), part(height));
        };
        show(vec![self.title()], title);
        show(self.list(area.width, list.into()), list);
        show(self.silent_hosts(), troubles);
        show(self.pane(area.width, output.into()), output);
        show(vec![self.last_line()], message);
        show(help, help_height);
    }

    fn title(&self) -> Line<'_> {
        let hosts: HashSet<String> = self
            .jobs
            .iter()
            .map(|job| job.record.host().to_string())
            .collect();
        let mut title = format!(
            "rsig top: {} on {}, by {}",
            counted(self.jobs.len(), "job"),
            counted(hosts.len(), "host"),
            self.sort.word()
        );
        if self.is_reversed {
            title += " reversed";
        }
        if !self.filter.is_empty() {
            title += &format!(", {} with {:?}", self.shown().len(), self.filter);
        }
        Line::raw(title)
    }

    fn silent_hosts(&self) -> Vec<Line<'_>> {
        let left = self.host_errors.len().saturating_sub(TROUBLES_MAX);
        let named = self.host_errors.iter().take(TROUBLES_MAX).enumerate();
        let style = self.colour(Color::Red);
        named
            .map(|(place, trouble)| match place + 1 {
                TROUBLES_MAX if left > 0 => format!("{} more hosts do not answer", left + 1),
                _ => printable(trouble, LINE_MAX),
            })
            .map(|text| Line::styled(text, style))
            .collect()
    }

    fn last_line(&self) -> Line<'_> {
        let targets = || counted(self.targets().len(), "job");
        let text = match &self.mode {
            Mode::Browse => printable(&self.message, LINE_MAX),
            Mode::Filter => format!("Filter (Enter keeps it, Esc clears it): {}_", self.filter),
            Mode::Signal(word) => format!("Signal for {}: {word}_", targets()),
            Mode::Question(action) => {
                let (signals, jobs) = action.signals().unwrap_or_default();
                format!("Send {signals} to {}? [y/N]", counted(jobs, "job"))
            }
        };
        Line::styled(text, Modifier::BOLD)
    }

    /// The header and the jobs that fit.
    fn list(&mut self, width: u16, height: usize) -> Vec<Line<'static>> {
        let shown = self.shown();
        let place = self.place(&shown);
        let page = height.saturating_sub(1).max(1);
        let top = self.top.clamp((place + 1).saturating_sub(page), place);
        let columns = columns(&shown, width.into());
        let heads = Columns::HEADS.map(str::to_owned);
        let mut lines = vec![Line::styled(
            format!(" {}", columns.join(&heads)),
            Modifier::BOLD,
        )];
        for (at, job) in shown.iter().enumerate().skip(top).take(page) {
            let is_marked = self.marked.contains(&job.record.id);
            let text = format!(
                "{}{}",
                if is_marked { '*' } else { ' ' },
                columns.join(&cells(job))
            );
            let colour = match job.state {
                State::Running => self.colour(Color::Green),
                State::Starting | State::Stopped | State::Unknown => self.colour(Color::Yellow),
                State::Lost => self.colour(Color::Red),
                State::Exited => Style::new().add_modifier(Modifier::DIM),
            };
            let style = if at == place {
                // Highlighted up to the right edge.
                Style::new().add_modifier(Modifier::REVERSED)
            } else {
                colour
            };
            lines.push(Line::styled(padded(&text, width.into(), false), style));
        }
        if shown.is_empty() {
            lines.push(Line::raw(" no jobs"));
        }
        (self.top, self.page) = (top, page);
        lines
    }

    /// The last lines of the selected job's output.
    fn pane(&self, width: u16, height: usize) -> Vec<Line<'_>> {
        let Some(record) = self.selected() else {
            return Vec::new();
        };
        let rule = |text: String| {
            let rest = usize::from(width).saturating_sub(text.len() + 4);
            let style = Style::new().add_modifier(Modifier::DIM);
            Line::styled(format!("-- {text} {}", "-".repeat(rest)), style)
        };
        let mut lines = vec![rule(format!("output of {}", record.label()))];
        if self.output.of.as_ref() != Some(&record.id) {
            return lines;
        }
        let OutputPane { out, err, .. } = &self.output;
        let room = height.saturating_sub(1);
        let err_room = match (out.len(), err.len()) {
            (_, 0) => 0,
            (0, _) => room,
            // One more for the heading.
            (out, err) => (err + 1).min((room / 2).max(room.saturating_sub(out))),
        };
        let end = |lines: &[String], room: usize| {
            let last = lines.iter().skip(lines.len().saturating_sub(room));
            last.map(|line| Line::raw(line.clone())).collect::<Vec<_>>()
        };
        lines.extend(end(out, room - err_room));
        if err_room > 0 {
            lines.push(rule("standard error".to_owned()));
            lines.extend(end(err, err_room - 1));
        }
        lines
    }

    fn colour(&self, colour: Color) -> Style {
        if self.is_coloured {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn help(width: u16) -> Vec<Line<'static>> {
    let mut lines = vec![String::new()];
    for entry in HELP {
        let Some(line) = lines.last_mut() else {
            break;
        };
        if line.is_empty() {
            line.push_str(entry);
        } else if line.len() + 2 + entry.len() <= width.into() {
            line.push_str("  ");
            line.push_str(entry);
        } else if lines.len() < HELP_HEIGHT_MAX {
            lines.push(entry.to_owned());
        } else {
            break;
        }
    }
    lines.into_iter().map(Line::raw).collect()
}

/// The widths of the columns before the command; 0 for a hidden column.
struct Columns([usize; 10]);

impl Columns {
    const HEADS: [&'static str; 11] = [
        "ID", "NAME", "HOST", "STATE", "PID", "SINCE", "CPU", "TIME", "MEMORY", "PROCS", "COMMAND",
    ];
    /// Columns of numbers, which are aligned to the right.
    const NUMBERS: std::ops::RangeInclusive<usize> = 4..=9;
    /// The order in which columns are hidden if there is not enough room.
    const HIDE_ORDER: [usize; 8] = [4, 9, 7, 5, 8, 1, 2, 6];

    fn join(&self, cells: &[String; 11]) -> String {
        let mut line = String::new();
        for (place, cell) in cells.iter().enumerate() {
            match self.0.get(place) {
                Some(0) => {}
                Some(width) => {
                    line += &padded(cell, *width, Self::NUMBERS.contains(&place));
                    line.push(' ');
                }
                None => line += cell,
            }
        }
        line
    }
}

fn columns(jobs: &[&ListedJob], width: usize) -> Columns {
    let mut widths = [0; 10];
    let heads = Columns::HEADS.map(str::to_owned);
    for cells in jobs.iter().map(|job| cells(job)).chain([heads]) {
        for (width, cell) in widths.iter_mut().zip(&cells) {
            *width = (*width).max(display_width(cell).min(CELL_WIDTH_MAX));
        }
    }
    for hidden in Columns::HIDE_ORDER {
        let used: usize = widths
            .iter()
            .filter(|width| **width > 0)
            .map(|width| width + 1)
            .sum();
        if used + COMMAND_WIDTH_MIN <= width {
            break;
        }
        widths[hidden] = 0;
    }
    Columns(widths)
}

fn cells(job: &ListedJob) -> [String; 11] {
    let ListedJob {
        record,
        state,
        usage,
    } = job;
    let [cpu, time, memory, processes] = terminal::usage(usage.as_ref());
    [
        record.id.to_string(),
        record.name.as_ref().map_or("-", JobName::as_str).to_owned(),
        record.host().to_string(),
        terminal::state(record, *state),
        record
            .pid
            .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        terminal::since(record, *state),
        cpu,
        time,
        memory,
        processes,
        terminal::command_line(&record.command),
    ]
}

/// The width of a text on the terminal, in columns.
fn display_width(text: &str) -> usize {
    Span::raw(text).width()
}

/// A text truncated or padded to a width.
fn padded(text: &str, width: usize, to_the_right: bool) -> String {
    let mut text = text.to_owned();
    if display_width(&text) > width {
        while display_width(&text) + 1 > width && text.pop().is_some() {}
        text.push('…');
    }
    let padding = " ".repeat(width.saturating_sub(display_width(&text)));
    if to_the_right {
        padding + &text
    } else {
        text + &padding
    }
}
