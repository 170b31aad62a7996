//! The readers of what ssh, its files and servers say, for the fuzz targets.

use std::path::Path;

use super::config;
use super::environment::send_patterns;
use super::handshake::{Preamble, Stop};
use super::key::PublicKey;
use super::keyfile;
use super::sources::{Answer, Sources, read_files};
use super::tokens::{FOR_COMMAND, FOR_FILES, FOR_PROXY, Tokens, percent, tilde, variables};
use crate::host::{Connect, Destination};

pub use super::hostkey::fuzz::{files as known_hosts, name as host_name};

/// Reads one text as a key file, a `.pub` file and a key of a server.
pub fn keys(data: &[u8]) {
    if let Some(key) = PublicKey::from_blob(data) {
        assert_eq!(key.blob, data);
        hold(&key);
    }
    let text = String::from_utf8_lossy(data).into_owned();
    if let Some(key) = PublicKey::from_line(&text) {
        hold(&key);
    }
    if let Some(file) = keyfile::inspect(text.clone()) {
        assert!(file.private.is_some() || file.public.is_some());
        assert!(file.private.is_none_or(|private| private.text == text));
        file.public.iter().for_each(hold);
    }
}

/// A key is the same after it was written, and its label can be shown.
fn hold(key: &PublicKey) {
    let line = key.to_line();
    assert_eq!(PublicKey::from_line(&line).as_ref(), Some(key));
    assert!(!line.contains(char::is_control) && !key.label().contains(char::is_control));
    assert_eq!(key.label().split(' ').count(), 2);
    if let Some(plain) = key.plain() {
        assert!(key.is_certificate() || plain == *key);
        assert!(!plain.is_certificate());
    }
}

/// Takes a text for what `ssh -G` says, or, without an ssh program, for the options of the command line, a line each.
pub fn configuration(text: &str, by_ssh: bool) {
    let options = if by_ssh {
        Vec::new()
    } else {
        text.lines().map(str::to_owned).collect()
    };
    let destination = Destination {
        host: "bob@web1:2222".parse().expect("a host"),
        connect: Connect {
            options,
            ..Connect::default()
        },
    };
    let answer = Answer {
        text: by_ssh.then(|| text.to_owned()),
        ..Answer::default()
    };
    assert_eq!(answer.digest().len(), 16);
    drop(send_patterns(&destination, &answer));
    let Ok((resolved, _)) = config::resolve(&destination, answer) else {
        return;
    };
    assert!(resolved.port > 0);
    let _ = resolved.host_key_alias();
    drop(resolved.paths("revokedhostkeys"));
    drop(resolved.paths("certificatefile"));
    drop(resolved.path_list(
        "userknownhostsfile",
        "~/.ssh/known_hosts ~/.ssh/known_hosts2",
    ));
    drop(resolved.agent());
    if let Ok(identities) = resolved.identities() {
        let mut paths: Vec<_> = identities.iter().map(|identity| &identity.path).collect();
        paths.sort();
        assert!(paths.windows(2).all(|pair| pair[0] != pair[1]));
    }
    if let Ok(Some(proxy)) = resolved.proxy() {
        assert!(!proxy.args.is_empty());
        // What a jump host's ssh takes for a host is none of its options.
        if proxy.program == "ssh" {
            let last = proxy.args.last().expect("a host").to_string_lossy();
            assert!(!last.starts_with('-'));
        }
    }
    // Deadlines are made of them.
    let now = std::time::Instant::now();
    let _ = (
        now + resolved.connect_timeout(),
        resolved.number("connectionattempts", 1),
    );
    let _ = resolved
        .server_alive_interval
        .map(|interval| now + interval);
}

/// Takes a text for what `ssh -v -G` says of the files that it has read.
pub fn sources(said: &str) {
    let lines = said.lines().count();
    assert!(read_files(said).count() <= lines);
    // Nothing of it is opened.
    let sources = Sources::new(said, None, Path::new("/home/me"), false);
    let _ = sources.are_current();
    let kept = serde_json::to_string(&sources).expect("JSON");
    let again: Sources = serde_json::from_str(&kept).expect("the same");
    assert_eq!(again, sources);
}

/// Expands a text in every way.
pub fn expansion(text: &str) {
    let tokens: Tokens = [('d', "/home/me"), ('h', "%p"), ('p', "2222"), ('r', "bob")]
        .map(|(token, value)| (token, value.to_owned()))
        .into();
    for allowed in [FOR_FILES, FOR_PROXY, FOR_COMMAND] {
        if let Ok(expanded) = percent(text, &tokens, allowed) {
            assert!(expanded.len() <= text.len() * 4);
            assert!(text.contains('%') || expanded == text);
        }
    }
    // What is written for one text stands for it.
    let escaped = text.replace('%', "%%");
    assert_eq!(percent(&escaped, &tokens, FOR_FILES).as_deref(), Ok(text));
    let env = |name: &str| (name == "KEYS").then(|| "${KEYS}".to_owned());
    if let Ok(expanded) = variables(text, env) {
        assert!(expanded.len() <= text.len());
        assert!(text.contains("${") || expanded == text);
    }
    // Of names, those of the password database alone are looked up.
    if !text.starts_with('~') || text == "~" || text.starts_with("~/") {
        let path = tilde(text, Path::new("/home/me"));
        assert!(
            path.is_ok_and(|path| text.starts_with('~') == path.starts_with("/home/me")
                || text.starts_with("/home/me"))
        );
    }
}

/// What a server says before its version line, in lines and in pieces of them.
pub fn preamble(data: &[u8]) {
    let mut preamble = Preamble::default();
    let pieces = data.split_inclusive(|byte| *byte == b'\n');
    for piece in pieces.flat_map(|line| line.chunks(1024)) {
        if let Err(stop) = preamble.add(piece) {
            return shown(&stop);
        }
    }
    shown(&preamble.closed());
}

fn shown(stop: &Stop) {
    let reason = stop.reason();
    assert!(!reason.contains(char::is_control));
    assert!(reason.chars().count() < 300);
}
