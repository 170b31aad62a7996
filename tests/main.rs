//! The tests of the binary: each drives the real program against real servers.

mod completion;
mod faults;
mod foreign;
mod harness;
mod history;
mod hostile;
mod jobs;
mod keeper;
mod kill;
mod kit;
mod limits;
mod login;
mod many;
mod ps;
mod rm;
mod run;
mod selftest;
mod shells;
mod spawn;
mod states;
mod store;
mod tail;
mod terminal;
mod usage;
mod wait;
