//! Host words: one word for several hosts, in the syntax of pdsh and ClusterShell. Words are expanded and folded.
//!
//! `web[01-03,7],db` is web01, web02, web03, web7 and db; `@name` is a group. Ranges have no step, and words can't be
//! excluded. Brackets that hold anything but digits, `-` and `,` are left to [`crate::host`]: `[::1]:22` is an
//! address.

use std::collections::{HashMap, HashSet};

use crate::escape::printable;

/// Maximum number of hosts that a word may expand to.
pub const HOSTS_MAX: usize = 10_000;
/// Maximum nesting depth of groups.
const GROUP_DEPTH_MAX: usize = 100;
/// Maximum number of digits in a range; longer numbers are not treated as numbers.
const DIGITS_MAX: usize = 18;

/// Returns the members of a group, given its name without the `@`.
pub type Groups<'a> = dyn Fn(&str) -> Option<Vec<String>> + 'a;

/// Expands a text into its hosts, without duplicates, in order of first occurrence.
pub fn expand(text: &str, groups: &Groups<'_>) -> Result<Vec<String>, String> {
    let mut expansion = Expansion {
        groups,
        hosts: Vec::new(),
        seen: HashSet::new(),
        open: Vec::new(),
    };
    expansion.add(text)?;
    Ok(expansion.hosts)
}

struct Expansion<'a> {
    groups: &'a Groups<'a>,
    hosts: Vec<String>,
    /// Hosts, and groups with their `@`, that were already added; they are skipped if they occur again.
    seen: HashSet<String>,
    /// The groups being expanded, outermost first.
    open: Vec<String>,
}

impl Expansion<'_> {
    fn add(&mut self, text: &str) -> Result<(), String> {
        for part in split(text)? {
            for word in alternatives(part)? {
                if let Some(at) = self.open.iter().position(|open| *open == word) {
                    let cycle = self.open.get(at..).unwrap_or_default().join(", ");
                    let cycle = printable(format!("{cycle}, {word}"), 300);
                    let word = printable(word, 80);
                    return Err(format!("the group {word} contains itself: {cycle}"));
                }
                if !self.seen.insert(word.clone()) {
                    continue;
                }
                match word.strip_prefix('@') {
                    Some(name) => self.add_group(name)?,
                    None if self.hosts.len() == HOSTS_MAX => return Err(too_many(text)),
                    None => self.hosts.push(word),
                }
            }
        }
        Ok(())
    }

    fn add_group(&mut self, name: &str) -> Result<(), String> {
        let members = (self.groups)(name)
            .ok_or_else(|| format!("no group {name:?} in the configuration file"))?;
        if self.open.len() == GROUP_DEPTH_MAX {
            let name = printable(name, 80);
            return Err(format!(
                "the group @{name} is in more than {GROUP_DEPTH_MAX} others, one in the other"
            ));
        }
        self.open.push(format!("@{name}"));
        for member in members {
            self.add(&member)?;
        }
        self.open.pop();
        Ok(())
    }
}

fn too_many(text: &str) -> String {
    let shown = printable(text, 80);
    format!("{shown} stands for more than {HOSTS_MAX} hosts")
}

/// Splits a text at the commas outside brackets.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let mut in_brackets = false;
    let parts = text
        .split(|letter| {
            in_brackets = (in_brackets || letter == '[') && letter != ']';
            letter == ',' && !in_brackets
        })
        .collect();
    // A word with a control character gets a more specific message when it is parsed as a host.
    if in_brackets && !text.contains(char::is_control) {
        let shown = printable(text, 80);
        return Err(format!("the brackets are not closed in {shown}"));
    }
    Ok(parts)
}

/// Expands the ranges of a word; the last range varies fastest.
fn alternatives(part: &str) -> Result<Vec<String>, String> {
    let mut words = vec![String::new()];
    let mut rest = part;
    while let Some((before, inner, behind)) = brackets(rest) {
        let numbers = if is_range(inner) {
            range(inner)?
        } else {
            vec![format!("[{inner}]")]
        };
        if words.len().saturating_mul(numbers.len()) > HOSTS_MAX {
            return Err(too_many(part));
        }
        words = words
            .iter()
            .flat_map(|word| {
                numbers
                    .iter()
                    .map(move |number| format!("{word}{before}{number}"))
            })
            .collect();
        rest = behind;
    }
    words.iter_mut().for_each(|word| word.push_str(rest));
    Ok(words)
}

/// Splits a text into the parts before, in and after the first brackets.
fn brackets(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('[')?;
    let (inner, behind) = rest.split_once(']')?;
    Some((before, inner, behind))
}

fn is_range(inner: &str) -> bool {
    let is_range_byte = |byte: u8| byte.is_ascii_digit() || b"-,".contains(&byte);
    inner.bytes().all(is_range_byte)
}

/// Expands a range such as `01-03,7`.
fn range(inner: &str) -> Result<Vec<String>, String> {
    let mut numbers = Vec::new();
    for item in inner.split(',') {
        let bad = |why: &str| format!("[{inner}] is not a range of numbers: {why}");
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let number = |digits: &str| match digits.parse::<u64>() {
            Ok(number) if digits.len() <= DIGITS_MAX && !digits.contains('-') => Ok(number),
            _ if digits.is_empty() => Err(bad("a number is missing")),
            _ => Err(bad(&format!(
                "{digits:?} is not a number of up to {DIGITS_MAX} digits"
            ))),
        };
        let (from, to) = (number(first)?, number(last)?);
        if from > to {
            return Err(bad(&format!("{first} is greater than {last}")));
        }
        let is_padded = |digits: &str| digits.len() > 1 && digits.starts_with('0');
        if first.len() != last.len() && (is_padded(first) || is_padded(last)) {
            let why =
                format!("with leading zeros, {first} and {last} need the same number of digits");
            return Err(bad(&why));
        }
        if (numbers.len() as u64).saturating_add(to - from) >= HOSTS_MAX as u64 {
            return Err(too_many(&format!("[{inner}]")));
        }
        let width = if is_padded(first) { first.len() } else { 0 };
        numbers.extend((from..=to).map(|number| format!("{number:0width$}")));
    }
    Ok(numbers)
}

/// Folds hosts into the shortest text that [`expand`] reads; the inverse of expanding ranges.
pub fn fold<'a>(hosts: impl IntoIterator<Item = &'a str>) -> String {
    let mut items: Vec<Vec<Token>> = Vec::new();
    let mut seen = HashSet::new();
    items.extend(
        hosts
            .into_iter()
            .filter(|host| seen.insert(*host))
            .map(tokens),
    );
    let longest = items.iter().map(Vec::len).max().unwrap_or(0);
    // Merge items that differ in a single number, beginning with the last number.
    for place in (0..longest).rev() {
        let mut merged: Vec<Vec<Token>> = Vec::new();
        let mut alike: HashMap<Vec<Token>, usize> = HashMap::new();
        for mut item in items {
            let Some(Token::Numbers(numbers)) = item.get_mut(place) else {
                merged.push(item);
                continue;
            };
            let own = std::mem::take(numbers);
            let at = *alike.entry(item).or_insert_with_key(|key| {
                merged.push(key.clone());
                merged.len() - 1
            });
            if let Some(Token::Numbers(all)) = merged.get_mut(at).and_then(|all| all.get_mut(place))
            {
                all.extend(own);
            }
        }
        items = merged;
    }
    let folded: Vec<String> = items
        .iter()
        .map(|item| item.iter().map(Token::text).collect())
        .collect();
    folded.join(",")
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Token {
    Text(String),
    Numbers(Vec<String>),
}

impl Token {
    fn text(&self) -> String {
        let numbers = match self {
            Self::Text(text) => return text.clone(),
            Self::Numbers(numbers) if numbers.len() == 1 => return numbers.concat(),
            Self::Numbers(numbers) => numbers,
        };
        let mut numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
        numbers.sort_unstable_by_key(|digits| (digits.len(), *digits));
        let (mut runs, mut run): (Vec<String>, Option<(&str, &str)>) = (Vec::new(), None);
        for digits in numbers {
            run = match run {
                Some((first, last)) if follows(first, last, digits) => Some((first, digits)),
                before => {
                    runs.extend(before.map(format_run));
                    Some((digits, digits))
                }
            };
        }
        runs.extend(run.map(format_run));
        format!("[{}]", runs.join(","))
    }
}

/// Whether a number continues a run, with the padding of the run's first number.
fn follows(first: &str, last: &str, digits: &str) -> bool {
    let padded = first.len() > 1 && first.starts_with('0');
    let width = if padded { first.len() } else { 0 };
    let next = last
        .parse::<u64>()
        .map(|last| format!("{:0width$}", last + 1));
    next.is_ok_and(|next| next == digits) && (!padded || digits.len() == width)
}

fn format_run((first, last): (&str, &str)) -> String {
    if first == last {
        first.to_owned()
    } else {
        format!("{first}-{last}")
    }
}

/// Splits a host into alternating text and numbers. A host with brackets stays one text: a range has no meaning inside
/// brackets.
fn tokens(host: &str) -> Vec<Token> {
    if host.contains('[') {
        return vec![Token::Text(host.to_owned())];
    }
    let mut tokens = Vec::new();
    let mut rest = host;
    while let Some(first) = rest.chars().next() {
        let is_number = first.is_ascii_digit();
        let end = rest
            .find(|letter: char| letter.is_ascii_digit() != is_number)
            .unwrap_or(rest.len());
        let (text, behind) = rest.split_at(end);
        tokens.push(if is_number && text.len() <= DIGITS_MAX {
            Token::Numbers(vec![text.to_owned()])
        } else {
            Token::Text(text.to_owned())
        });
        rest = behind;
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(name: &str) -> Option<Vec<String>> {
        let members: &[&str] = match name {
            "web" => &["web[1-2]", "web2"],
            "all" => &["@web,db", "@web"],
            "rack1" => &["r1"],
            "a" => &["x", "@b"],
            "b" => &["@c"],
            "c" => &["@a"],
            "empty" => &[],
            "\x1b[2J" => &["@\x1b[2J"],
            // Each group is nested in the previous one.
            _ if name.parse().is_ok_and(|depth: u32| depth < 50_000) => {
                let depth: u32 = name.parse().unwrap_or_default();
                return Some(vec![format!("@{}", depth + 1)]);
            }
            _ => return None,
        };
        Some(members.iter().map(|member| (*member).to_owned()).collect())
    }

    #[test]
    fn words_and_their_hosts() {
        for (text, expected) in [
            ("web1", "web1"),
            ("web[01-03,5]", "web01 web02 web03 web5"),
            ("web[9-11]", "web9 web10 web11"),
            ("web[098-101]", "web098 web099 web100 web101"),
            ("web[1-3,01]", "web1 web2 web3 web01"),
            ("a[1-2]b[01-02]c", "a1b01c a1b02c a2b01c a2b02c"),
            ("a[1-2][3,5]", "a13 a15 a23 a25"),
            ("[1-3].ex", "1.ex 2.ex 3.ex"),
            ("web[1-2],web2,db,web1", "web1 web2 db"),
            ("bob@web[1-2]:22", "bob@web1:22 bob@web2:22"),
            ("ssh://web[1-2]:22", "ssh://web1:22 ssh://web2:22"),
            ("docker://web[1-2]", "docker://web1 docker://web2"),
            ("[::1]:22", "[::1]:22"),
            ("[::1]:22,web[1,2]", "[::1]:22 web1 web2"),
            ("u@[fe80::1%eth0]:9,[::1]", "u@[fe80::1%eth0]:9 [::1]"),
            ("[web1]:22", "[web1]:22"),
            ("a,,b", "a  b"),
            ("", ""),
            ("@web", "web1 web2"),
            ("@all,@web,web1", "web1 web2 db"),
            ("@rack[1-1],x", "r1 x"),
            ("@empty", "-"),
            ("bob@web", "bob@web"),
        ] {
            let hosts = expand(text, &groups).unwrap();
            let expected = if expected == "-" {
                vec![]
            } else {
                expected.split(' ').collect()
            };
            assert_eq!(hosts, expected, "{text}");
        }
        assert_eq!(
            expand("w[1-100],w[101-10000]", &groups).unwrap().len(),
            HOSTS_MAX
        );
    }

    #[test]
    fn words_that_stand_for_no_hosts() {
        for (text, part) in [
            ("web[1", "not closed"),
            ("web[1,2", "not closed"),
            ("web[]", "missing"),
            ("web[1-]", "missing"),
            ("web[-1]", "missing"),
            ("web[,1]", "missing"),
            ("web[1--3]", "not a number"),
            ("web[1-2-3]", "not a number"),
            ("web[3-1]", "greater"),
            ("web[01-9]", "digits"),
            ("web[1-09]", "digits"),
            ("web[08-100]", "digits"),
            ("web[9999999999999999999]", "not a number"),
            ("web[1-10001]", "more than 10000"),
            ("web[0-18446744073709551615]", "not a number"),
            ("web[0-999999999999999999]", "more than 10000"),
            ("a[1-101]b[1-101]", "more than 10000"),
            (
                "a[1-99]b[1-99]c[1-99]d[1-99]e[1-99]f[1-99]g[1-99]h[1-99]i[1-99]",
                "more than 10000",
            ),
            ("w[1-10000],db", "more than 10000"),
            ("@none", "no group \"none\""),
            ("@", "no group \"\""),
            ("@a", "@a, @b, @c, @a"),
            ("x,@b", "@b, @c, @a, @b"),
            ("@\x1b[2J", "@\\x1b[2J contains itself"),
            ("@0", "@100 is in more than 100 others"),
        ] {
            let failure = expand(text, &groups).unwrap_err();
            assert!(failure.contains(part), "{text}: {failure}");
        }
    }

    /// Each group is expanded once, or nested groups would take exponential time.
    #[test]
    fn groups_of_groups_take_no_time() {
        let doubling = |name: &str| match name.parse::<u32>() {
            Ok(0) => Some(vec!["x".to_owned()]),
            Ok(number) => Some(vec![format!("@{0},@{0}", number - 1); 2]),
            Err(_) => None,
        };
        assert_eq!(expand("@60", &doubling).unwrap(), ["x"]);
    }

    #[test]
    fn hosts_and_their_word() {
        for (hosts, expected) in [
            ("", ""),
            ("web1", "web1"),
            ("web01 web02 web03 web05", "web[01-03,05]"),
            ("web8 web10 web9", "web[8-10]"),
            ("web08 web09 web10", "web[08-10]"),
            ("web99 web100", "web[99-100]"),
            ("web098 web099 web100", "web[098-100]"),
            ("w098 w99 w100", "w[99,098,100]"),
            ("web1 web01 web2", "web[1-2,01]"),
            ("web09 web10 web099 web100", "web[09-10,099-100]"),
            ("r1n1 r1n2 r2n1 r2n2", "r[1-2]n[1-2]"),
            ("r1n1 r1n2 r2n1", "r1n[1-2],r2n1"),
            ("127.1.0.1 127.1.0.3 127.1.0.2", "127.1.0.[1-3]"),
            ("bob@web1:22 bob@web2:22", "bob@web[1-2]:22"),
            ("web1:22 web1:23", "web1:[22-23]"),
            ("[::1]:22 [::1]:23", "[::1]:22,[::1]:23"),
            ("db web2 web1 db", "db,web[1-2]"),
            (
                "w99999999999999999999 w1 w2",
                "w99999999999999999999,w[1-2]",
            ),
            (
                "w999999999999999999 w000000000000000000",
                "w[000000000000000000,999999999999999999]",
            ),
        ] {
            let folded = fold(hosts.split(' ').filter(|host| !host.is_empty()));
            assert_eq!(folded, expected, "{hosts}");
            if !hosts.is_empty() {
                let mut back = expand(&folded, &groups).unwrap();
                let mut all: Vec<&str> = hosts.split(' ').collect();
                all.sort_unstable();
                all.dedup();
                back.sort_unstable();
                assert_eq!(back, all, "{folded}");
            }
        }
    }
}
