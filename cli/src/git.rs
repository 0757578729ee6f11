//! Linked worktrees of Git: what of the main repository a sandbox on one has to see, and may change.
//! A worktree's `.git` is a file which the sandbox can write, so that what it says is not believed: the main
//! repository is shown when it says the same of the worktree. It is looked at once, when a sandbox is created. All
//! checks read only, and no program is run.
//! Source: Git 2.47, Documentation/gitrepository-layout.txt, "commondir" and "worktrees".

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, Mode, OFlags, openat};
use vmm::config::Rules;

use crate::text::{decode, encode, plain};
use crate::workspace::{Workspace, check_place};

/// The longest path in one of Git's files, with what is around it.
const FILE_MAX: u64 = 4096 + 16;
/// The most worktrees of one repository in a sandbox.
pub const WORKTREES_MAX: usize = 8;

/// What Git writes in the repository for any worktree. Not among it: `config` and `hooks`, with which it runs
/// programs, and `HEAD` and `index`, which are the main worktree's.
const WRITABLE: [&str; 7] = [
    "/objects/*",
    "/refs/*",
    "/logs/refs/*",
    "/reftable/*",
    "/packed-refs",
    "/packed-refs.lock",
    "/packed-refs.new",
];
/// What names other object folders of the host.
const FIXED: [&str; 1] = ["/objects/info"];
/// What in a worktree's own folder Git runs programs by, or is led to another repository by.
const WORKTREE_FIXED: [&str; 5] = ["commondir", "gitdir", "config.worktree", "hooks", "modules"];

/// The part of a repository that all its worktrees share, and the name that one of them has in it.
#[derive(Debug, PartialEq, Eq)]
struct Linked {
    common: PathBuf,
    name: String,
}

/// Adds what the worktrees among `workspaces` need of their repositories, where it is not shown anyway. Returns what
/// the user should know about it, in lines.
pub fn add_repositories(workspaces: &mut Vec<Workspace>, private: &[PathBuf]) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for worktree in workspaces.clone().into_iter().filter(|it| !it.file) {
        let shown = plain(&worktree.path);
        match linked(&worktree.path, private) {
            Ok(None) => (),
            Ok(Some(linked)) => notes.extend(add(workspaces, &worktree, linked)?),
            Err(error) => {
                notes.push(format!("git will not work in {shown}: its .git is not believed: {error:#}"))
            }
        }
    }
    Ok(notes)
}

fn add(workspaces: &mut Vec<Workspace>, worktree: &Workspace, linked: Linked) -> Result<Option<String>> {
    let Linked { common, name } = linked;
    let names = if worktree.read_only { Vec::new() } else { vec![name] };
    let known = workspaces.iter_mut().find(|it| it.path == common && !it.worktrees.is_empty());
    if let Some(known) = known {
        known.worktrees.extend(names);
        known.worktrees.sort();
        known.worktrees.dedup();
        let count = known.worktrees.len();
        ensure!(
            count <= WORKTREES_MAX,
            "{count} worktrees of one repository; at most {WORKTREES_MAX} are allowed"
        );
        return Ok(None);
    }
    if workspaces.iter().any(|it| !it.file && common.starts_with(&it.path)) {
        return Ok(None);
    }
    let note = format!(
        "{} is shown too, for git in {}; its config and hooks are read-only",
        plain(&common),
        plain(&worktree.path)
    );
    // Of which `rules` takes back what Git has to write.
    workspaces.push(Workspace { path: common, read_only: true, file: false, worktrees: names });
    Ok(Some(note))
}

/// What may be changed in a repository for these worktrees of it.
pub fn rules(worktrees: &[String]) -> Rules {
    if worktrees.is_empty() {
        return Rules::default();
    }
    let own = |inside: &str| {
        let path =
            |name: &String| [b"/worktrees/", decode(name).as_bytes(), b"/", inside.as_bytes()].concat();
        worktrees.iter().map(path).collect::<Vec<_>>()
    };
    let list = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
    let mut rules = Rules { hidden: Vec::new(), writable: list(&WRITABLE), fixed: list(&FIXED) };
    rules.writable.extend(own("*"));
    rules.fixed.extend(WORKTREE_FIXED.iter().flat_map(|inside| own(inside)));
    rules
}

/// The repository that a folder is a linked worktree of. `None` for all others, an error for what pretends to be one.
fn linked(worktree: &Path, private: &[PathBuf]) -> Result<Option<Linked>> {
    let Ok(text) = read(&worktree.join(".git")) else { return Ok(None) };
    let Some(named) = text.strip_prefix(b"gitdir: ") else { return Ok(None) };
    let named = worktree.join(OsStr::from_bytes(named));
    if named.parent().and_then(Path::file_name) != Some(OsStr::new("worktrees")) {
        return Ok(None);
    }
    let own = fs::canonicalize(&named).context("what it names is not there")?;
    let name = own.file_name().filter(|name| !name.as_bytes().iter().any(|byte| b"*?".contains(byte)));
    let name = encode(name.context("it has an unusual name")?);
    let above = own.parent().filter(|above| above.file_name() == Some(OsStr::new("worktrees")));
    let common = above.and_then(Path::parent).context("what it names is not in a folder of worktrees")?;
    let agrees = |file: &str, path: &Path| {
        read(&own.join(file)).is_ok_and(|text| {
            fs::canonicalize(own.join(OsStr::from_bytes(&text))).is_ok_and(|named| named == path)
        })
    };
    ensure!(agrees("commondir", common), "what it names is not of that repository");
    ensure!(agrees("gitdir", &worktree.join(".git")), "the repository it names has its worktree elsewhere");
    let is = |name: &str, kind: fn(&fs::Metadata) -> bool| {
        fs::symlink_metadata(common.join(name)).is_ok_and(|it| kind(&it))
    };
    let whole = is("HEAD", fs::Metadata::is_file)
        && is("objects", fs::Metadata::is_dir)
        && is("refs", fs::Metadata::is_dir);
    ensure!(whole, "what it names is not in a repository");
    check_place(common, private)?;
    ensure!(!holds_worktrees(common), "worktrees are inside of the repository's own folder");
    Ok(Some(Linked { common: common.to_owned(), name }))
}

/// Whether files of some worktree would be shown with a repository.
fn holds_worktrees(common: &Path) -> bool {
    let Ok(entries) = fs::read_dir(common.join("worktrees")) else { return true };
    entries.flatten().any(|entry| {
        let text = read(&entry.path().join("gitdir")).unwrap_or_default();
        let path = entry.path().join(OsStr::from_bytes(&text));
        let folder = path.parent().and_then(|folder| fs::canonicalize(folder).ok());
        !text.is_empty() && folder.is_some_and(|folder| folder.starts_with(common))
    })
}

/// One of Git's small files, without the end of the line. A regular file: a FIFO put there would block us.
fn read(path: &Path) -> Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(openat(CWD, path, flags, Mode::empty())?);
    ensure!(file.metadata()?.is_file(), "is not a file");
    let mut text = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut text)?;
    ensure!(text.len() as u64 <= FILE_MAX, "is too long");
    text.truncate(text.trim_ascii_end().len());
    Ok(text)
}

#[cfg(test)]
mod tests;
