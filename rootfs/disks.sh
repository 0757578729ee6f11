#!/usr/bin/env bash
# Makes the pre-formatted disks that a new sandbox's disk is a copy of: disk-1g.ext4 and disk-20g.ext4, sparse.
#
#   rootfs/disks.sh     prints the directory that holds them
#
# Owns what a sandbox's disk looks like at first: mke2fs.conf, and the overlay's upper/ and work/. Needs no rights. Does not
# grow them: the CLI lengthens the copy, and init lets the mounted file system follow.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=rootfs/cache.sh
source "$here/cache.sh"
PATH=$PATH:/usr/sbin:/sbin

# Disks of all sandboxes are alike, to the bit, so that the reason for a difference is always what the sandbox did.
UUID=c04ac1e0-0000-4000-8000-000000000002
EPOCH=1735689600

# The most a fresh disk may hold: copying it is part of every first start.
MAX_ALLOCATED_KIB=80

check_tools() {
    local tool
    for tool in mke2fs debugfs dumpe2fs e2fsck fallocate; do
        type -P "$tool" >/dev/null || die "$tool is missing; install it with .ci/deps.sh"
    done
}

# Backups of the superblock and of group descriptors serve who repairs a disk by hand; a sandbox's disk is thrown away. They
# are two thirds of the data. With meta_bg, a block describes 64 groups: the first of them has the descriptors that count.
punch_backups() {
    local disk=$1 block
    dumpe2fs "$disk" 2>/dev/null | awk '
        /^Group [0-9]/ { group = $2 + 0 }
        /Backup superblock at/ { print $4 + 0 }
        /Group descriptor at/ && group % 64 != 0 { print $NF }' |
        while read -r block; do
            fallocate --punch-hole --offset $((block * 4096)) --length 4096 "$disk"
        done
}

format() {
    local disk=$1 size=$2 journal_mib=$3 kib
    truncate --size "$size" "$disk.raw"
    MKE2FS_CONFIG=$here/mke2fs.conf mke2fs -q -F -t ext4 -U "$UUID" -J "size=$journal_mib" \
        -E "hash_seed=$UUID,root_owner=0:0" "$disk.raw"
    # lost+found is made anew because mke2fs gives it 16 KiB, and kept because e2fsck asks for it.
    debugfs -w -f - "$disk.raw" <<<$'rmdir lost+found\nmkdir lost+found\nmkdir upper\nmkdir work' >/dev/null 2>&1
    punch_backups "$disk.raw"
    cp --sparse=always "$disk.raw" "$disk"
    rm "$disk.raw"

    # debugfs reports nothing by its exit code.
    debugfs -R 'stat work' "$disk" 2>/dev/null | grep -q 'Type: directory' || die "$disk: debugfs could not make work/"
    e2fsck -fn "$disk" >/dev/null 2>&1 || die "$disk: e2fsck finds errors in it"
    kib=$(du -k "$disk" | cut -f1)
    ((kib <= MAX_ALLOCATED_KIB)) || die "$disk: $kib KiB of data, more than $MAX_ALLOCATED_KIB"
    say "disks: ${disk##*/}, $kib KiB of data"
}

build() {
    export E2FSPROGS_FAKE_TIME=$EPOCH SOURCE_DATE_EPOCH=$EPOCH
    say "disks: formatting (1 second) ..."
    format "$1/disk-1g.ext4" 1G 16
    format "$1/disk-20g.ext4" 20G 64
}

check_tools
entry=$(cache_entry disks "$0" "$here/mke2fs.conf")
cache_fill "$entry" build
echo "$entry"
