#!/usr/bin/env bash
# Builds one of our kernels from pinned source: `build.sh guest|lab` prints the path of the vmlinux on stdout.
#
# Owns which source is used and how it is checked, and the packages that a build needs. Does not own the options, which are
# guest.config and lab.config beside this file, or what the guest's kernel has besides Linux, which is in patches/, and does
# not install the result anywhere: it stays in the cache.
#
# The result is a stripped, uncompressed ELF whose segments lie at page-aligned file offsets, so that it can be mapped
# rather than read. Two builds of the same inputs are equal byte for byte.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=rootfs/cache.sh
source "$here/../rootfs/cache.sh"

# The source, as Debian packages it; the tarball inside the package is what is checked.
readonly DEBIAN_PACKAGE=linux-source-6.12
readonly DEBIAN_VERSION='6.12.117-1~deb12u1'
readonly DEBIAN_TARBALL=linux-source-6.12.tar.xz
readonly DEBIAN_SHA256=585a4a074597aefa2b1a68ada83a3184ba351c127544dea80618bbcceaa3961f
# The source where there is no apt, or where it no longer has that version.
readonly UPSTREAM_TARBALL=linux-6.12.64.tar.xz
readonly UPSTREAM_URL=https://cdn.kernel.org/pub/linux/kernel/v6.x/$UPSTREAM_TARBALL
readonly UPSTREAM_SHA256=d1ad94a33681148efe884f4028970d69e332f2b003f0e8be53a1d25de38e49a2

# Raise when a change of this script changes its result.
readonly RECIPE=1
readonly JOBS=${CORACLE_JOBS:-2}
readonly PAGE=4096

# What a build needs, as "command:package". libelf is a header, which no command stands for.
install_toolchain() {
    local pair missing=()
    for pair in gcc:gcc make:make flex:flex bison:bison bc:bc patch:patch xz:xz-utils strip:binutils readelf:binutils; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    [[ -e /usr/include/libelf.h ]] || missing+=(libelf-dev)
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "please install: ${missing[*]}"
    say "kernel: installing ${missing[*]} (apt, about half a minute)"
    local root=()
    ((EUID == 0)) || root=(sudo)
    "${root[@]}" apt-get install -qq -y --no-install-recommends "${missing[@]}" >&2 ||
        die "apt could not install ${missing[*]}; run 'apt-get update' and try again"
}

has_sha256() { [[ -f $1 ]] && [[ $(sha256sum <"$1") == "$2"* ]]; }

# Puts the tarball out of the Debian package at $1. Needs neither root nor room in /usr/src.
download_debian() {
    command -v apt-get >/dev/null || return 1
    local dir
    dir=$(mktemp -d "$CACHE_ROOT/tmp.XXXXXX")
    # The machine's own lists may be older than the pin. Lists of our own need no rights and change nothing for others.
    local lists=(-qq -o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache" -o "APT::Sandbox::User=$(id -un)")
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    say "kernel: downloading $DEBIAN_PACKAGE $DEBIAN_VERSION (apt, 150 MB)"
    if (cd "$dir" && apt-get "${lists[@]}" update >&2 &&
        apt-get "${lists[@]}" download "$DEBIAN_PACKAGE=$DEBIAN_VERSION" >&2) &&
        dpkg-deb --fsys-tarfile "$dir"/*.deb | tar -xO "./usr/src/$DEBIAN_TARBALL" >"$dir/tarball"; then
        mv "$dir/tarball" "$1"
    fi
    rm -rf "$dir"
    [[ -f $1 ]]
}

download_upstream() {
    say "kernel: downloading $UPSTREAM_TARBALL (150 MB)"
    if command -v curl >/dev/null; then
        curl -fsSL -o "$1.part" "$UPSTREAM_URL"
    else
        wget -qO "$1.part" "$UPSTREAM_URL"
    fi && mv "$1.part" "$1"
}

# Prints the path of a checked source tarball, fetching it when there is none.
source_tarball() {
    local path
    for path in "/usr/src/$DEBIAN_TARBALL" "$CACHE_ROOT/$DEBIAN_TARBALL"; do
        has_sha256 "$path" "$DEBIAN_SHA256" && { echo "$path"; return; }
    done
    path=$CACHE_ROOT/$UPSTREAM_TARBALL
    has_sha256 "$path" "$UPSTREAM_SHA256" && { echo "$path"; return; }

    path=$CACHE_ROOT/$DEBIAN_TARBALL
    rm -f "$path"
    if download_debian "$path"; then
        require_sha256 "$path" "$DEBIAN_SHA256"
    else
        path=$CACHE_ROOT/$UPSTREAM_TARBALL
        download_upstream "$path" || die "no source: apt has no $DEBIAN_PACKAGE $DEBIAN_VERSION" \
            "and $UPSTREAM_URL cannot be had"
        require_sha256 "$path" "$UPSTREAM_SHA256"
    fi
    echo "$path"
}

require_sha256() {
    has_sha256 "$1" "$2" && return
    die "$1 is not the pinned source (sha256 $2). Delete it and build again; if it stays so, the download was altered" \
        "or the pin at the top of kernel-config/build.sh needs a new version and hash, checked by hand"
}

# The lab's kernel is Linux as it is.
patches() { if [[ $1 == guest ]]; then printf '%s\n' "$here"/patches/*.patch; fi; }

# The options that count: comments may change without a new build, "# CONFIG_X is not set" may not.
options() { grep -E '^(CONFIG_|# CONFIG_[A-Z0-9_]+ is not set)' "$here/$1.config"; }

inputs() {
    echo "$RECIPE" "$DEBIAN_SHA256" "$UPSTREAM_SHA256"
    gcc --version | head -n 1
    ld --version | head -n 1
    options "$1"
    patches "$1" | xargs --no-run-if-empty cat
}

# Fails with the list of the options that Kconfig did not take as written (a dependency is missing, or the name is gone).
require_options() {
    local line name lost=()
    while read -r line; do
        case $line in
        '#'*) name=${line#\# } && name=${name%% *} && ! grep -q "^$name=" "$2" || lost+=("$line") ;;
        *) grep -qxF "$line" "$2" || lost+=("$line") ;;
        esac
    done < <(options "$1")
    ((${#lost[@]} == 0)) || die "options of $1.config that the kernel's configuration does not have: ${lost[*]}"
}

# A segment can be mapped when its place in the file and in memory agree within a page.
require_mappable() {
    local offset virtual
    while read -r offset virtual; do
        ((offset % PAGE == virtual % PAGE)) || die "segment at file offset $offset is not page-aligned for $virtual"
    done < <(readelf -lW "$1" | awk '$1 == "LOAD" { print $2, $3 }')
}

# Leaves vmlinux and config in the directory $2. Source and objects (3 GB) are gone afterwards.
build() {
    local name=$1 out=$2 tarball work
    tarball=$(source_tarball)
    work=$(mktemp -d "$CACHE_ROOT/tmp.XXXXXX")
    # shellcheck disable=SC2064  # this directory, whatever $work is by then
    trap "rm -rf '$work'" EXIT
    local kernel_make=(make -s -C "$work/source" "O=$work/objects" ARCH=x86_64 LOCALVERSION=
        KBUILD_BUILD_TIMESTAMP='2025-01-01 00:00:00 UTC' KBUILD_BUILD_USER=coracle KBUILD_BUILD_HOST=coracle
        KBUILD_BUILD_VERSION=1)

    say "$name kernel: building from ${tarball##*/} with $JOBS jobs (5 to 15 minutes on two processors) ..."
    mkdir "$work/source" "$work/objects"
    tar -xf "$tarball" -C "$work/source" --strip-components=1
    patches "$name" | xargs --no-run-if-empty cat | patch -s -p1 -d "$work/source" >&2
    options "$name" >"$work/options"
    "${kernel_make[@]}" KCONFIG_ALLCONFIG="$work/options" allnoconfig >&2
    require_options "$name" "$work/objects/.config"
    nice -n 5 "${kernel_make[@]}" -j"$JOBS" vmlinux >&2
    strip -o "$out/vmlinux" "$work/objects/vmlinux"
    require_mappable "$out/vmlinux"
    cp "$work/objects/.config" "$out/config"
    rm -rf "$work"
    say "$name kernel: built in $((SECONDS / 60)) min $((SECONDS % 60)) s"
}

name=${1:-}
[[ $# == 1 && -f $here/$name.config ]] || die 'usage: kernel-config/build.sh guest|lab'
install_toolchain
entry=$(cache_entry "kernel-$name" <(inputs "$name"))
cache_fill "$entry" build "$name"
echo "$entry/vmlinux"
