//! The tests of the binary: each drives the real program against real servers.

mod completion;
mod harness;
mod keeper;
mod jobs;
mod kill;
mod selftest;
mod spawn;
