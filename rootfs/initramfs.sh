#!/usr/bin/env bash
# Packs a static init into the initramfs that the guest kernel unpacks: an uncompressed newc cpio.
#
#   rootfs/initramfs.sh INIT OUT
#
# Owns what exists before init's first instruction: the mount points, /dev/console, /dev/null. Needs no rights, for the
# device nodes are only written down. The result ends at a 4-byte boundary, so a second cpio can follow it; it
# is not compressed, for copying is cheaper than any decompressor. Does not build init.
set -euo pipefail

[[ $# == 2 && -f $1 ]] || { echo "usage: rootfs/initramfs.sh INIT OUT" >&2; exit 2; }

# Linux Documentation/driver-api/early-userspace/buffer-format.rst, "initramfs buffer format".
python3 - "$1" "$2.partial" <<'PYTHON'
import stat
import sys

source, out = sys.argv[1:]
with open(source, "rb") as f:
    init = f.read()

inode = 0


def entry(name, mode, data=b"", device=(0, 0)):
    """One header, name and body, each padded to 4 bytes. Owner root, time 0: the same init gives the same archive."""
    global inode
    inode += 1
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return b"".join(part + b"\0" * (-len(part) % 4) for part in (head, data))


with open(out, "wb") as f:
    for name in ("dev", "proc", "sys", "run", "mnt"):
        f.write(entry(name, stat.S_IFDIR | 0o755))
    f.write(entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))
    f.write(entry("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)))
    f.write(entry("init", stat.S_IFREG | 0o755, init))
    inode = -1
    f.write(entry("TRAILER!!!", 0))
PYTHON
mv "$2.partial" "$2"
