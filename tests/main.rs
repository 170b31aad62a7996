//! The tests of the binary: each drives the real program against real servers.

mod anywhere;
mod completion;
mod faults;
mod harness;
mod jobs;
mod keeper;
mod kill;
mod kit;
mod selftest;
mod spawn;
mod store;
mod tree;
mod usage;
