#!/usr/bin/env bash
# Builds the file system test suites of others that the tests run on a share, as static programs, and prints the folder they
# are in: pjdfstest, for what POSIX says of names and attributes, and fsx, for every byte of a file. Beside them is this machine's
# cargo, which no template has, as a client of registries.
#
# Owns their versions, and the patch of one. The files beside it say how they are run and what they may fail: they are the tests' to use.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=rootfs/cache.sh
source "$here/../../rootfs/cache.sh"

readonly PJDFSTEST=0.2.2 FSX=0.3.2
readonly TARGET=x86_64-unknown-linux-gnu

# From outside the checkout, whose cargo settings name a runner and a target folder that are not for these.
install() {
    local root=$1
    shift
    (cd / && RUSTFLAGS='-C target-feature=+crt-static' \
        cargo install --quiet --locked --root "$root" --target "$TARGET" "$@" >&2)
}

# The source of a program comes from the registry as that of a dependency does.
fetch_fsx() {
    mkdir -p "$1/src"
    touch "$1/src/lib.rs"
    printf '[package]\nname = "fetch"\n[dependencies]\nfsx = "=%s"\n' "$FSX" >"$1/Cargo.toml"
    (cd "$1" && cargo vendor --quiet >/dev/null 2>&1)
    patch --quiet -d "$1/vendor/fsx" -p1 <"$here/fsx-unmap.patch"
}

build() {
    local began=$SECONDS
    say "suites: building pjdfstest $PJDFSTEST and fsx $FSX (1 to 3 minutes) ..."
    install "$1" "pjdfstest@$PJDFSTEST"
    fetch_fsx "$1/source"
    install "$1" --path "$1/source/vendor/fsx"
    mv "$1"/bin/* "$1"
    rm -rf "$1/source"
    cp "$(rustup which cargo 2>/dev/null || command -v cargo)" "$1/cargo"
    say "suites: built in $((SECONDS - began)) s"
}

entry=$(cache_entry suites "$0" "$here/fsx-unmap.patch")
cache_fill "$entry" build
echo "$entry"
