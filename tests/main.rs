//! The tests of the binary: each drives the real program against real servers.

mod harness;
mod jobs;
mod kill;
mod ps;
mod rm;
mod selftest;
mod shells;
mod spawn;
mod states;
mod tail;
mod wait;
