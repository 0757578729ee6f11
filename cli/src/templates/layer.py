"""Reads a layer of an image, a tar archive of any make, and writes it as mkfs.erofs 1.8 takes it: that one neither ends with an
archive which is cut off nor minds headers that it cannot read, and what is after them is then missing."""

import sys
import tarfile

known = {""}


def folder(path):
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    return entry


with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as old, \
        tarfile.open(sys.argv[1], "w", format=tarfile.PAX_FORMAT) as new:
    for entry in old:
        parts = [part for part in entry.name.split("/") if part not in ("", ".", "..")]
        for end in range(1, len(parts)):
            parent = "/".join(parts[:end])
            if parent not in known:
                known.add(parent)
                new.addfile(folder(parent))
        entry.name = "/".join(parts) or "."
        if entry.isdir():
            known.add(entry.name)
        content = old.extractfile(entry) if entry.isreg() else None
        if entry.isreg():
            entry.type, entry.sparse = tarfile.REGTYPE, None
        entry.pax_headers = {key: value for key, value in entry.pax_headers.items() if key.startswith("SCHILY.xattr.")}
        new.addfile(entry, content)
