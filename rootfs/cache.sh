# shellcheck shell=bash
# The cache of big build outputs: where an entry lives, and how it gets there whole.
#
# Sourced by the scripts beside it. Owns the naming and locking of entries, so that a killed or doubled build never leaves
# half an entry. Does not know what is in an entry, and never deletes a finished one.

CACHE_ROOT=${CORACLE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/coracle}

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# cache_entry WHAT FILE...: the directory that holds WHAT as built from these inputs.
cache_entry() {
    local what=$1 hash
    shift
    hash=$(cat -- "$@" | sha256sum)
    printf '%s/%s-%s\n' "$CACHE_ROOT" "$what" "${hash:0:16}"
}

# cache_fill ENTRY BUILDER [ARG...]: unless ENTRY exists, runs BUILDER with [ARG...] and an empty directory, then renames
# that directory to ENTRY. A second caller waits for the first.
cache_fill() {
    local entry=$1 lock partial
    shift
    mkdir -p "$CACHE_ROOT"
    exec {lock}>"$entry.lock"
    flock "$lock"
    if [[ ! -d $entry ]]; then
        partial=$entry.partial
        rm -rf "$partial"
        mkdir "$partial"
        "$@" "$partial"
        mv -T "$partial" "$entry"
    fi
    exec {lock}>&-
}
