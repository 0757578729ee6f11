//! Does what a plan says: the only file that mounts.
//! It owns how each step is made with few system calls when nothing is missing, which is the case at all but the first
//! start of a sandbox. It decides nothing.

use std::ffi::CString;

use anyhow::{Context, Result, ensure};
use protocol::Mount;
use rustix::fd::OwnedFd;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::plan::{DISK, Step};

/// What is missing above a mount point is made as the agent's where it is the agent's place.
const AGENT_HOME: &[u8] = b"/home/agent/";
/// uid and gid of the user `agent` in every template.
const AGENT: u32 = 1000;
/// Where a single file's share is mounted for a moment.
const HIDDEN: &[u8] = b"/run/.share";

const FOLDER: Mode = Mode::from_raw_mode(0o755);
const FILE: Mode = Mode::from_raw_mode(0o644);

/// Does all steps. Returns the disk's root folder, which is out of sight afterwards.
pub fn apply_all(steps: &[Step]) -> Result<OwnedFd> {
    let mut disk = None;
    for step in steps {
        match step {
            Step::OpenDisk => {
                disk = Some(
                    rustix::fs::open(DISK, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                        .context(DISK)?,
                );
            }
            _ => apply(step)?,
        }
    }
    disk.context("the plan does not open the disk")
}

fn apply(step: &Step) -> Result<()> {
    match step {
        Step::Mount { kind, source, target, flags, options } => {
            mount(kind, source, target.as_bytes(), *flags, options)
                .with_context(|| format!("mount {source} ({kind}) on {target}"))
        }
        Step::Seed { path, text } => seed(path, text).with_context(|| format!("write {path}")),
        // It costs the guest its names at most, and no start.
        Step::Keep { path, text } => {
            if let Err(error) = keep(path, text) {
                crate::log(format_args!("write {path}: {error:#}"));
            }
            Ok(())
        }
        Step::Move { from, to } => made_if_missing(to.as_bytes(), || rustix::mount::mount_move(*from, *to))
            .with_context(|| format!("move {from} to {to}")),
        Step::Link { path, to } => {
            rustix::fs::symlink(*to, *path).with_context(|| format!("link {path} to {to}"))
        }
        Step::SwitchRoot { path } => switch_root(path).with_context(|| format!("make {path} the root")),
        Step::Share(share) => share_at(share)
            .with_context(|| format!("mount share {} on \"{}\"", share.tag, share.path.escape_ascii())),
        Step::OpenDisk => Ok(()),
    }
}

fn mount(kind: &str, source: &str, target: &[u8], flags: MountFlags, options: &str) -> Result<()> {
    let options = (!options.is_empty()).then(|| CString::new(options)).transpose()?;
    made_if_missing(target, || rustix::mount::mount(source, target, kind, flags, options.as_deref()))
}

/// An image need not have the folders that something is mounted on.
fn made_if_missing(folder: &[u8], attempt: impl Fn() -> rustix::io::Result<()>) -> Result<()> {
    match attempt() {
        Err(Errno::NOENT) => {
            make_folders(folder)?;
            Ok(attempt()?)
        }
        other => Ok(other?),
    }
}

/// Has a file say what it should, whatever has become of it.
fn keep(path: &str, text: &str) -> Result<()> {
    // A FIFO would block us, and what is deleted below an overlay is a device that is none.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, FILE) {
        Err(Errno::NOENT) => {}
        Ok(file) if says(&file, text) => return Ok(()),
        _ => rustix::fs::unlink(path)?,
    }
    seed(path, text)
}

fn says(file: &OwnedFd, text: &str) -> bool {
    let mut found = [0; 256];
    rustix::io::read(file, &mut found).is_ok_and(|count| &found[..count] == text.as_bytes())
}

fn seed(path: &str, text: &str) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let attempt = || rustix::fs::open(path, flags, FILE);
    let file = match attempt() {
        Err(Errno::EXIST) => return Ok(()),
        Err(Errno::NOENT) => {
            make_folders(parent(path.as_bytes()))?;
            attempt()?
        }
        other => other?,
    };
    let written = rustix::io::write(&file, text.as_bytes())?;
    ensure!(written == text.len(), "the disk is full");
    Ok(())
}

/// As switch_root(8) does it: an initramfs cannot be pivoted away from. It stays below, empty but for this program.
fn switch_root(path: &str) -> Result<()> {
    rustix::process::chdir(path)?;
    rustix::mount::mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    Ok(())
}

fn share_at(share: &Mount) -> Result<()> {
    let read_only = if share.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    let flags = MountFlags::NOSUID | MountFlags::NODEV | read_only;
    let Some(name) = &share.file else {
        return mount("virtiofs", &share.tag, &share.path, flags, "");
    };
    mount("virtiofs", &share.tag, HIDDEN, flags, "")?;
    let file = [HIDDEN, b"/", name].concat();
    let attempt = || rustix::mount::mount_bind(file.as_slice(), share.path.as_slice());
    match attempt() {
        Err(Errno::NOENT) => {
            make_folders(parent(&share.path))?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            drop(rustix::fs::open(share.path.as_slice(), flags, FILE)?);
            attempt()?;
        }
        other => other?,
    }
    // The bind keeps the share alive, and its being read-only with it.
    Ok(rustix::mount::unmount(HIDDEN, UnmountFlags::DETACH)?)
}

/// `mkdir -p`.
fn make_folders(path: &[u8]) -> Result<()> {
    let ends = path.iter().enumerate().skip(1).filter(|&(_, &b)| b == b'/').map(|(at, _)| at);
    for end in ends.chain([path.len()]) {
        let folder = &path[..end];
        match rustix::fs::mkdir(folder, FOLDER) {
            Ok(()) if folder.starts_with(AGENT_HOME) => {
                rustix::fs::chown(folder, Some(Uid::from_raw(AGENT)), Some(Gid::from_raw(AGENT)))?;
            }
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => {
                return Err(errno).with_context(|| format!("make folder \"{}\"", folder.escape_ascii()));
            }
        }
    }
    Ok(())
}

fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at @ 1..) => &path[..at],
        _ => b"/",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_parent_is_what_is_before_the_last_slash() {
        for (path, expected) in [("/a/b", "/a"), ("/a", "/"), ("/", "/"), ("/a/b/c", "/a/b")] {
            assert_eq!(parent(path.as_bytes()), expected.as_bytes());
        }
    }

    #[test]
    fn missing_folders_are_made_and_others_left() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a/b\nc/d");
        make_folders(path.as_os_str().as_bytes()).unwrap();
        make_folders(path.as_os_str().as_bytes()).unwrap();
        assert!(path.is_dir());
        std::fs::write(path.join("file"), "").unwrap();
        make_folders(path.join("file/x").as_os_str().as_bytes()).unwrap_err();
    }

    #[test]
    fn what_is_kept_is_right_whatever_it_was() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("etc/resolv.conf");
        let right = || {
            keep(path.to_str().unwrap(), "nameserver").unwrap();
            assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
            assert_eq!(std::fs::read(&path).unwrap(), b"nameserver");
        };
        right();
        right();
        for other in ["", "nameserver2", "name"] {
            std::fs::write(&path, other).unwrap();
            right();
        }
        for target in ["/nonexistent", "/etc/passwd"] {
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(target, &path).unwrap();
            right();
        }
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, FILE).unwrap();
        right();
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        keep(path.to_str().unwrap(), "nameserver").unwrap_err();
    }

    #[test]
    fn a_seed_is_written_once() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("etc/hosts");
        seed(path.to_str().unwrap(), "first").unwrap();
        seed(path.to_str().unwrap(), "second").unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"first");
    }
}
