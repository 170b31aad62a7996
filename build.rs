//! Has the compiler's unwinder linked in on Linux, where the standard library would have it loaded as `libgcc_s.so.1`: to
//! load and bind that library is a tenth of what a command takes to start.
//!
//! The linker is asked for `-lgcc_s` all the same, and finds a file of that name here, which names the static one: a linker
//! script (ld(1), "Implicit Linker Scripts"). Where the compiler has none, nothing is changed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let is_native = env::var("HOST").is_ok_and(|host| is("TARGET", &host));
    if !is_native
        || !is("CARGO_CFG_TARGET_OS", "linux")
        || !is("CARGO_CFG_TARGET_ENV", "gnu")
        || !has_static_unwinder()
    {
        return;
    }
    let Some(directory) = env::var_os("OUT_DIR").map(PathBuf::from) else {
        return;
    };
    if fs::write(directory.join("libgcc_s.so"), "INPUT(-lgcc_eh)\n").is_ok() {
        println!("cargo::rustc-link-search=native={}", directory.display());
    }
}

/// Whether `cc`, which links, knows where the static unwinder is: of a file that it has not, it gives the bare name back.
fn has_static_unwinder() -> bool {
    let found = Command::new("cc")
        .arg("-print-file-name=libgcc_eh.a")
        .output();
    found.is_ok_and(|found| {
        String::from_utf8(found.stdout).is_ok_and(|path| Path::new(path.trim()).is_absolute())
    })
}
