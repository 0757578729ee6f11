#!/usr/bin/env bash
# Assembles the tree that a user installs: the programs, the guest kernel, the initramfs, the disks, the templates.
#
#   rootfs/prefix.sh PROGRAMS PREFIX     PROGRAMS: the directory where cargo left `coracle` and `init`
#
# Owns the layout of an installation. A file that is right already stays as it is, time and all, so that what is made from
# the tree need not be made again. The big parts are built when they are not in the cache; Rust is not built here.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=rootfs/cache.sh
source "$here/cache.sh"

TEMPLATES=(shell)

[[ $# == 2 && -x $1/coracle && -x $1/init ]] ||
    die "usage: rootfs/prefix.sh PROGRAMS PREFIX, after 'cargo build --release' has made PROGRAMS/coracle and PROGRAMS/init"
programs=$1 prefix=$2 share=$2/share/coracle

# Puts a finished file there in one step: whoever has the old one open or mapped keeps it.
replace() {
    if cmp --silent "$1" "$2"; then rm "$1"; else mv "$1" "$2"; fi
}

copy() {
    mkdir -p "$(dirname "$2")"
    cp --preserve=mode,timestamps "$1" "$2.new"
    replace "$2.new" "$2"
}

# The cache's entries never change, so the same file in two places is as good as a copy, and costs nothing.
link() {
    mkdir -p "$(dirname "$2")"
    if [[ $1 -ef $2 ]]; then return; fi
    ln -f "$1" "$2.new" 2>/dev/null || cp --sparse=always --reflink=auto --preserve=mode,timestamps "$1" "$2.new"
    mv "$2.new" "$2"
}

# The name of a template's layer is its hash, which the build has computed.
layer_hash() {
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["layers"][0]["sha256"])' "$1/template.json"
}

copy "$programs/coracle" "$prefix/bin/coracle"

mkdir -p "$share"
"$here/initramfs.sh" "$programs/init" "$share/initramfs.cpio.new"
replace "$share/initramfs.cpio.new" "$share/initramfs.cpio"

kernel=$("$here/../kernel-config/build.sh" guest)
link "$kernel" "$share/vmlinux"

disks=$("$here/disks.sh")
for disk in "$disks"/*.ext4; do link "$disk" "$share/${disk##*/}"; done

# Layers that an older build has left are nobody's.
layers=()
for name in "${TEMPLATES[@]}"; do
    template=$("$here/build.sh" "$name")
    link "$template/template.json" "$share/templates/$name/template.json"
    link "$template/packages.txt" "$share/templates/$name/packages.txt"
    layers+=("$(layer_hash "$template").erofs")
    link "$template/rootfs.erofs" "$share/layers/${layers[-1]}"
done
for old in "$share"/layers/*; do
    if [[ " ${layers[*]} " != *" ${old##*/} "* ]]; then rm "$old"; fi
done
for agent in "$here"/agents/*.toml; do copy "$agent" "$share/agents/${agent##*/}"; done
