#!/usr/bin/env bash
# Builds the lab host's userland: a small Debian as an EROFS image. Prints the image's path.
#
# Owns which programs the tests find in the lab, and the ordinary user they run as. Does not own what a run adds to it (our
# own artefacts, the command: that is `run`). Works as root and, by user namespaces, as anybody.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=rootfs/cache.sh
source "$here/../../rootfs/cache.sh"

readonly SUITE=bookworm
readonly PACKAGES=attr,e2fsprogs,fuse3,git,iproute2,less,make,openssh-server,passt,procps,python3,slirp4netns,strace,time
# Not 1000, which is the user's id in the sandbox: the mapping between the two must be seen to work.
readonly TESTER_ID=1234
# QEMU maps the image as memory, which it wants in whole huge pages.
readonly ALIGN=2M

# Runs in the new root. /lab/init fetches the run's own init, which is the first member of the archive on the third disk, so
# that a change of it does not need a new userland.
# shellcheck disable=SC2016  # the text is the new root's shell's
SETUP='set -eu
    id=$0
    groupadd --system kvm
    useradd --uid "$id" --user-group --groups kvm --home-dir /home/tester --create-home --shell /bin/bash tester
    printf "127.0.0.1\tlocalhost lab\n::1\tlocalhost\n" >/etc/hosts
    echo lab >/etc/hostname
    rm -f /etc/resolv.conf
    mkdir -p /lab/rw /lab/root
    printf "%s\n" "#!/bin/sh" "exec bash -c \"\$(tar -xO --occurrence=1 -f /dev/pmem2 lab/init)\"" >/lab/init
    chmod 0755 /lab/init
    python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3*
    rm -rf /var/cache/apt/* /var/lib/apt/lists/* /var/log/* /usr/share/doc/* /usr/share/man/* /usr/share/locale/*'

# In the hook $1 is the new root, seen from outside, with /dev, /proc and /sys mounted.
# shellcheck disable=SC2016
PACK='mkfs.erofs --quiet -x-1 -T0 -Uc04ac1e0-0000-4000-8000-00000000001b --exclude-regex="^(dev|proc|sys|tmp)/" --exclude-path=userland.erofs \
    "$1/userland.erofs" "$1" >&2'

build() {
    say "lab userland: Debian $SUITE with ${PACKAGES//,/ } (about 100 MB of download, 1 to 2 minutes) ..."
    # shellcheck disable=SC2016
    SETUP=$SETUP PATH=$PATH:/usr/sbin:/sbin TMPDIR=/tmp mmdebstrap --quiet --variant=minbase --format=null \
        --include="$PACKAGES" --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --customize-hook="chroot \"\$1\" sh -c \"\$SETUP\" $TESTER_ID" --customize-hook="$PACK" \
        --customize-hook="download /userland.erofs '$1/userland.erofs'" "$SUITE" /dev/null >&2
    truncate --size="%$ALIGN" "$1/userland.erofs"
}

entry=$(cache_entry lab-userland "$0")
cache_fill "$entry" build
echo "$entry/userland.erofs"
