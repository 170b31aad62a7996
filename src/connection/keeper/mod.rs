//! The keeper: a background process that holds one SSH connection to a host, so that a command costs one round trip and
//! a signal can go by the job's own channel. For a destination on this machine, it holds shells that are slow to start.
//!
//! It is started by the first command that needs its host, and ends after an idle timeout. Nothing depends on its
//! state: if it dies in the middle of something, the next command finds out from the host what was done.

mod channel;
pub mod client;
mod client_stream;
pub mod connect;
#[cfg(fuzzing)]
pub mod fuzz;
mod keepalive;
pub mod path;
mod pool;
pub mod protocol;
mod pump;
mod quirks;
mod relay;
mod requests;
mod serve;
mod server;
mod shell;
mod transport;

pub use connect::SERVE;
pub use serve::serve;
