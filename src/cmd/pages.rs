//! Generates the man pages from clap's definitions and the texts in `pages/`, and compares them with those in `man/`.
//!
//! A text is roff with man(7)'s macros. Its comment lines OPTIONS, COMMANDS, ENVIRONMENT, FILES and SEE are
//! placeholders for parts that come from the definitions or are the same in all pages.

use std::fs;
use std::path::PathBuf;

use clap::Command;
use clap_mangen::Man;

use super::definition;

/// The environment variable that, if set, makes the test write the pages instead of comparing them.
const RENEW: &str = "RSIG_RENEW_PAGES";

const ENVIRONMENT: &str = include_str!("pages/environment.roff");
const FILES: &str = include_str!("pages/files.roff");

/// The text from `pages/` for a page.
fn text(page: &str) -> &'static str {
    match page {
        "rsig" => include_str!("pages/rsig.roff"),
        "rsig-spawn" => include_str!("pages/rsig-spawn.roff"),
        "rsig-run" => include_str!("pages/rsig-run.roff"),
        "rsig-history" => include_str!("pages/rsig-history.roff"),
        "rsig-kill" => include_str!("pages/rsig-kill.roff"),
        "rsig-stop" => include_str!("pages/rsig-stop.roff"),
        "rsig-wait" => include_str!("pages/rsig-wait.roff"),
        "rsig-send" => include_str!("pages/rsig-send.roff"),
        "rsig-tail" => include_str!("pages/rsig-tail.roff"),
        "rsig-ps" => include_str!("pages/rsig-ps.roff"),
        "rsig-config" => include_str!("pages/rsig-config.roff"),
        "rsig-top" => include_str!("pages/rsig-top.roff"),
        "rsig-keeper" => include_str!("pages/rsig-keeper.roff"),
        "rsig-mcp" => include_str!("pages/rsig-mcp.roff"),
        "rsig-serve" => include_str!("pages/rsig-serve.roff"),
        "rsig-rm" => include_str!("pages/rsig-rm.roff"),
        _ => panic!("{page}(1) has no text yet: write src/cmd/pages/{page}.roff and name it here"),
    }
}

/// The name and the roff of every page.
fn pages() -> Vec<(String, String)> {
    let mut definition = definition();
    definition.build();
    let commands = definition
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    let all: Vec<&Command> = std::iter::once(&definition).chain(commands).collect();
    let names: Vec<String> = all.iter().map(|command| name(command)).collect();
    all.iter()
        .map(|command| (name(command), page(command, &names)))
        .collect()
}

fn name(command: &Command) -> String {
    command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_owned()
}

fn page(command: &Command, names: &[String]) -> String {
    let name = name(command);
    let version = env!("CARGO_PKG_VERSION");
    let mut page = format!(
        ".TH {} 1 \"\" \"rsig {version}\" \"User Commands\"\n.ad l\n.nh\n",
        name.to_uppercase()
    );
    let man = Man::new(command.clone());
    page += &rendered(|out| man.render_name_section(out));
    page += ".SH SYNOPSIS\n";
    page += &forms(command)
        .into_iter()
        .map(synopsis)
        .collect::<Vec<_>>()
        .join(".br\n");
    for line in text(&name).lines() {
        match line {
            ".\\\" OPTIONS" => page += &options(command),
            ".\\\" COMMANDS" => page += &commands(command),
            ".\\\" ENVIRONMENT" => page += ENVIRONMENT,
            ".\\\" FILES" => page += FILES,
            ".\\\" SEE" => page += &see_also(names, &name, text(&name).ends_with(line)),
            line => {
                page += line;
                page.push('\n');
            }
        }
    }
    page
}

/// A section as `clap_mangen` renders it, with the plain roff escape for apostrophes.
fn rendered(write: impl Fn(&mut dyn std::io::Write) -> std::io::Result<()>) -> String {
    let mut out = Vec::new();
    write(&mut out).expect("memory can be written to");
    let text = String::from_utf8(out).expect("roff is text");
    // clap_mangen defines a string for the apostrophe before each section.
    text.lines()
        .filter(|line| !line.starts_with(".ie \\n(.g") && !line.starts_with(".el .ds"))
        .fold(String::new(), |mut text, line| {
            text += &line.replace("\\*(Aq", "\\(aq");
            text.push('\n');
            text
        })
}

/// The usage that --help shows, with literal words in bold and placeholders in italics.
fn synopsis(command: &Command) -> String {
    let usage = command.clone().render_usage().to_string();
    let lines = usage
        .trim_start_matches("Usage:")
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    let lines: Vec<String> = lines
        .map(|line| line.split(' ').map(word).collect::<Vec<_>>().join(" "))
        .collect();
    lines.join("\n.br\n") + "\n"
}

/// The commands that a page documents: the command, or its subcommands if it only groups them.
fn forms(command: &Command) -> Vec<&Command> {
    if command.has_subcommands() && command.get_name() != "rsig" {
        command
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .collect()
    } else {
        vec![command]
    }
}

fn options(command: &Command) -> String {
    let section = |command: &Command| {
        let man = Man::new(command.clone());
        rendered(|out| man.render_options_section(out))
    };
    match forms(command).as_slice() {
        [alone] => section(alone),
        several => several
            .iter()
            .fold(".SH COMMANDS\n".to_owned(), |mut text, command| {
                let name = command.get_bin_name().unwrap_or(command.get_name());
                let about = command
                    .get_about()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                text.extend([".SS ", name, "\n", &about, ".\n"]);
                text += section(command).trim_start_matches(".SH OPTIONS\n");
                text
            }),
    }
}

fn word(word: &str) -> String {
    let escaped = word.replace('-', "\\-");
    match word.strip_prefix('<').and_then(|rest| rest.split_once('>')) {
        Some((inner, rest)) => format!("\\fI{inner}\\fR{rest}"),
        None if word.starts_with(|letter: char| letter.is_ascii_lowercase() || letter == '-') => {
            format!("\\fB{escaped}\\fR")
        }
        None if word.starts_with('[') => escaped,
        None => format!("\\fI{escaped}\\fR"),
    }
}

fn commands(definition: &Command) -> String {
    let mut section = ".SH COMMANDS\n".to_owned();
    for command in definition
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        let about = command
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        let name = name(command).replace('-', "\\-");
        section.extend([".TP\n.BR ", &name, " (1)\n", &about, ".\n"]);
    }
    section
}

/// References to the other pages. `last`: nothing follows them.
fn see_also(names: &[String], this: &str, last: bool) -> String {
    let others: Vec<String> = names
        .iter()
        .filter(|name| *name != this)
        .map(|name| name.replace('-', "\\-"))
        .collect();
    let mut lines = String::new();
    for (index, name) in others.iter().enumerate() {
        let comma = if last && index + 1 == others.len() {
            ""
        } else {
            ","
        };
        lines.extend([".BR ", name, " (1)", comma, "\n"]);
    }
    lines
}

#[test]
fn the_man_pages_are_those_of_the_definitions() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("man");
    let renew = std::env::var_os(RENEW).is_some();
    let mut stale = Vec::new();
    let pages = pages();
    for (name, page) in &pages {
        let path = folder.join(format!("{name}.1"));
        if renew {
            fs::write(&path, page).expect("man/ can be written to");
        } else if fs::read_to_string(&path).ok().as_deref() != Some(page) {
            stale.push(path.display().to_string());
        }
    }
    let files = fs::read_dir(&folder)
        .expect("man/ is there")
        .map(|file| file.expect("man/ can be read").path());
    stale.extend(
        files
            .filter(|path| {
                !pages
                    .iter()
                    .any(|(name, _)| path.file_stem().is_some_and(|stem| stem == name.as_str()))
            })
            .map(|path| format!("{}, which is no command's", path.display())),
    );
    assert!(
        stale.is_empty(),
        "not what the definitions and src/cmd/pages/ give: {stale:#?}\nrenew them: {RENEW}=1 cargo test --bin rsig man_pages"
    );
}

/// Every page has all sections, and contains only ASCII and no comment that was not replaced.
#[test]
fn every_man_page_is_complete() {
    for (name, page) in pages() {
        for section in [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "EXIT STATUS",
            "ENVIRONMENT",
            "FILES",
            "EXAMPLES",
            "SEE ALSO",
        ] {
            let heading = [format!(".SH {section}\n"), format!(".SH \"{section}\"\n")];
            assert!(
                heading.iter().any(|heading| page.contains(heading)),
                "{name}: no {section}"
            );
        }
        assert!(
            page.is_ascii(),
            "{name}: {:?}",
            page.chars().find(|letter| !letter.is_ascii())
        );
        assert!(
            page.lines().all(|line| !line.starts_with(".\\\"")),
            "{name}: a comment that stands for nothing"
        );
    }
}
