//! The host folders that a sandbox sees: what may be one, and what is refused because it would break the sandbox or
//! hand over the host. All checks read only. It does not open them for the VM; `machine` does, at each start.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use serde::{Deserialize, Serialize};
use vmm::virtio::fs::Patterns;

use crate::places;
use crate::text::{self, quoted};

/// Linux, limits.h, PATH_MAX: with the final NUL.
const PATH_MAX: usize = 4096;
/// Folders that are the sandbox's own: the host's in their place would break it, and what is below them is the host's too.
const CLOSED_TREES: [&str; 5] = ["/proc", "/sys", "/dev", "/etc", "/boot"];
/// Folders that are the sandbox's own, but may hold a workspace further down.
const CLOSED: [&str; 19] = [
    "/",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/usr",
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib",
    "/usr/local",
    "/usr/share",
    "/var",
    "/var/lib",
    "/run",
    "/tmp",
    "/home",
    "/run/user",
];

/// A folder or file of the host, as it is stored with the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workspace {
    /// Absolute, without symbolic links; the sandbox sees it at the same place.
    #[serde(with = "path_text")]
    pub path: PathBuf,
    pub read_only: bool,
    /// It is a single file.
    pub file: bool,
    /// It is a Git repository without its files, read-only but for what these linked worktrees of it need (in the text
    /// form).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub worktrees: Vec<String>,
}

impl Workspace {
    /// As it would be typed, harmless to a terminal.
    pub fn show(&self) -> String {
        let suffix = if self.read_only { ":ro" } else { "" };
        format!("{}{suffix}", text::plain(&self.path))
    }
}

/// The workspaces that were typed, checked one by one and against each other. `private` are Coracle's own folders.
pub fn resolve(typed: &[&OsStr], max: usize, private: &[PathBuf]) -> Result<Vec<Workspace>> {
    ensure!(
        typed.len() <= max,
        "{} workspaces are too many; at most {max} can be shown to a sandbox",
        typed.len()
    );
    let mut workspaces: Vec<Workspace> = Vec::with_capacity(typed.len());
    for (index, typed) in typed.iter().enumerate() {
        let workspace = resolve_one(typed, index == 0, private)
            .with_context(|| format!("workspace {}", quoted(typed)))?;
        for other in &workspaces {
            check_pair(other, &workspace)?;
        }
        workspaces.push(workspace);
    }
    Ok(workspaces)
}

fn resolve_one(typed: &OsStr, primary: bool, private: &[PathBuf]) -> Result<Workspace> {
    let (path, read_only) = split_mode(typed);
    ensure!(!path.is_empty(), "is empty; name a folder");
    ensure!(path.len() < PATH_MAX, "is {} bytes long; Linux allows {}", path.len(), PATH_MAX - 1);
    let path = fs::canonicalize(path).map_err(|error| explain(&error, path))?;
    ensure!(path.as_os_str().len() < PATH_MAX, "is longer than {} bytes", PATH_MAX - 1);
    let kind = fs::metadata(&path).context("cannot be looked at")?.file_type();
    ensure!(kind.is_dir() || kind.is_file(), "is neither a folder nor a file");
    ensure!(
        kind.is_dir() || !primary,
        "is a file; the first workspace must be a folder (files may follow it)"
    );
    check_place(&path, private)?;
    for keys in places::keys()? {
        let keys = fs::canonicalize(&keys).unwrap_or(keys);
        ensure!(
            !path.starts_with(&keys),
            "holds your keys, which a sandbox must not have; name a project's folder"
        );
    }
    let access = if kind.is_dir() { Access::READ_OK | Access::EXEC_OK } else { Access::READ_OK };
    accessat(CWD, &path, access, AtFlags::empty())
        .map_err(|_| anyhow::anyhow!("you may not read it; change its permissions or take another"))?;
    Ok(Workspace { path, read_only, file: kind.is_file(), worktrees: Vec::new() })
}

/// `PATH:ro` and `PATH:rw`; a path that itself ends so is written with a slash behind it.
fn split_mode(typed: &OsStr) -> (&OsStr, bool) {
    let bytes = typed.as_bytes();
    match bytes.strip_suffix(b":ro") {
        Some(path) => (OsStr::from_bytes(path), true),
        None => (OsStr::from_bytes(bytes.strip_suffix(b":rw").unwrap_or(bytes)), false),
    }
}

fn explain(error: &std::io::Error, path: &OsStr) -> anyhow::Error {
    use std::io::ErrorKind;
    let why = match error.kind() {
        ErrorKind::NotFound if path == "." => "the current folder no longer exists; cd to one that does",
        ErrorKind::NotFound => "does not exist; create it with mkdir -p, or correct the path",
        ErrorKind::NotADirectory => "goes through a file; correct the path",
        ErrorKind::PermissionDenied => "cannot be reached: permission denied on the way to it",
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            "goes round in circles: too many symbolic links"
        }
        _ => return anyhow::anyhow!("cannot be found: {error}"),
    };
    anyhow::anyhow!(why)
}

/// What belongs to the system or to Coracle is not for a sandbox.
pub fn check_place(path: &Path, private: &[PathBuf]) -> Result<()> {
    let closed = CLOSED.iter().any(|closed| path == Path::new(closed))
        || CLOSED_TREES.iter().any(|closed| path.starts_with(closed));
    ensure!(
        !closed,
        "{} belongs to the system, and the sandbox has its own; name a project's folder",
        text::plain(path)
    );
    for private in private {
        let private = fs::canonicalize(private).unwrap_or_else(|_| private.clone());
        let holds = private.starts_with(path) || path.starts_with(&private);
        ensure!(
            !holds,
            "holds Coracle's own files ({}), which a sandbox must not reach; name a project's folder",
            text::plain(&private)
        );
    }
    Ok(())
}

/// Two workspaces that contradict each other.
fn check_pair(one: &Workspace, other: &Workspace) -> Result<()> {
    if one.path == other.path {
        bail!("workspace {} is given twice; keep one", quoted(&one.path));
    }
    let (outer, inner) = match (one.path.starts_with(&other.path), other.path.starts_with(&one.path)) {
        (true, _) => (other, one),
        (_, true) => (one, other),
        _ => return Ok(()),
    };
    // Whoever can write in the outer one can write in the inner one by way of it, whatever the guest has mounted there.
    ensure!(
        !inner.read_only || outer.read_only,
        "workspace {} cannot be read-only: it is inside {}, which is writable",
        quoted(&inner.path),
        quoted(&outer.path)
    );
    Ok(())
}

/// What is hidden in one workspace must not be shown by another that is inside of it.
pub fn check_shown(workspaces: &[Workspace], hide: &Patterns) -> Result<()> {
    for outer in workspaces {
        for inner in workspaces.iter().filter(|inner| inner.path != outer.path) {
            let Ok(path) = inner.path.strip_prefix(&outer.path) else { continue };
            let names: Vec<&[u8]> = path.iter().map(OsStr::as_bytes).collect();
            let way = |length: usize| names[..length].iter().rev().copied();
            let hidden = (1..=names.len()).any(|length| hide.matches(&way(length)));
            ensure!(
                !hidden && !hide.lead_through(&way(names.len())),
                "workspace {} shows what --hide hides in {}; leave out one of the two",
                quoted(&inner.path),
                quoted(&outer.path)
            );
        }
    }
    Ok(())
}

/// A path in JSON: text where it is text, and any other bytes in a form that comes back as they were.
mod path_text {
    use super::{PathBuf, text};
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(path: &std::path::Path, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text::encode(path.as_os_str()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Ok(PathBuf::from(text::decode(&String::deserialize(deserializer)?)))
    }
}

#[cfg(test)]
mod tests;
