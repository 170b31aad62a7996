//! Outcomes as tables that fit the terminal.

use tabled::builder::Builder;
use tabled::settings::object::Rows;
use tabled::settings::peaker::PriorityMax;
use tabled::settings::{Color, Modify, Padding, Style, Width};

use super::line::timed_out;
use super::print;
use crate::cmd::ps::Listed;
use crate::connection::keeper::protocol::Status;
use crate::escape::printable;
use crate::job::{Epoch, JobName, Record, State, now};
use crate::signal::Row;
use crate::state::history::{Action, Entry};

/// The longest command that is shown where there is no terminal to fit.
const COMMAND: usize = 4096;

/// Jobs, one a line.
pub fn jobs(jobs: &[Listed]) -> String {
    let mut builder = Builder::default();
    builder.push_record(["ID", "NAME", "HOST", "STATE", "PID", "SINCE", "COMMAND"]);
    let colours = print::is_coloured();
    for Listed { record, state } in jobs {
        let name = record.name.as_ref().map_or("-", JobName::as_str);
        builder.push_record([
            record.id.to_string(),
            name.to_owned(),
            record.destination.host.to_string(),
            coloured(*state, &standing(record, *state), colours),
            record
                .pid
                .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            since(record, *state),
            command(&record.command),
        ]);
    }
    render(builder)
}

fn render(builder: Builder) -> String {
    let mut table = builder.build();
    table.with(Style::empty()).with(Padding::new(0, 2, 0, 0));
    if let Some(width) = print::width() {
        table.with(
            Width::truncate(width)
                .suffix("…")
                .priority(PriorityMax::right()),
        );
    }
    if print::is_coloured() {
        table.with(Modify::new(Rows::first()).with(Color::BOLD));
    }
    let text = table.to_string();
    text.lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
}

/// The state, and what belongs to it.
fn standing(record: &Record, state: State) -> String {
    match (state, record.exit_status, record.exit_signal()) {
        (State::Exited, Some(status), signal) => {
            exited(status, signal.as_deref(), record.timed_out)
        }
        (State::Unknown, ..) => format!("unknown (was {})", record.state),
        _ => state.to_string(),
    }
}

fn coloured(state: State, text: &str, colours: bool) -> String {
    let code = match state {
        State::Running => "32",
        State::Starting | State::Stopped | State::Unknown => "33",
        State::Lost => "31",
        State::Exited => "2",
    };
    if colours {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// How long ago the job started, or ended when it has; by two clocks that may differ.
fn since(record: &Record, state: State) -> String {
    let when = if state.is_finished() {
        record.finished_at
    } else {
        record.started_at
    };
    when.map_or_else(|| "-".to_owned(), |when| age(now() - when))
}

fn age(seconds: Epoch) -> String {
    match seconds.max(0) {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86400 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86400),
    }
}

fn exited(status: u8, signal: Option<&str>, is_timed_out: bool) -> String {
    let signal = signal.map_or_else(String::new, |signal| format!(" ({signal})"));
    format!("exited {status}{signal}{}", timed_out(is_timed_out))
}

/// What was done to jobs, a line each.
pub fn history(entries: &[Entry]) -> String {
    let mut builder = Builder::default();
    builder.push_record(["TIME", "USER", "JOB", "NAME", "HOST", "EVENT"]);
    for entry in entries {
        builder.push_record([
            printable(&entry.at, 64),
            printable(&entry.user, 64),
            entry.job.to_string(),
            entry.name.as_ref().map_or("-", JobName::as_str).to_owned(),
            printable(&entry.host, 255),
            done(&entry.action),
        ]);
    }
    render(builder)
}

fn done(action: &Action) -> String {
    match action {
        Action::Spawn { command: words } => format!("spawn: {}", command(words)),
        Action::NotStarted { error } => format!("not started ({error})"),
        Action::Signal {
            signal,
            target,
            via,
            sent,
        } => {
            let via = via
                .as_ref()
                .map_or_else(String::new, |via| format!(" by {via}"));
            let sent = if *sent == Some(true) {
                "confirmed"
            } else {
                "not confirmed"
            };
            format!("{signal} to its {target}{via}, {sent}")
        }
        Action::End {
            state,
            exit_status: Some(status),
            exit_signal,
            timed_out,
            ..
        } if state == "exited" => exited(*status, exit_signal.as_deref(), *timed_out),
        Action::End { state, .. } => state.clone(),
        Action::Removal => "removed".to_owned(),
        Action::Forget => "record dropped, files left".to_owned(),
    }
}

/// A command line as a person would type it, on one line.
pub fn command(words: &[String]) -> String {
    let joined =
        shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "));
    printable(joined, COMMAND)
}

/// A signal table.
pub fn signals(rows: &[Row]) -> String {
    let mut builder = Builder::default();
    builder.push_record(["NUMBER", "NAME", "DEFAULT", "DESCRIPTION"]);
    for row in rows {
        builder.push_record([
            &row.number.to_string(),
            &row.name,
            &row.action.to_string(),
            row.description,
        ]);
    }
    render(builder)
}

/// Keepers, one a line.
pub fn keepers(keepers: &[Status]) -> String {
    let mut builder = Builder::default();
    builder.push_record([
        "HOST", "PID", "SINCE", "RELAYS", "CHANNELS", "COMMANDS", "IDLE",
    ]);
    for keeper in keepers {
        let taking = keeper
            .relays
            .iter()
            .filter(|(_, takes_signals)| *takes_signals)
            .count();
        let relays = match keeper.relays.len() {
            held if held == taking => held.to_string(),
            held => format!("{held} ({taking} take signals)"),
        };
        builder.push_record([
            &printable(&keeper.host, 255),
            &keeper.pid.to_string(),
            &age(now() - keeper.since),
            &relays,
            &keeper.channels.to_string(),
            &keeper.commands.to_string(),
            &age(keeper.idle.try_into().unwrap_or(Epoch::MAX)),
        ]);
    }
    render(builder)
}
