//! The keeper: a process in the background that holds one SSH connection to a host, so that a command costs one round
//! trip, and through which signals go by the job's own channel; or shells on this machine that are slow to start.
//!
//! It is started by the first command that needs its host and ends when it has had nothing to do for long enough. It
//! holds no truth: whatever it is in the middle of when it dies, the next command finds out from the host.

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
