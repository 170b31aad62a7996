//! `config`: shows the configuration in effect. Also makes the defaults of the configuration file clap's own defaults,
//! so that the command line overrides them.

use std::ffi::OsString;

use clap::error::{ContextKind, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use clap_complete::engine::ArgValueCompleter;
use serde::Serialize;

use super::values::Hosts;
use super::{complete, definition};
use crate::error::{Failure, exit};
use crate::state::config::Setting;
use crate::state::{Config as File, state_directory};
use crate::terminal::{Output, Table};

/// The options that may have a default in the configuration file: none that selects jobs, or that ends or removes them.
/// Connection options are not listed: the file's own module handles them.
const OPTIONS: [&str; 21] = [
    "backlog",
    "cwd",
    "env",
    "fail-fast",
    "gather",
    "grace",
    "json",
    "keep",
    "lines",
    "log-max",
    "merge",
    "no-keeper",
    "no-tether",
    "parallel",
    "quiet",
    "resources",
    "target",
    "tether",
    "timeout",
    "verbose",
    "via",
];
/// The environment variable that corresponds to `--no-keeper`.
const KEEPER_VARIABLE: &str = "RSIG_KEEPER";

/// Show the effective configuration, and where each value comes from
#[derive(Args, Debug)]
pub struct Config {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
    /// Print the hosts that this word stands for instead, one per line
    #[arg(value_name = "HOST[,HOST]...", conflicts_with = "json", add = ArgValueCompleter::new(complete::hosts))]
    host: Option<Hosts>,
}

#[derive(Serialize)]
struct Row {
    setting: String,
    value: String,
    from: String,
}

impl Config {
    pub fn run(self) -> Result<u8, Failure> {
        let mut out = Output::default();
        let rows = match self.host {
            Some(hosts) => {
                hosts.0.iter().for_each(|host| out.line(host));
                Vec::new()
            }
            None => rows(File::current()?)?,
        };
        if self.json {
            out.json(&rows);
        } else if !rows.is_empty() {
            let mut table = Table::new(["SETTING", "VALUE", "FROM"]);
            for row in rows {
                table.row([row.setting, row.value, row.from]);
            }
            out.line(table);
        }
        out.finish()?;
        Ok(exit::DONE)
    }
}

fn rows(file: &'static File) -> Result<Vec<Row>, Failure> {
    let mut definition = definition();
    apply(&mut definition, file, &[])?;
    for verb in definition.get_subcommands() {
        invalid_default(&definition, verb.get_name(), file).map_or(Ok(()), Err)?;
    }
    let path = file.path.display().to_string();
    let row = |setting: &str, value: String, from: &str| Row {
        setting: setting.to_owned(),
        value,
        from: from.to_owned(),
    };
    let by_variable = |names: &[&'static str]| {
        let set = |name: &&&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        names.iter().find(set).map_or("default", |name| *name)
    };
    let state = state_directory()?.display().to_string();
    let mut rows = vec![
        row(
            "configuration file",
            if file.path.exists() {
                path.clone()
            } else {
                format!("{path} (missing)")
            },
            by_variable(&["RSIG_CONFIG", "XDG_CONFIG_HOME"]),
        ),
        row(
            "state directory",
            state,
            by_variable(&["RSIG_STATE_DIR", "XDG_STATE_HOME"]),
        ),
    ];
    if let Some(value) = std::env::var_os(KEEPER_VARIABLE) {
        rows.push(row(
            "no-keeper",
            (value == "0").to_string(),
            KEEPER_VARIABLE,
        ));
    }
    let is_set = |key: &str| file.defaults().any(|setting| setting.key == key);
    for key in OPTIONS.iter().filter(|key| !is_set(key)) {
        let mut verbs = definition.get_subcommands();
        let values = verbs.find_map(|verb| {
            let values = option(verb, key)?.get_default_values();
            values.first().filter(|value| *value != "false")
        });
        rows.extend(values.map(|value| row(key, value.to_string_lossy().into_owned(), "default")));
    }
    let is_hidden = |setting: &&Setting| {
        setting.key == "no-keeper" && std::env::var_os(KEEPER_VARIABLE).is_some()
    };
    for setting in file.settings.iter().filter(|setting| !is_hidden(setting)) {
        let name = match setting.section.as_str() {
            "defaults" => setting.key.clone(),
            "groups" => format!("@{}", setting.key),
            section => format!("{section}.{}", setting.key),
        };
        rows.push(row(
            &name,
            setting.values.join(" "),
            &format!("{path}:{}", setting.line),
        ));
    }
    Ok(rows)
}

fn option<'a>(verb: &'a clap::Command, key: &str) -> Option<&'a clap::Arg> {
    verb.get_arguments()
        .find(|argument| argument.get_long() == Some(key))
}

/// Adds the file's defaults to a definition. A default that conflicts with an option on the command line is left out.
pub fn apply(
    definition: &mut clap::Command,
    file: &'static File,
    words: &[OsString],
) -> Result<(), Failure> {
    if let Some(setting) = file
        .defaults()
        .find(|setting| !OPTIONS.contains(&setting.key.as_str()))
    {
        return Err(file.unknown(setting));
    }
    if file.defaults().next().is_none() {
        return Ok(());
    }
    let parser = definition.clone().ignore_errors(true);
    let matches = parser.try_get_matches_from(words).ok();
    let given = matches.as_ref().and_then(ArgMatches::subcommand);
    // The environment variable overrides the file.
    let counts = |setting: &&Setting| {
        setting.key != "no-keeper" || std::env::var_os(KEEPER_VARIABLE).is_none()
    };
    *definition = std::mem::take(definition).mut_subcommands(|verb| {
        let given = given.filter(|(name, _)| *name == verb.get_name());
        let given = given.map(|(_, matches)| matches);
        let add = |verb, setting| with_default(verb, setting, given);
        file.defaults().filter(counts).fold(verb, add)
    });
    Ok(())
}

fn with_default(
    verb: clap::Command,
    setting: &'static Setting,
    given: Option<&ArgMatches>,
) -> clap::Command {
    let Some(argument) = option(&verb, &setting.key) else {
        return verb;
    };
    let is_given = |rival: &&clap::Arg| {
        let source = given.and_then(|given| given.value_source(rival.get_id().as_str()));
        source == Some(ValueSource::CommandLine)
    };
    let rivals = verb.get_arg_conflicts_with(argument);
    if rivals.iter().any(is_given) {
        return verb;
    }
    let id = argument.get_id().clone();
    let values = setting.values.iter().map(String::as_str);
    verb.mut_arg(id, |argument| argument.default_values(values))
}

/// The failure for a default that is not a valid value of its option in a verb.
pub fn invalid_default(definition: &clap::Command, verb: &str, file: &File) -> Option<Failure> {
    let words = [definition.get_name(), verb].map(OsString::from);
    let error = definition.clone().try_get_matches_from(words).err()?;
    if !matches!(
        error.kind(),
        ErrorKind::ValueValidation | ErrorKind::InvalidValue
    ) {
        return None;
    }
    let argument = error.get(ContextKind::InvalidArg)?.to_string();
    let named = argument.split(' ').next()?.trim_start_matches('-');
    let setting = file.defaults().find(|setting| setting.key == named)?;
    let text = error.to_string();
    let why = text.lines().next()?.trim_start_matches("error: ");
    Some(file.failure(setting.line, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_a_default_is_an_option() {
        let definition = definition();
        for key in OPTIONS {
            let mut verbs = definition.get_subcommands();
            assert!(verbs.any(|verb| option(verb, key).is_some()), "{key}");
        }
    }
}
