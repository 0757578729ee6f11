#!/usr/bin/env bash
# Builds the file system test suites of others that the tests run on a share, as static programs, and prints the folder they
# are in: pjdfstest, for what POSIX says of names and attributes, and fsx, for every byte of a file.
#
# Owns their versions. The files beside it say how they are run and what they may fail: they are the tests' to use.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=rootfs/cache.sh
source "$here/../../rootfs/cache.sh"

readonly SUITES=(pjdfstest@0.2.2 fsx@0.3.2)
readonly TARGET=x86_64-unknown-linux-gnu

# From outside the checkout, whose cargo settings name a runner and a target folder that are not for these.
build() {
    local began=$SECONDS
    say "suites: building ${SUITES[*]} (1 to 3 minutes) ..."
    (cd / && RUSTFLAGS='-C target-feature=+crt-static' \
        cargo install --quiet --locked --root "$1" --target "$TARGET" "${SUITES[@]}" >&2)
    mv "$1"/bin/* "$1"
    say "suites: built in $((SECONDS - began)) s"
}

entry=$(cache_entry suites "$0")
cache_fill "$entry" build
echo "$entry"
