//! Links the compiler's unwinder statically on Linux, where the standard library would load it as `libgcc_s.so.1`.
//! Loading and binding that library takes a tenth of a command's start-up time.
//!
//! The linker is still given `-lgcc_s`, and finds a file of that name in `OUT_DIR`: a linker script that names the
//! static library (ld(1), "Implicit Linker Scripts"). If the compiler has no static unwinder, nothing is changed.

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

/// Whether `cc`, which does the linking, has the static unwinder. For a file that it lacks, `cc` prints the bare name.
fn has_static_unwinder() -> bool {
    let found = Command::new("cc")
        .arg("-print-file-name=libgcc_eh.a")
        .output();
    found.is_ok_and(|found| {
        String::from_utf8(found.stdout).is_ok_and(|path| Path::new(path.trim()).is_absolute())
    })
}
