# Common tasks. `just` without arguments lists them.

_list:
    @just --list

# Run the tests whose name contains FILTER, on the default hosts
test FILTER='':
    cargo test -- {{FILTER}}

# Run the same tests on every kind of host
test-all FILTER='':
    RSIG_TEST_SITES=all cargo test -- {{FILTER}}

# Check formatting, clippy and shellcheck
lint:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings
    shellcheck src/remote/*.sh contrib/github/run

# Regenerate the manual pages and completions from the command-line definitions, and the book's reference from the pages
renew:
    RSIG_RENEW_PAGES=1 cargo test --bin rsig pages
    docs/reference

# Show the book in a browser (requires mdbook)
book:
    mdbook serve --open docs

# Run the benchmarks against OpenSSH whose name contains FILTER, with all files in memory
bench FILTER='':
    unshare --mount sh -c 'mount -t tmpfs tmpfs /tmp && exec cargo bench -- --quick {{FILTER}}'

# Inject faults for ten minutes
soak:
    cargo test -- --ignored soak

# Run all fuzz targets, or those named, for ten minutes each (requires cargo-fuzz, a nightly toolchain and libssl-dev)
fuzz *TARGETS='answer keeper hosts_file host_word ssh_config config_file':
    #!/bin/sh
    set -eu
    for target in {{TARGETS}}; do
        mkdir -p "fuzz/corpus/$target"
        cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
            -dict=fuzz/words.dict -max_len=4096 -timeout=10 -max_total_time=600
    done

# Build packages for this machine, and test them in a fresh Debian (requires root, debootstrap, rpm and cpio)
packages:
    .ci/package
    .ci/check-packages

# Run every check that must pass
ci:
    .ci/run
