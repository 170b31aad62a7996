//! The configuration file, and the escaping of untrusted text.

use std::path::PathBuf;

use crate::answer::assert_plain;
use crate::escape::printable;
use crate::host::{Connect, Host};
use crate::hosts;
use crate::state::Config;
use crate::terminal;

pub fn config_file(data: &[u8]) {
    escape(data);
    let text = String::from_utf8_lossy(data);
    configuration(&text);
}

fn configuration(text: &str) {
    let config = match Config::parse(PathBuf::from("/home/me/.config/rsig/config.toml"), text) {
        Ok(config) => config,
        Err(failure) => return assert_plain(&failure.message),
    };
    let lines = text.split('\n').count();
    for setting in &config.settings {
        assert!((1..=lines).contains(&setting.line));
        assert_plain(&config.unknown(setting).message);
    }
    assert!(config.defaults().count() <= config.settings.len());
    let names = config.names();
    for word in names
        .iter()
        .map(String::as_str)
        .chain(["web1", "local", "docker://c"])
    {
        let Ok(words) = hosts::expand(word, &|name| config.group(name)) else {
            continue;
        };
        for host in words.iter().take(100).flat_map(|word| word.parse::<Host>()) {
            let there = config.host(&host);
            let given = Connect {
                port: Some(5),
                ..Connect::default()
            };
            for given in [given, Connect::default()] {
                if let Ok(destination) = config.destination(&host, &given) {
                    assert_eq!(destination.host, there);
                    assert!(destination.connect.check().is_ok());
                    assert!(destination.shell().ends_with(&["/bin/sh", "-s"]));
                    let kept = serde_json::to_string(&destination).expect("JSON");
                    let again: crate::host::Destination =
                        serde_json::from_str(&kept).expect("JSON");
                    assert_eq!(again, destination);
                }
            }
        }
    }
}

fn escape(data: &[u8]) {
    let is_unseen = |c: char| {
        c.is_control()
            || ('\u{200b}'..='\u{200f}').contains(&c)
            || ('\u{2028}'..='\u{202e}').contains(&c)
    };
    let whole = printable(data, usize::MAX);
    assert!(!whole.contains(is_unseen));
    // Escaping escaped text changes nothing.
    assert_eq!(printable(&whole, usize::MAX), whole);
    for max in [0, 1, 5, 80] {
        let shown = printable(data, max);
        assert!(shown.chars().count() <= max + 3);
        assert!(
            shown == whole || whole.starts_with(shown.strip_suffix("...").expect("it was cut"))
        );
    }
    let words: Vec<String> = data
        .split(|byte| *byte == b' ')
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    assert_plain(&terminal::command_line(&words));
}
