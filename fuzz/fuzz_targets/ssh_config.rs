#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rsig_fuzz::ssh_config(data));
