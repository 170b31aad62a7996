//! A limit on this process's memory, for libraries that keep whatever a peer sends.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Memory beyond the limit that [`release_reserve`] makes available, in bytes.
const RESERVE: u64 = 1 << 20;

// Limiting the address space alone is not enough: the C library reserves much of it for each thread (proc(5)).
const LIMITS: [(&str, Resource); 2] = [
    ("VmSize:", Resource::RLIMIT_AS),
    ("VmData:", Resource::RLIMIT_DATA),
];

/// Lets memory grow by at most `growth` bytes from now on.
pub fn limit(growth: u64) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let current = |key| {
        let value = status.lines().find_map(|line| line.strip_prefix(key))?;
        value.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    for (key, resource) in LIMITS {
        if let Some(limit) = current(key).map(|kilobytes| kilobytes * 1024 + growth) {
            // Fails on systems without such a limit, which is harmless.
            let _ = setrlimit(resource, limit, limit + RESERVE);
        }
    }
}

/// Makes the reserve available, for a process that ends because a library has reached the limit. Without it, Rust's own
/// next allocation could fail, which aborts the process before it has said why. Does not allocate.
pub fn release_reserve() {
    for (_, resource) in LIMITS {
        if let Ok((_, hard)) = getrlimit(resource) {
            let _ = setrlimit(resource, hard, hard);
        }
    }
}
