//! Escaping of text from a host for a terminal or a log line.
//!
//! Escape sequences, bidirectional overrides and invisible characters can make a message appear to
//! say something else. This module makes them visible instead of passing them on. The escaping is
//! not reversible: the result is for people to read, not for programs.

use std::fmt::Write as _;

/// At most `max` characters of `text` with every control, format and line-separating character
/// escaped (`\n`, `\x1b`, `\u{202e}`) and each byte that is not UTF-8 shown as `\xNN`.
///
/// Truncated text ends in `...`, which does not count towards `max`.
pub fn printable(text: impl AsRef<[u8]>, max: usize) -> String {
    let mut shown = String::new();
    let mut length = 0;
    let mut piece = String::new();
    for chunk in text.as_ref().utf8_chunks() {
        let valid = chunk.valid().chars().map(Ok);
        let invalid = chunk.invalid().iter().copied().map(Err);
        for unit in valid.chain(invalid) {
            piece.clear();
            match unit {
                Ok(character) => escape_into(&mut piece, character),
                // Writing to a String can't fail.
                Err(byte) => drop(write!(piece, "\\x{byte:02x}")),
            }
            length += piece.chars().count();
            if length > max {
                shown.push_str("...");
                return shown;
            }
            shown.push_str(&piece);
        }
    }
    shown
}

fn escape_into(shown: &mut String, character: char) {
    let code = u32::from(character);
    match character {
        '\n' => shown.push_str("\\n"),
        '\r' => shown.push_str("\\r"),
        '\t' => shown.push_str("\\t"),
        _ if character.is_control() && code < 0x80 => drop(write!(shown, "\\x{code:02x}")),
        _ if character.is_control() || is_unseen(code) => drop(write!(shown, "\\u{{{code:x}}}")),
        _ => shown.push(character),
    }
}

/// Whether this code point is of the general category Cf (format), Zl or Zp (line and paragraph
/// separators) in Unicode 16, or a variation selector.
fn is_unseen(code: u32) -> bool {
    matches!(code,
        0xAD | 0x600..=0x605 | 0x61C | 0x6DD | 0x70F | 0x890..=0x891 | 0x8E2
        | 0x180B..=0x180F | 0x200B..=0x200F | 0x2028..=0x202E | 0x2060..=0x206F
        | 0xFE00..=0xFE0F | 0xFEFF | 0xFFF9..=0xFFFB | 0x110BD | 0x110CD | 0x13430..=0x1343F
        | 0x1BCA0..=0x1BCA3 | 0x1D173..=0x1D17A | 0xE0000..=0xE0FFF)
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn what_a_terminal_would_act_on_is_shown_as_text() {
        for (raw, shown) in [
            (&b"plain text, 100 %"[..], "plain text, 100 %"),
            ("Gr\u{fc}\u{df}e".as_bytes(), "Gr\u{fc}\u{df}e"),
            (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
            (b"a\r\nb\tc\x7f\0", "a\\r\\nb\\tc\\x7f\\x00"),
            ("\u{9b}2J".as_bytes(), "\\u{9b}2J"),
            ("a\u{202e}txt".as_bytes(), "a\\u{202e}txt"),
            (
                "\u{200b}\u{feff}\u{e0041}\u{2028}".as_bytes(),
                "\\u{200b}\\u{feff}\\u{e0041}\\u{2028}",
            ),
            (b"\xff\xfeok\xc3", "\\xff\\xfeok\\xc3"),
            (b"", ""),
        ] {
            assert_eq!(printable(raw, 1000), shown);
        }
    }

    #[test]
    fn length_is_bounded_and_no_escape_is_cut_in_two() {
        assert_eq!(printable("abcdef", 6), "abcdef");
        assert_eq!(printable("abcdefg", 6), "abcdef...");
        assert_eq!(printable("abc\x1bdef", 6), "abc...");
        assert_eq!(printable("abc\x1bdef", 7), "abc\\x1b...");
        assert_eq!(printable("x".repeat(1 << 20), 10).len(), 13);
    }
}
