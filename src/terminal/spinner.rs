//! A spinner on standard error, shown when a host takes long to answer.

use std::io::IsTerminal as _;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::ProgressBar;

use crate::connection::ssh::prompt;

/// Delay before the spinner is shown; most hosts answer sooner.
const SHOW_DELAY: Duration = Duration::from_millis(600);
const TICK: Duration = Duration::from_millis(100);

/// A spinner that is shown after [`SHOW_DELAY`] and turns until dropped.
pub struct Spinner {
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Spinner {
    /// Starts a spinner with a text, if `wanted` and standard error is a terminal.
    pub fn new(text: &'static str, wanted: bool) -> Self {
        if !wanted || !std::io::stderr().is_terminal() {
            return Self { thread: None };
        }
        let (stop, stopped) = mpsc::channel::<()>();
        let spinner = std::thread::Builder::new().spawn(move || {
            if !matches!(
                stopped.recv_timeout(SHOW_DELAY),
                Err(RecvTimeoutError::Timeout)
            ) {
                return;
            }
            let bar = ProgressBar::new_spinner().with_message(text);
            while matches!(stopped.recv_timeout(TICK), Err(RecvTimeoutError::Timeout)) {
                // A question on the terminal must not be drawn over.
                if !prompt::is_asking() {
                    bar.tick();
                }
            }
            bar.finish_and_clear();
        });
        Self {
            thread: spinner.ok().map(|thread| (stop, thread)),
        }
    }

    /// Removes the spinner from the terminal.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            // Ignore a panicked spinner.
            drop(thread.join());
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.stop();
    }
}
