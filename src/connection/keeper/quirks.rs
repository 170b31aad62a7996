//! Known quirks of servers, recognized by their banners.

/// Whether the server exits when a shell ends while another channel has no shell yet, since it takes that channel for
/// one whose shell has ended: Dropbear before 2024.86.
pub fn breaks_on_open(banner: &str) -> bool {
    let version = banner
        .split_once("dropbear_")
        .and_then(|(_, rest)| rest.split_once('.'));
    let number = |text: &str| {
        text.split(|c: char| !c.is_ascii_digit())
            .next()
            .and_then(|digits| digits.parse().ok())
    };
    version.is_some_and(|(year, minor)| {
        (number(year).unwrap_or(0), number(minor).unwrap_or(0)) < (2024_u32, 86_u32)
    })
}

/// Whether the server refuses the signals of a login: OpenSSH before 10 does so for root.
pub fn refuses_signals(banner: &str, user: &str) -> bool {
    let version = banner
        .split_once("OpenSSH_")
        .and_then(|(_, rest)| rest.split(['.', 'p', ' ']).next());
    user == "root"
        && version
            .and_then(|major| major.parse().ok())
            .is_some_and(|major: u32| major < 10)
}

#[cfg(test)]
mod tests {
    use super::{breaks_on_open, refuses_signals};

    #[test]
    fn what_is_known_of_servers() {
        for (banner, user, refuses) in [
            ("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3", "root", true),
            ("SSH-2.0-OpenSSH_9.2p1", "alice", false),
            ("SSH-2.0-OpenSSH_10.0p2", "root", false),
            ("SSH-2.0-OpenSSH_for_Windows_9.5", "root", false),
            ("SSH-2.0-dropbear_2022.83", "root", false),
            ("", "root", false),
        ] {
            assert_eq!(refuses_signals(banner, user), refuses, "{banner}");
        }
        for (banner, breaks) in [
            ("SSH-2.0-dropbear_2022.83", true),
            ("SSH-2.0-dropbear_2024.85", true),
            ("SSH-2.0-dropbear_2024.86", false),
            ("SSH-2.0-dropbear_2025.88-3", false),
            ("SSH-2.0-dropbear", false),
            ("SSH-2.0-OpenSSH_9.2p1", false),
        ] {
            assert_eq!(breaks_on_open(banner), breaks, "{banner}");
        }
    }
}
