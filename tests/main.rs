//! The tests of the binary: each drives the real program against real servers.

mod completion;
mod faults;
mod harness;
mod history;
mod jobs;
mod keeper;
mod kill;
mod kit;
mod limits;
mod many;
mod selftest;
mod spawn;
mod store;
mod usage;
