//! The tests of the binary: each drives the real program against real servers.

mod completion;
mod faults;
mod harness;
mod hostile;
mod jobs;
mod keeper;
mod kill;
mod kit;
mod ps;
mod rm;
mod selftest;
mod spawn;
mod states;
mod store;
mod tail;
mod usage;
mod wait;
