//! The tests of the binary: each drives the real program against real servers.

#![allow(clippy::too_many_lines, reason = "a test is often a table of cases")]

mod anywhere;
mod clients;
mod completion;
mod config;
mod containers;
mod contrib;
mod docs;
mod faults;
mod foreign;
mod hanging;
mod harness;
mod hidden;
mod history;
mod hostile;
mod interrupt;
mod keeper;
mod keeper_faults;
mod kill;
mod layers;
mod limits;
mod login;
mod many;
#[cfg(feature = "mcp")]
mod mcp;
mod moved;
mod openssh;
mod outage;
mod ps;
mod ring;
mod rm;
mod run;
mod selftest;
mod send;
#[cfg(feature = "serve")]
mod serve;
mod several;
mod shells;
mod soak;
mod spawn;
mod states;
mod store;
mod tail;
mod terminal;
mod top;
mod tree;
mod unwritable;
mod usage;
mod users;
mod variables;
mod wait;
mod wait_for;

use harness::{jobs, keepers, kit};
