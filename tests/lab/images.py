"""What a run adds to the lab: the installed prefix as a disk, and an archive with its scripts, its command and its files.

Owns both formats. Disks are padded to whole huge pages, as QEMU maps them.
"""

import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

import channel

ALIGN = 2 << 20
# Room for the file system's own tables, which grow with what it holds.
EXT4_SPARE = 32 << 20
TESTER = 1234
HOME = "/home/tester"
# Prefixes change with every build of the project; an image that nobody used for this long goes.
KEEP_SECONDS = 2 * 3600
RECIPE = b"2"
# Fixed, so that a build of the same prefix gives the same directory order.
IMAGE_UUID = "c04ac1e0-0000-4000-8000-00000000001c"


def cache_root():
    default = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CORACLE_CACHE") or Path(default) / "coracle")


def aligned(size):
    return -(-size // ALIGN) * ALIGN


def fingerprint(prefix):
    """Names, sizes and times of all files: contents would take longer to read than all the rest of a run's start."""
    digest = hashlib.sha256(RECIPE)
    for folder, folders, files in os.walk(prefix, followlinks=True):
        folders.sort()
        for name in sorted(files):
            path = Path(folder, name)
            facts = path.stat()
            digest.update(f"{path.relative_to(prefix)}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_mode}\n".encode())
    return digest.hexdigest()[:16]


def make_ext4(folder, image):
    used = sum(entry.stat().st_blocks * 512 for entry in folder.rglob("*"))
    tools = {"check": True, "stdout": subprocess.DEVNULL, "env": {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}}
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal,^resize_inode",
                    "-U", IMAGE_UUID, "-E", f"hash_seed={IMAGE_UUID}", "-d", folder, image,
                    f"{aligned(used + used // 20 + EXT4_SPARE) >> 10}k"], **tools)
    # A user's prefix has none, and who lists it as an ordinary user would see an error.
    subprocess.run(["debugfs", "-w", "-R", "rmdir lost+found", image], stderr=subprocess.DEVNULL, **tools)


def prefix(path):
    """The prefix as a cached ext4 image, which keeps the sparse disks in it sparse; EROFS could not."""
    root = cache_root()
    image = root / f"lab-prefix-{fingerprint(path)}"
    if image.exists():
        os.utime(image)
        return image
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tmp.", dir=root) as work:
        # A copy, as links in the prefix lead out of it.
        staged = Path(work, "prefix")
        subprocess.run(["cp", "-rL", "--preserve=mode,timestamps", "--sparse=always", path, staged], check=True)
        made = Path(work, "image")
        make_ext4(staged, made)
        made.rename(image)
    for old in root.glob("lab-prefix-*"):
        if old.stat().st_mtime < time.time() - KEEP_SECONDS:
            old.unlink()
    return image


def add_text(tar, name, text, mode=0o644):
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(text), mode
    tar.addfile(entry, io.BytesIO(text))


def give_to_tester(entry):
    entry.uid = entry.gid = TESTER
    entry.uname = entry.gname = ""
    return entry


def add_put(tar, host, lab):
    """A file or folder with the tester as its owner, and the folders above it too where they are in his home."""
    for parent in reversed(Path(lab).parents):
        if str(parent).startswith(HOME + "/"):
            entry = tarfile.TarInfo(str(parent).lstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(give_to_tester(entry))
    tar.add(host.resolve(), arcname=lab.lstrip("/"), filter=give_to_tester)


def archive(path, here, args):
    """init must come first: the userland's stub takes the first member. argv is NUL-separated, as in /proc."""
    settings = {"virtual": args.virtual_time, "root": args.root, "tty": args.tty}
    lines = [f"{name}={'yes' if value else 'no'}" for name, value in settings.items()]
    lines += [f"end={channel.END_MARK}", f"term={os.environ.get('TERM', 'dumb') if args.tty else 'dumb'}"]
    if args.tty:
        size = channel.window_size()
        lines += [f"rows={size.lines}", f"columns={size.columns}"]
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        add_text(tar, "lab/init", (here / "init").read_bytes())
        add_text(tar, "lab/session", (here / "session").read_bytes())
        add_text(tar, "lab/settings", "\n".join(lines).encode() + b"\n")
        add_text(tar, "lab/argv", b"".join(os.fsencode(arg) + b"\0" for arg in args.command))
        for host, lab in args.put:
            add_put(tar, host, lab)
    os.truncate(path, aligned(path.stat().st_size))
    return path
