//! Patterns of `*` (any number of characters) and `?` (one), for bytes or for characters.

/// Whether `pattern` matches all of `text`. Backtracks to the last `*` only, so the time is bounded
/// by the product of the two lengths.
pub fn matches<T: PartialEq + From<u8>>(pattern: &[T], text: &[T]) -> bool {
    let (star, any) = (T::from(b'*'), T::from(b'?'));
    let (mut p, mut t) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while let Some(unit) = text.get(t) {
        match pattern.get(p) {
            Some(wanted) if *wanted == star => {
                last_star = Some((p, t));
                p += 1;
            }
            Some(wanted) if *wanted == any || wanted == unit => {
                p += 1;
                t += 1;
            }
            _ => {
                // Let the last star match one more unit.
                let Some((at, from)) = last_star else {
                    return false;
                };
                last_star = Some((at, from + 1));
                (p, t) = (at + 1, from + 1);
            }
        }
    }
    pattern.iter().skip(p).all(|unit| *unit == star)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, text, fits) in [
            ("web", "web", true),
            ("web", "web1", false),
            ("*", "", true),
            ("", "", true),
            ("w*b", "web", true),
            ("w**b", "wb", true),
            ("w*e*b*", "web", true),
            ("*.example.com", "example.com", false),
            ("*ab", "aab", true),
            ("*ab*ab", "abxab", true),
            ("we?", "we", false),
            ("????", "web", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                fits,
                "{pattern:?} {text:?}"
            );
        }
        assert!(matches(&['g', '?', 'n'], &['g', '\u{fc}', 'n']));
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = b"*a".repeat(500);
        assert!(!matches(&pattern, &b"a".repeat(499)));
        assert!(matches(&pattern, &b"a".repeat(500)));
    }
}
