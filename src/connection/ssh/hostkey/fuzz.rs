//! Entry points of the fuzz targets for host keys and the files that list them.

use std::path::Path;

use super::known_hosts::{HostName, KnownHost, Marker, parse, revoked};
use super::{ALGORITHMS, Verdict, answer, changed, preferred, verdict};
use crate::connection::ssh::key::PublicKey;

/// Parses the data as a file of each kind, and judges keys by it.
pub fn files(data: &[u8]) {
    let path = Path::new("/home/me/.ssh/known_hosts");
    let lines = parse(path, data);
    let newlines = data.iter().filter(|byte| **byte == b'\n').count();
    assert!(lines.len() <= newlines + 1);
    assert!(lines.is_sorted_by(|one, other| one.number < other.number));
    let hosts = [
        HostName::new("web1", 22),
        HostName::new("web1", 2222),
        HostName::new("::1", 22),
        HostName::alias("Alias"),
    ];
    for line in &lines {
        assert!(!line.to_string().contains(char::is_control));
        assert!(!line.names.text().contains(char::is_control));
        for host in &hosts {
            judge(&lines, host, &line.key);
            recorded(host, &line.key);
        }
    }
    for host in &hosts {
        let algorithms = preferred(&lines, host, &ALGORITHMS);
        assert_eq!(algorithms.len(), ALGORITHMS.len());
    }
    match revoked(path, data) {
        Ok(lines) => {
            for line in &lines {
                // A host with a revoked key is refused, whatever other lines say.
                let host = HostName::new("web1", 2222);
                let all = [&parse(path, data)[..], &lines[..]].concat();
                assert!(matches!(
                    verdict(&all, &host, &line.key),
                    Verdict::Revoked(_)
                ));
            }
        }
        Err(failure) => assert!(!failure.message.contains(char::is_control)),
    }
    let _ = answer(&String::from_utf8_lossy(data), "SHA256:x");
}

fn judge(lines: &[KnownHost], host: &HostName, key: &PublicKey) {
    match verdict(lines, host, key) {
        Verdict::Known(line) => {
            assert!(line.key == *key && line.marker == Marker::None);
        }
        Verdict::Revoked(line) => {
            assert!(line.key == *key && line.marker == Marker::Revoked);
        }
        Verdict::Changed(line) => {
            assert!(line.key != *key);
            let text = changed(host, key, line);
            assert!(!text.replace('\n', "").contains(char::is_control));
        }
        Verdict::Unknown(_) => {}
    }
}

/// A line that is written for a host must make its key known, and do nothing else.
fn recorded(host: &HostName, key: &PublicKey) {
    let lines = parse(Path::new("f"), format!("{}\n", host.line(key)).as_bytes());
    assert_eq!(lines.len(), 1);
    assert!(matches!(verdict(&lines, host, key), Verdict::Known(_)));
}

/// Checks an arbitrary name from a user or a configuration: if it can be recorded, its line must match that host only.
pub fn name(name: &str, port: u16) {
    let blob = [
        &11_u32.to_be_bytes()[..],
        b"ssh-ed25519",
        &32_u32.to_be_bytes(),
        &[7; 32],
    ];
    let key = PublicKey::from_blob(&blob.concat()).expect("a key");
    let alias = HostName::alias(name);
    for host in [HostName::new(name, port), alias] {
        assert!(!host.to_string().contains(char::is_control));
        if host.can_be_recorded() {
            recorded(&host, &key);
            let lines = parse(Path::new("f"), host.line(&key).as_bytes());
            let other = HostName::new("some-other-host", 22);
            if host.to_string() != other.to_string() {
                assert!(matches!(
                    verdict(&lines, &other, &key),
                    Verdict::Unknown(None)
                ));
            }
        }
    }
}
