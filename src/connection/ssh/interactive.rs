//! The questions of one keyboard-interactive attempt (RFC 4256), answered by the user.

use ssh2::{KeyboardInteractivePrompt, Prompt};

use super::link::Clock;
use super::prompt::Prompter;
use crate::escape::printable;

/// Maximum number of prompts in one round, and of rounds in one attempt. No real login has more.
const MAX_PROMPTS: usize = 10;
const MAX_ROUNDS: usize = 20;
/// How much of a server's question is shown.
const QUESTION_SHOWN: usize = 500;

pub(super) struct Dialogue<'a> {
    pub(super) prompter: Prompter,
    pub(super) clock: &'a Clock,
    pub(super) who: String,
    pub(super) rounds: usize,
    /// Why a question was not answered.
    pub(super) failed: Option<String>,
    /// The server asked again after a question was not answered.
    pub(super) is_endless: bool,
}

impl KeyboardInteractivePrompt for Dialogue<'_> {
    fn prompt(&mut self, name: &str, instructions: &str, prompts: &[Prompt<'_>]) -> Vec<String> {
        self.rounds += 1;
        self.is_endless |= self.failed.is_some();
        if self.rounds > MAX_ROUNDS || prompts.len() > MAX_PROMPTS {
            let reason = "the server asks too many questions".to_owned();
            self.failed.get_or_insert(reason);
        }
        let shown = |text: &str| format!("({}) {}", self.who, printable(text, QUESTION_SHOWN));
        let mut before: String = [name, instructions]
            .iter()
            .flat_map(|text| text.lines())
            .filter(|line| !line.trim().is_empty())
            .take(10)
            .map(|line| shown(line.trim_end()) + "\n")
            .collect();
        let questions: Vec<(String, bool)> = prompts
            .iter()
            .map(|prompt| {
                let text = shown(prompt.text.trim_end_matches('\n'));
                (std::mem::take(&mut before) + &text, prompt.echo)
            })
            .collect();
        let mut answers = Vec::new();
        for (question, echo) in questions {
            // Every round must be answered. The server refuses an empty answer.
            let mut answer = String::new();
            if self.failed.is_none() {
                match self.clock.paused(|| self.prompter.ask(&question, echo)) {
                    Ok(Some(given)) => answer = given,
                    Ok(None) => self.failed = Some("the question was not answered".to_owned()),
                    Err(reason) => self.failed = Some(reason),
                }
            }
            answers.push(answer);
        }
        answers
    }
}
