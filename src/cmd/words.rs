//! Rewrites the command line before clap parses it, for two rules that clap can't express.
//!
//! Everything after HOST is the job's command, even if it looks like an option of rsig. And in `kill`, a word such as
//! `-9` or `-FPE` is a signal, where clap would read `-F PE`.

use std::ffi::{OsStr, OsString};

use crate::signal;

/// The kind of a word after the verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// An option, with or without a value in the same word.
    Option,
    /// The value of the preceding option.
    Value,
    /// The first `--`.
    Dashes,
    /// Anything else.
    Positional,
}

/// Index of the first word after the verb.
const FIRST_ARGUMENT: usize = 2;

/// Rewrites the words of a command line for clap.
pub fn arrange(definition: &clap::Command, words: &mut Vec<OsString>) {
    let verb = words
        .get(1)
        .and_then(|verb| definition.find_subcommand(verb));
    let Some(verb) = verb else { return };
    let kinds = classify(verb, words);
    match verb.get_name() {
        "spawn" | "run" => separate_command(&kinds, words),
        "kill" => separate_signal(&kinds, words),
        _ => {}
    }
}

/// Makes clap take everything after HOST as it is: exactly one `--` stands before HOST or directly after it.
fn separate_command(kinds: &[Word], words: &mut Vec<OsString>) {
    let find = |wanted| {
        kinds
            .iter()
            .position(|kind| *kind == wanted)
            .map(|at| at + FIRST_ARGUMENT)
    };
    let Some(host) = find(Word::Positional) else {
        return;
    };
    let dashes_before = find(Word::Dashes).is_some_and(|dashes| dashes < host);
    let dashes_after = words.get(host + 1).is_some_and(|word| word == "--");
    match (dashes_before, dashes_after) {
        (true, true) => drop(words.remove(host + 1)),
        (false, false) => words.insert(host + 1, "--".into()),
        _ => {}
    }
}

/// Rewrites a signal in kill(1)'s form as an option that clap knows.
fn separate_signal(kinds: &[Word], words: &mut [OsString]) {
    for (word, kind) in words.iter_mut().skip(FIRST_ARGUMENT).zip(kinds) {
        if let Some(name) = word
            .to_str()
            .filter(|text| *kind == Word::Option && signal::dashed(text).is_some())
        {
            *word = format!("--signal={}", &name[1..]).into();
        }
    }
}

/// The kind of each word after the verb.
fn classify(command: &clap::Command, words: &[OsString]) -> Vec<Word> {
    let mut kinds = Vec::new();
    let mut previous = None;
    for word in words.iter().skip(FIRST_ARGUMENT) {
        let text = word.to_str().unwrap_or_default();
        kinds.push(match (kinds.last(), previous.replace(word)) {
            _ if kinds.contains(&Word::Dashes) => Word::Positional,
            (Some(Word::Option), Some(option)) if takes_next(command, option) => Word::Value,
            _ if text == "--" => Word::Dashes,
            _ if text.len() > 1 && text.starts_with('-') => Word::Option,
            _ => Word::Positional,
        });
    }
    kinds
}

/// Whether an option takes the next word as its value.
fn takes_next(command: &clap::Command, word: &OsStr) -> bool {
    let Some(text) = word.to_str() else {
        return false;
    };
    if command.get_name() == "kill" && signal::dashed(text).is_some() {
        return false;
    }
    let takes =
        |argument: &clap::Arg| argument.get_action().takes_values() && !argument.is_positional();
    if let Some(long) = text.strip_prefix("--") {
        return !long.contains('=')
            && command
                .get_arguments()
                .any(|argument| argument.get_long() == Some(long) && takes(argument));
    }
    // In a bundle such as -vn, the first option with a value takes the rest of the word, or the next word if there is
    // no rest.
    let mut letters = text.chars().skip(1);
    while let Some(letter) = letters.next() {
        if command
            .get_arguments()
            .any(|argument| argument.get_short() == Some(letter) && takes(argument))
        {
            return letters.next().is_none();
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arranged(line: &str) -> String {
        let mut words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        arrange(&super::super::definition(), &mut words);
        words
            .iter()
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn all_behind_the_host_is_the_command() {
        for (line, expected) in [
            ("rsig spawn web1 ls -n", "rsig spawn web1 -- ls -n"),
            ("rsig spawn web1 -- ls -n", "rsig spawn web1 -- ls -n"),
            ("rsig spawn web1 -- -- x", "rsig spawn web1 -- -- x"),
            ("rsig spawn -- web1 -n", "rsig spawn -- web1 -n"),
            ("rsig spawn -- web1 -- -n", "rsig spawn -- web1 -n"),
            ("rsig spawn -n a web1 ls", "rsig spawn -n a web1 -- ls"),
            ("rsig spawn -na web1 ls", "rsig spawn -na web1 -- ls"),
            (
                "rsig spawn --name=a web1 ls",
                "rsig spawn --name=a web1 -- ls",
            ),
            (
                "rsig spawn --name a web1 ls",
                "rsig spawn --name a web1 -- ls",
            ),
            (
                "rsig spawn -vn a web1 --name b",
                "rsig spawn -vn a web1 -- --name b",
            ),
            ("rsig spawn -n -- web1 ls", "rsig spawn -n -- web1 -- ls"),
            ("rsig spawn -c web1 ls", "rsig spawn -c web1 -- ls"),
            ("rsig spawn --help", "rsig spawn --help"),
            ("rsig ps -a", "rsig ps -a"),
        ] {
            assert_eq!(arranged(line), expected, "{line}");
        }
    }

    #[test]
    fn signals_of_kill_are_taken_out() {
        for (line, expected) in [
            ("rsig kill -9 a b", "rsig kill --signal=9 a b"),
            ("rsig kill a -TERM", "rsig kill a --signal=TERM"),
            ("rsig kill -FPE a", "rsig kill --signal=FPE a"),
            ("rsig kill -SIGUSR1 a", "rsig kill --signal=SIGUSR1 a"),
            ("rsig kill -s -9 a", "rsig kill -s -9 a"),
            ("rsig kill --then -9 a", "rsig kill --then -9 a"),
            ("rsig kill a -- -9", "rsig kill a -- -9"),
            ("rsig kill -w 5s a", "rsig kill -w 5s a"),
            ("rsig kill -term a", "rsig kill -term a"),
            ("rsig spawn web1 kill -9 1", "rsig spawn web1 -- kill -9 1"),
        ] {
            assert_eq!(arranged(line), expected, "{line}");
        }
    }
}
