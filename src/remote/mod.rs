//! The shell scripts that run on a host, and the only code that renders them and parses their answers.
//!
//! How a script is sent to its host is handled by [`crate::connection`].

mod answer;
pub mod discover;
mod glance;
pub mod look;
mod no_shell;
mod observation;
pub mod output;
#[cfg(any(feature = "serve", fuzzing))]
pub mod pids;
mod script;
pub mod search;
pub mod send;
pub mod signal;
pub mod start;
pub mod stream;
mod usage;

pub use answer::{AnswerReader, Stream};
pub use glance::{Glance, glance};
pub use observation::{JobNote, Observation, ObservedState};
pub use output::Sink;
pub use script::primer;
pub use usage::{Usage, measure};
