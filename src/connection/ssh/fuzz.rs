//! Entry points of the fuzz targets for what ssh prints, for ssh's files and for what servers send.

use std::path::Path;

use super::config;
use super::environment::send_patterns;
use super::handshake::{HandshakeError, Preamble};
use super::key::PublicKey;
use super::keyfile;
use super::sources::{Answer, Sources, read_files};
use super::tokens::{FOR_COMMAND, FOR_FILES, FOR_PROXY, Tokens, percent, tilde, variables};
use crate::host::{Connect, Destination};

pub use super::hostkey::fuzz::{files as known_hosts, name as host_name};

/// Parses the data as a server's key, a `.pub` file and a key file.
pub fn keys(data: &[u8]) {
    if let Some(key) = PublicKey::from_blob(data) {
        assert_eq!(key.blob, data);
        check_key(&key);
    }
    let text = String::from_utf8_lossy(data).into_owned();
    if let Some(key) = PublicKey::from_line(&text) {
        check_key(&key);
    }
    if let Some(file) = keyfile::inspect(text.clone()) {
        assert!(file.private.is_some() || file.public.is_some());
        assert!(file.private.is_none_or(|private| private.text == text));
        file.public.iter().for_each(check_key);
    }
}

/// A key must survive writing and parsing, and its label must be safe to show.
fn check_key(key: &PublicKey) {
    let line = key.to_line();
    assert_eq!(PublicKey::from_line(&line).as_ref(), Some(key));
    assert!(!line.contains(char::is_control) && !key.label().contains(char::is_control));
    assert_eq!(key.label().split(' ').count(), 2);
    if let Some(plain) = key.plain() {
        assert!(key.is_certificate() || plain == *key);
        assert!(!plain.is_certificate());
    }
}

/// Resolves a text as the output of `ssh -G` or, without `by_ssh`, as options of the command line, one per line.
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
        // ssh must not take the name of a jump host for an option.
        if proxy.program == "ssh" {
            let last = proxy.args.last().expect("a host").to_string_lossy();
            assert!(!last.starts_with('-'));
        }
    }
    // These are added to times, which must not overflow.
    let now = std::time::Instant::now();
    let _ = (
        now + resolved.connect_timeout(),
        resolved.number("connectionattempts", 1),
    );
    let _ = resolved
        .server_alive_interval
        .map(|interval| now + interval);
}

/// Parses a text as what `ssh -v -G` prints about the files that it reads.
pub fn sources(said: &str) {
    let lines = said.lines().count();
    assert!(read_files(said).count() <= lines);
    // None of these files is opened.
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
    // An escaped text expands to the text itself.
    let escaped = text.replace('%', "%%");
    assert_eq!(percent(&escaped, &tokens, FOR_FILES).as_deref(), Ok(text));
    let env = |name: &str| (name == "KEYS").then(|| "${KEYS}".to_owned());
    if let Ok(expanded) = variables(text, env) {
        assert!(expanded.len() <= text.len());
        assert!(text.contains("${") || expanded == text);
    }
    // `~name` is left out, since it is looked up in the password database.
    if !text.starts_with('~') || text == "~" || text.starts_with("~/") {
        let path = tilde(text, Path::new("/home/me"));
        assert!(
            path.is_ok_and(|path| text.starts_with('~') == path.starts_with("/home/me")
                || text.starts_with("/home/me"))
        );
    }
}

/// Feeds in what a server sends before its version line, in lines and in pieces of lines.
pub fn preamble(data: &[u8]) {
    let mut preamble = Preamble::default();
    let pieces = data.split_inclusive(|byte| *byte == b'\n');
    for piece in pieces.flat_map(|line| line.chunks(1024)) {
        if let Err(stop) = preamble.add(piece) {
            return check_reason(&stop);
        }
    }
    check_reason(&preamble.closed());
}

fn check_reason(stop: &HandshakeError) {
    let reason = stop.reason();
    assert!(!reason.contains(char::is_control));
    assert!(reason.chars().count() < 300);
}
