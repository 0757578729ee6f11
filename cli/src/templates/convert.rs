//! From files that nobody vouches for to a layer: an EROFS image, made in a microVM that is gone afterwards.
//! The VM is a sandbox as `coracle run --rm` makes it, with an empty read-only workspace: what goes in is its standard input, and
//! what comes out its standard output. Nothing is unpacked on the host.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Layer;
use super::store::Shelf;
use crate::agents::BASE;
use crate::digest::Hasher;
use crate::disk::Room;
use crate::places;
use crate::text::plain;

/// What the script in the VM may take, and what its image may hold. A hostile layer can keep either busy for ever.
const TIME_MAX_S: i64 = 3600;
const SIZE_MAX: u64 = 20 << 30;
/// How often it is looked whether the host's disk gets full, in bytes.
const LOOK_EACH: u64 = 16 << 20;
/// Of what the VM says when it fails.
const MESSAGE_MAX: u64 = 4 << 10;
const PIECE: usize = 256 << 10;
/// All of them get one time as their making: what goes in decides what comes out, to the bit.
const MKFS: &str = "mkfs.erofs --quiet -T1735689600 --mkfs-time --preserve-mtime -Uc04ac1e0-0000-4000-8000-000000000003 -Enoinline_data";

const EMPTY: &str = "empty";

/// Puts the program there that reads archives.
const PREPARE: &str = concat!("cat >layer.py <<'END'\n", include_str!("layer.py"), "END\n:");

/// A layer of an image, as a tar archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packed {
    Plain,
    Gzip,
    Zstd,
}

impl Packed {
    fn unpack(self) -> &'static str {
        match self {
            Self::Plain => "cat",
            Self::Gzip => "gzip -dc",
            Self::Zstd => "zstd -dc",
        }
    }
}

/// An image's layer as one of ours, its whiteouts as the overlay has them.
pub fn tar(shelf: &Shelf, archive: &Path, packed: Packed) -> Result<Layer> {
    let script = format!("{}; {}", PREPARE, pack(packed, "", "\"$image\""));
    convert(shelf, &script, |input| {
        let mut file = File::open(archive).with_context(|| format!("open {}", plain(archive)))?;
        io::copy(&mut file, input).context("send the layer")?;
        Ok(())
    })
}

/// From an archive, the input or `<FILE`, to an image.
fn pack(packed: Packed, from: &str, image: &str) -> String {
    format!(
        "{} {from} | python3 layer.py layer.tar; {MKFS} --tar=f --aufs {image} layer.tar >&2",
        packed.unpack()
    )
}

/// All of an image's layers, the lowest first, as one.
pub fn merged(shelf: &Shelf, archives: &[(&Path, Packed)]) -> Result<Layer> {
    let mut script = format!("{PREPARE}; tar -x; ");
    for (number, (_, packed)) in archives.iter().enumerate() {
        script += &format!(
            "{}; rm {number}; mkdir {number}; sudo mount -o ro,loop {number}.erofs {number}; ",
            pack(*packed, &format!("<{number}"), &format!("{number}.erofs"))
        );
    }
    let lower: Vec<_> = (0..archives.len()).rev().map(|number| number.to_string()).collect();
    script += &format!(
        "mkdir root; sudo mount -t overlay -o ro,lowerdir={} overlay root; sudo {MKFS} \"$image\" root >&2; sudo chmod 644 \"$image\"",
        lower.join(":")
    );
    convert(shelf, &script, |input| {
        let mut tar = tar::Builder::new(input);
        for (number, (path, _)) in archives.iter().enumerate() {
            tar.append_path_with_name(path, number.to_string()).context("send the layers")?;
        }
        tar.finish().context("send the layers")
    })
}

/// A layer of what `script` leaves in the folder `root` of what `input` sends as a tar archive. All files are root's, but for the
/// agent's home.
pub fn folder(
    shelf: &Shelf,
    script: &str,
    input: impl FnOnce(&mut ChildStdin) -> Result<()> + Send,
) -> Result<Layer> {
    let script = format!(
        "sudo tar -x --no-same-owner; sudo sh -eu -c '{script}'; \
         sudo chown -R 0:0 root; if [ -d root/home/agent ]; then sudo chown -R 1000:1000 root/home/agent; fi; \
         sudo {MKFS} \"$image\" root >&2; sudo chmod 644 \"$image\""
    );
    convert(shelf, &script, input)
}

/// A layer of what a stopped sandbox has changed in its root: its disk's upper layer, without what is made at each start.
pub fn upper(shelf: &Shelf, disk: &Path) -> Result<Layer> {
    let workspace = Workspace::new(shelf)?;
    let shown = workspace.0.join("disk.img");
    fs::hard_link(disk, &shown).context("link the sandbox's disk")?;
    let mut share = shown.clone().into_os_string();
    share.push(":ro");
    let script = format!(
        "mkdir disk; sudo mount -o ro,loop '{}' disk || {{ echo 'it did not stop cleanly; start it and stop it' >&2; exit 1; }}; \
         sudo {MKFS} --exclude-path=etc/hostname --exclude-path=etc/hosts --exclude-regex='^(tmp|run)/' \
         \"$image\" disk/upper >&2; sudo chmod 644 \"$image\"",
        shown.display()
    );
    convert_in(&workspace, shelf, &script, Some(&share), |_| Ok(()))
}

fn convert(
    shelf: &Shelf,
    script: &str,
    input: impl FnOnce(&mut ChildStdin) -> Result<()> + Send,
) -> Result<Layer> {
    convert_in(&Workspace::new(shelf)?, shelf, script, None, input)
}

fn convert_in(
    workspace: &Workspace,
    shelf: &Shelf,
    script: &str,
    share: Option<&OsStr>,
    input: impl FnOnce(&mut ChildStdin) -> Result<()> + Send,
) -> Result<Layer> {
    let script =
        format!("set -euo pipefail; cd \"$(mktemp -d)\"; image=$PWD/image; {script}; cat \"$image\"");
    let mut child = start(&workspace.0.join(EMPTY), share, &script)?;
    let mut draft = shelf.new_layer()?;
    let mut stdin = child.stdin.take().context("the VM's input")?;
    let stdout = child.stdout.take().context("the VM's output")?;
    let stderr = child.stderr.take().context("the VM's messages")?;
    let (layer, sent, said) = thread::scope(|scope| {
        let sender = scope.spawn(move || input(&mut stdin));
        let listener = scope.spawn(move || said(stderr));
        let watch = scope.spawn(move || watch(child));
        let layer = receive(stdout, &mut draft.file);
        let ended = watch.join().expect("it does not panic");
        let sent = sender.join().expect("it does not panic");
        (layer.and_then(|layer| ended.map(|()| layer)), sent, listener.join().expect("it does not panic"))
    });
    match layer {
        Ok(layer) => {
            sent?;
            shelf.keep(&draft, layer)
        }
        // A sender whose receiver has died knows less than the receiver.
        Err(error) if said.is_empty() => Err(error),
        Err(error) => Err(error.context(said)),
    }
}

fn start(workspace: &Path, share: Option<&OsStr>, script: &str) -> Result<Child> {
    let mut folder = workspace.as_os_str().to_owned();
    folder.push(":ro");
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("coracle")
        .args(["run", "--rm", "-m", "1g", "--disk", "64g", BASE])
        .arg(folder)
        .args(share)
        .args(["--", "bash", "-c"])
        .arg(OsStr::new(script))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().context("start the VM that unpacks")
}

/// Waits for the VM's end, whatever it has closed by then, and brings it about when it is late.
fn watch(mut child: Child) -> Result<()> {
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).context("watch the VM")?;
    let deadline = Timespec { tv_sec: TIME_MAX_S, tv_nsec: 0 };
    let mut ended = [PollFd::new(&process, PollFlags::IN)];
    if retry_on_intr(|| poll(&mut ended, Some(&deadline))) == Ok(0) {
        let _ = pidfd_send_signal(&process, Signal::TERM);
        let _ = child.wait();
        bail!("unpacking took more than {} minutes", TIME_MAX_S / 60);
    }
    let status = child.wait().context("wait for the VM that unpacks")?;
    ensure!(status.success(), "it cannot be unpacked");
    Ok(())
}

fn receive(mut output: impl Read, file: &mut File) -> Result<Layer> {
    let mut hasher = Hasher::sha256();
    let mut size = 0;
    let mut piece = vec![0; PIECE];
    loop {
        let count = output.read(&mut piece).context("read from the VM that unpacks")?;
        if count == 0 {
            return Ok(Layer { sha256: hasher.finish().hex().to_owned(), size });
        }
        if size / LOOK_EACH != (size + count as u64) / LOOK_EACH || size == 0 {
            let has_room = Room::of(&*file).is_ok_and(|room| room.has_one_more());
            ensure!(
                has_room,
                "the disk is nearly full; make room, or set XDG_DATA_HOME to a larger file system"
            );
        }
        size += count as u64;
        ensure!(size <= SIZE_MAX, "what is in it takes more than {} GiB", SIZE_MAX >> 30);
        hasher.update(&piece[..count]);
        file.write_all(&piece[..count]).context("write the layer")?;
    }
}

/// The last line of what was said, harmless to a terminal; the rest is read so that nobody waits to write it.
fn said(mut stderr: impl Read) -> String {
    let mut text = Vec::new();
    let _ = stderr.by_ref().take(MESSAGE_MAX).read_to_end(&mut text);
    let _ = io::copy(&mut stderr, &mut io::sink());
    let text = String::from_utf8_lossy(&text);
    plain(text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default())
}

/// An empty folder, since a sandbox has one, beside the folder of the sandboxes: no sandbox may see that one, and a disk can be
/// linked into this one. Only who has the right to change templates makes it, so what is there was left by one that was killed.
struct Workspace(PathBuf);

impl Workspace {
    fn new(_right: &Shelf) -> Result<Self> {
        let path = places::state()?.with_file_name("coracle-builder");
        let _ = fs::remove_dir_all(&path);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path.join(EMPTY));
        made.with_context(|| {
            format!("create {}; set XDG_STATE_HOME to a folder that you may write to", plain(&path))
        })?;
        Ok(Self(path))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
