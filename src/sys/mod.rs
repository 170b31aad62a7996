//! The only unsafe code of rsig: what neither the standard library nor the `ssh2` crate offers.

#![allow(unsafe_code)]

pub mod channel;
pub mod memory;
pub mod process;
pub mod socket_callbacks;
pub mod userauth;
