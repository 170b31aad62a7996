//! Numbers for the lines of a job, across its two streams.
//!
//! A host keeps two logs, and nothing of the order between them. So lines are numbered as they are first seen, and that
//! order is kept with the job's record: the number that a line has once is its own, for every server and at any time.
//! What is kept is a list of runs: so many lines of one stream, of so many bytes, then so many of the other. It also
//! tells where in the logs to go on, so that no line is read to find another.

use std::fmt;

use crate::remote::Stream;

/// The most lines of a run: so many are read in vain at most, to get at one in its middle.
const RUN: u64 = 1000;

/// A line of a job's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub stream: Stream,
    /// Which of its stream's lines it is, counted from 1.
    pub index: u64,
    /// How much of the log it takes.
    pub bytes: u64,
    pub text: String,
}

/// So many lines of a stream, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub lines: u64,
    pub bytes: u64,
}

impl Place {
    fn add(&mut self, lines: u64, bytes: u64) {
        self.lines += lines;
        self.bytes += bytes;
    }
}

/// A place in both streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    pub out: Place,
    pub err: Place,
}

impl Places {
    pub fn of(&self, stream: Stream) -> Place {
        match stream {
            Stream::Out => self.out,
            Stream::Err => self.err,
        }
    }

    pub fn of_mut(&mut self, stream: Stream) -> &mut Place {
        match stream {
            Stream::Out => &mut self.out,
            Stream::Err => &mut self.err,
        }
    }

    fn lines(&self) -> u64 {
        self.out.lines + self.err.lines
    }
}

/// The order of a job's lines, as far as they were ever seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order(Vec<(Stream, Place)>);

impl Order {
    /// Reads what was kept. What makes no sense ends it: lines behind that are numbered anew.
    pub fn parse(text: &str) -> Self {
        let run = |word: &str| {
            let stream = match word.get(..1)? {
                "o" => Stream::Out,
                "e" => Stream::Err,
                _ => return None,
            };
            let (lines, bytes) = word.get(1..)?.split_once(':')?;
            Some((
                stream,
                Place {
                    lines: lines.parse().ok()?,
                    bytes: bytes.parse().ok()?,
                },
            ))
        };
        Self(text.split_whitespace().map_while(run).collect())
    }

    /// How many lines have a number.
    pub fn total(&self) -> u64 {
        self.end().lines()
    }

    fn end(&self) -> Places {
        self.0
            .iter()
            .fold(Places::default(), |mut end, (stream, run)| {
                end.of_mut(*stream).add(run.lines, run.bytes);
                end
            })
    }

    /// Where to begin to read what comes behind a number: the last place in both logs that is known and not behind it.
    pub fn place(&self, number: u64) -> Places {
        let mut at = Places::default();
        for (stream, run) in &self.0 {
            if at.lines() + run.lines > number {
                break;
            }
            at.of_mut(*stream).add(run.lines, run.bytes);
        }
        at
    }

    /// Gives numbers to those lines that have none; each stream's come in their order.
    pub fn learn(&mut self, lines: &[Line]) {
        let mut end = self.end();
        for line in lines {
            if line.index != end.of(line.stream).lines + 1 {
                continue;
            }
            end.of_mut(line.stream).add(1, line.bytes);
            match self.0.last_mut() {
                Some((stream, run)) if *stream == line.stream && run.lines < RUN => {
                    run.add(1, line.bytes);
                }
                _ => self.0.push((
                    line.stream,
                    Place {
                        lines: 1,
                        bytes: line.bytes,
                    },
                )),
            }
        }
    }

    /// The number of a line, if it has one.
    pub fn number(&self, line: &Line) -> Option<u64> {
        let (mut at, mut before) = (Places::default(), 0);
        for (stream, run) in &self.0 {
            let first = at.of(*stream).lines;
            if *stream == line.stream && line.index > first && line.index <= first + run.lines {
                return Some(before + line.index - first);
            }
            at.of_mut(*stream).add(run.lines, run.bytes);
            before += run.lines;
        }
        None
    }
}

impl fmt::Display for Order {
    /// What is kept.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.0.iter().map(|(stream, run)| {
            let letter = if *stream == Stream::Out { 'o' } else { 'e' };
            format!("{letter}{}:{}", run.lines, run.bytes)
        });
        formatter.write_str(&words.collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stream: Stream, index: u64) -> Line {
        Line {
            stream,
            index,
            bytes: 10,
            text: String::new(),
        }
    }

    #[test]
    fn a_line_keeps_its_number() {
        let mut order = Order::default();
        order.learn(&[
            line(Stream::Out, 1),
            line(Stream::Out, 2),
            line(Stream::Err, 1),
            line(Stream::Out, 3),
        ]);
        assert_eq!(order.to_string(), "o2:20 e1:10 o1:10");
        // Seen again, by somebody who began elsewhere and has seen more.
        order.learn(&[
            line(Stream::Err, 1),
            line(Stream::Err, 2),
            line(Stream::Out, 2),
            line(Stream::Out, 3),
        ]);
        assert_eq!(order.to_string(), "o2:20 e1:10 o1:10 e1:10");
        let numbers: Vec<_> = (1..=3)
            .map(|index| order.number(&line(Stream::Out, index)))
            .chain([order.number(&line(Stream::Err, 2))])
            .collect();
        assert_eq!(numbers, [Some(1), Some(2), Some(4), Some(5)]);
        assert_eq!(order.number(&line(Stream::Out, 4)), None);
        assert_eq!(
            (order.total(), Order::parse(&order.to_string())),
            (5, order)
        );
    }

    #[test]
    fn a_place_is_never_behind_the_number() {
        let order = Order::parse("o2:20 e1:7 o1:10");
        let place = |number| (order.place(number).out, order.place(number).err);
        let at = |lines, bytes| Place { lines, bytes };
        assert_eq!(place(0), (at(0, 0), at(0, 0)));
        assert_eq!(place(1), (at(0, 0), at(0, 0)));
        assert_eq!(place(2), (at(2, 20), at(0, 0)));
        assert_eq!(place(3), (at(2, 20), at(1, 7)));
        assert_eq!(place(99), (at(3, 30), at(1, 7)));
        assert_eq!(Order::parse("o2:20 x e1:1").to_string(), "o2:20");
    }

    #[test]
    fn runs_stay_short() {
        let mut order = Order::default();
        order.learn(
            &(1..=2500)
                .map(|index| line(Stream::Out, index))
                .collect::<Vec<_>>(),
        );
        assert_eq!(order.to_string(), "o1000:10000 o1000:10000 o500:5000");
    }
}
