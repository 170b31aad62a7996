# What one types daily. `just` alone lists it.

_list:
    @just --list

# Tests whose name contains FILTER, on the default hosts
test FILTER='':
    cargo test -- {{FILTER}}

# The same on every kind of host
test-all FILTER='':
    RSIG_TEST_SITES=all cargo test -- {{FILTER}}

# Formatting, clippy and shellcheck
lint:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings
    shellcheck src/remote/*.sh contrib/github/run

# Manual pages and completions, from the definitions of the command line; the book's reference, from the manual pages
renew:
    RSIG_RENEW_PAGES=1 cargo test --bin rsig pages
    docs/reference

# The book, in a browser; it needs mdbook
book:
    mdbook serve --open docs

# Timings against OpenSSH whose name contains FILTER, with all files in memory
bench FILTER='':
    unshare --mount sh -c 'mount -t tmpfs tmpfs /tmp && exec cargo bench -- --quick {{FILTER}}'

# Ten minutes of faults
soak:
    cargo test -- --ignored soak

# Ten minutes of each fuzz target, or of those named; it needs cargo-fuzz, a nightly toolchain and libssl-dev
fuzz *TARGETS='answer keeper hosts_file host_word ssh_config config_file':
    #!/bin/sh
    set -eu
    for target in {{TARGETS}}; do
        mkdir -p "fuzz/corpus/$target"
        cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
            -dict=fuzz/words.dict -max_len=4096 -timeout=10 -max_total_time=600
    done

# Packages for this machine, installed in a fresh Debian and removed again; as root, with debootstrap, rpm and cpio
packages:
    .ci/package
    .ci/check-packages

# All that has to pass
ci:
    .ci/run
