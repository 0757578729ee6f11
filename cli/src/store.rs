//! The sandboxes of this user on disk, a folder each under the state folder; there is no index to go out of step.
//! The lock in a sandbox's folder, held by its living VMM (or by the command that makes, starts or removes it), is the
//! only truth for "running": it ends with the process that holds it, however that ends. What a killed command leaves
//! has a name that begins with a dot, or a free lock, and is collected by the next one. It starts and stops nothing.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use gateway::policy::{self, Rules};
use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, RenameFlags, accessat, flock, fstat, openat, renameat_with, statat,
};
use rustix::io::Errno;
use rustix::process::Signal;

mod sandbox;

use sandbox::{DIRECTORY, PRIVATE, create};
pub use sandbox::{Lock, Sandbox, Usage, file, is_same};

use crate::config::{self, NAME_RULE, SandboxConfig};
use crate::disk::Room;
use crate::text::{nearest, plain, quoted};
use crate::{disk, places};

const NEW: &str = ".new-";
const TRASH: &str = ".trash-";

/// The folder of all sandboxes.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    dir: OwnedFd,
}

/// What became of a try for a lock.
#[derive(Debug)]
pub enum Locked {
    Ours(Lock),
    /// A VMM, or another command, has it.
    Busy,
    /// The sandbox has been removed since it was opened.
    Gone,
}

/// A sandbox that is being made. Dropping it unpublished leaves it to be collected.
#[derive(Debug)]
pub struct Draft {
    temporary: String,
    dir: OwnedFd,
    lock: Lock,
}

impl Store {
    /// The store if there is one; changes nothing.
    pub fn open() -> Result<Option<Self>> {
        let path = places::state()?.join("sandboxes");
        match rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(dir) => Ok(Some(Self { path, dir })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).with_context(|| {
                format!(
                    "open {}; it has to be a folder, below XDG_STATE_HOME or ~/.local/state",
                    plain(&path)
                )
            }),
        }
    }

    /// The store, made where there is none, and rid of what killed commands have left.
    pub fn open_or_create() -> Result<Self> {
        let store = match Self::open()? {
            Some(store) => store,
            None => {
                let path = places::state()?.join("sandboxes");
                let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
                made.with_context(|| {
                    format!("create {}; set XDG_STATE_HOME to a folder that you may write to", plain(&path))
                })?;
                Self::open()?.with_context(|| format!("open {}", plain(&path)))?
            }
        };
        store.collect_garbage();
        Ok(store)
    }

    /// Refuses when the host has too little space for one more sandbox.
    pub fn check_room(&self) -> Result<()> {
        let room = Room::of(&self.dir).context("look at the space for the sandbox")?;
        ensure!(
            room.has_one_more(),
            "only {} MiB are free where sandboxes are kept ({}), and the last {} MiB are left to others; free some space, \
             coracle rm what you do not need, or set XDG_STATE_HOME to a folder elsewhere",
            room.free >> 20,
            plain(&self.path),
            room.keep_free >> 20
        );
        Ok(())
    }

    /// The names in the store, sorted, whatever they are the names of.
    pub fn names(&self) -> Result<Vec<std::ffi::OsString>> {
        let entries = fs::read_dir(&self.path).with_context(|| format!("read {}", plain(&self.path)))?;
        let mut names: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
        names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
        names.sort();
        Ok(names)
    }

    /// The names of sandboxes that are being made, whoever makes them.
    pub fn drafts(&self) -> Result<Vec<std::ffi::OsString>> {
        let entries = fs::read_dir(&self.path).with_context(|| format!("read {}", plain(&self.path)))?;
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        Ok(names.filter(|name| name.as_encoded_bytes().starts_with(NEW.as_bytes())).collect())
    }

    /// The folder of a sandbox, or of one that is being made; `None` when it is gone.
    pub fn open_folder(&self, name: &OsStr) -> Result<Option<Sandbox>> {
        match openat(&self.dir, name, OFlags::RDONLY | DIRECTORY, Mode::empty()) {
            Ok(dir) => Ok(Some(Sandbox { name: plain(name), path: self.path.join(name), dir })),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("open sandbox {}", quoted(name))),
        }
    }

    /// The sandbox of exactly this name.
    pub fn open_sandbox(&self, name: &OsStr) -> Result<Option<Sandbox>> {
        let Some(name) = name.to_str().filter(|name| config::is_name(name)) else {
            bail!("{} is not a sandbox's name ({NAME_RULE})", quoted(name));
        };
        match openat(&self.dir, name, OFlags::RDONLY | DIRECTORY, Mode::empty()) {
            Ok(dir) => Ok(Some(Sandbox { name: name.to_owned(), path: self.path.join(name), dir })),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => bail!("it is not a folder"),
            Err(error) => Err(error).context("its folder cannot be opened"),
        }
    }

    /// The store, for a command that looks for the sandbox `typed`: without a store there is none.
    pub fn existing(typed: &OsStr) -> Result<Self> {
        let none = || anyhow!(NotFound(format!("no sandbox {}; coracle run makes one", quoted(typed))));
        Self::open()?.ok_or_else(none)
    }

    /// The sandbox that a user means by a name, or by the beginning of an id that no other has.
    pub fn find(&self, typed: &OsStr) -> Result<Sandbox> {
        if typed.to_str().is_some_and(config::is_name)
            && let Some(sandbox) =
                self.open_sandbox(typed).with_context(|| format!("sandbox {}", quoted(typed)))?
        {
            return Ok(sandbox);
        }
        let is_id = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let Some(prefix) = typed.to_str().filter(is_id) else { return Err(self.not_found(typed)) };
        let mut matches = self.sandboxes()?;
        matches.retain(|sandbox| sandbox.config().is_ok_and(|config| config.id.starts_with(prefix)));
        match matches.len() {
            0 => Err(self.not_found(typed)),
            1 => Ok(matches.remove(0)),
            _ => {
                let names: Vec<_> = matches.iter().map(|sandbox| sandbox.name.as_str()).collect();
                bail!(
                    "id {} is that of several sandboxes ({}); type more of it",
                    quoted(typed),
                    names.join(", ")
                )
            }
        }
    }

    fn not_found(&self, typed: &OsStr) -> anyhow::Error {
        let names = self.names().unwrap_or_default();
        let known = names.iter().filter_map(|name| name.to_str());
        let guess = typed.to_str().and_then(|typed| nearest(typed, known));
        let guess = guess.map(|guess| format!("did you mean {}? ", plain(guess))).unwrap_or_default();
        anyhow!(NotFound(format!("no sandbox {}; {guess}coracle ls lists them", quoted(typed))))
    }

    /// All folders that could be sandboxes; those that cannot be opened are left out.
    pub fn sandboxes(&self) -> Result<Vec<Sandbox>> {
        let names = self.names()?;
        Ok(names.iter().filter_map(|name| self.open_sandbox(name).ok().flatten()).collect())
    }

    /// Makes a sandbox that nobody sees yet, and locks it.
    pub fn draft(&self, config: &SandboxConfig, fresh_disk: &Path, ephemeral: bool) -> Result<Draft> {
        // The collector may take a folder that is not locked yet; a second try has another name.
        const TRIES: usize = 5;
        for _ in 0..TRIES {
            let temporary = format!("{NEW}{}", new_id()?);
            rustix::fs::mkdirat(&self.dir, &*temporary, Mode::RWXU).context("create the sandbox's folder")?;
            let Ok(dir) = openat(&self.dir, &*temporary, OFlags::RDONLY | DIRECTORY, Mode::empty()) else {
                continue;
            };
            let Locked::Ours(lock) = self.lock_dir(&dir, &temporary)? else { continue };
            let draft = Draft { temporary, dir, lock };
            if let Err(error) = draft.fill(config, fresh_disk, ephemeral) {
                let _ = fs::remove_dir_all(self.path.join(&draft.temporary));
                return Err(error);
            }
            return Ok(draft);
        }
        bail!("another command keeps removing what this one creates; try again")
    }

    /// Gives a draft its name, all at once; the draft comes back when the name is taken.
    pub fn publish(&self, draft: Draft, name: &str) -> Result<Result<(Sandbox, Lock), Draft>> {
        match renameat_with(&self.dir, &*draft.temporary, &self.dir, name, RenameFlags::NOREPLACE) {
            Ok(()) => {
                let sandbox = Sandbox { name: name.to_owned(), path: self.path.join(name), dir: draft.dir };
                Ok(Ok((sandbox, draft.lock)))
            }
            Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(Err(draft)),
            Err(error) => Err(error).with_context(|| format!("name the sandbox {name}")),
        }
    }

    pub fn discard(&self, draft: &Draft) {
        let _ = fs::remove_dir_all(self.path.join(&draft.temporary));
    }

    /// Tries for the sandbox's lock; does not wait.
    pub fn lock(&self, sandbox: &Sandbox) -> Result<Locked> {
        self.lock_dir(&sandbox.dir, &sandbox.name).with_context(|| format!("lock sandbox {}", sandbox.name))
    }

    fn lock_dir(&self, dir: &OwnedFd, name: &str) -> Result<Locked> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match openat(dir, file::LOCK, flags, PRIVATE) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(Locked::Gone),
            Err(error) => return Err(error).context("open its lock"),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(Locked::Busy),
            Err(error) => return Err(error).context("take its lock"),
        }
        // Between opening and locking, it may have been removed, and another made in its place.
        let still = statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|now| {
            fstat(dir).is_ok_and(|then| (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino))
        });
        let linked = fstat(&file).is_ok_and(|stat| stat.st_nlink > 0);
        Ok(if still && linked { Locked::Ours(Lock(file.into())) } else { Locked::Gone })
    }

    /// Takes a sandbox out of sight, and frees its name, in one step. `None` when somebody else already has.
    pub fn trash(&self, sandbox: &Sandbox) -> Result<Option<PathBuf>> {
        let trash = format!("{TRASH}{}", new_id()?);
        match renameat_with(&self.dir, &*sandbox.name, &self.dir, &*trash, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Some(self.path.join(trash))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("remove sandbox {}", sandbox.name)),
        }
    }

    /// Removes what was left by commands that were killed. Nobody waits for it to succeed: the next one tries again.
    pub fn collect_garbage(&self) {
        let Ok(entries) = fs::read_dir(&self.path) else { return };
        for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
            let hidden = name.starts_with(NEW) || name.starts_with(TRASH);
            if hidden || config::is_name(&name) && self.is_ephemeral(&name) {
                let _ = self.collect(&name, hidden);
            }
        }
    }

    fn is_ephemeral(&self, name: &str) -> bool {
        let marker = format!("{name}/{}", file::EPHEMERAL);
        accessat(&self.dir, marker, rustix::fs::Access::EXISTS, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    fn collect(&self, name: &str, hidden: bool) -> Result<()> {
        let dir = openat(&self.dir, name, OFlags::RDONLY | DIRECTORY, Mode::empty())?;
        let locked = self.lock_dir(&dir, name)?;
        let sandbox = Sandbox { name: name.to_owned(), path: self.path.join(name), dir };
        // The lock stays ours until all is gone.
        let Locked::Ours(_lock) = locked else {
            // An `rm` was killed before it could say so to the VMM; one that is ending already does not mind.
            if name.starts_with(TRASH) {
                sandbox.signal(Signal::TERM);
            }
            return Ok(());
        };
        if hidden {
            return Ok(fs::remove_dir_all(&sandbox.path)?);
        }
        let trash = self.trash(&sandbox)?;
        trash.map_or(Ok(()), |trash| Ok(fs::remove_dir_all(trash)?))
    }
}

impl Draft {
    /// The sandbox's own rules, where it begins with some.
    pub fn write_policy(&self, rules: &Rules) -> Result<()> {
        if *rules == Rules::default() {
            return Ok(());
        }
        let mut file = create(&self.dir, policy::NAME)?;
        file.write_all(rules.text().as_bytes()).and_then(|()| file.sync_all()).context("write the policy")
    }

    fn fill(&self, config: &SandboxConfig, fresh_disk: &Path, ephemeral: bool) -> Result<()> {
        let json = serde_json::to_vec_pretty(config).context("encode config.json")?;
        let mut file = create(&self.dir, file::CONFIG)?;
        file.write_all(&json).context("write config.json")?;
        let image = create(&self.dir, file::DISK)?;
        disk::copy(fresh_disk, &image, config.disk_mib << 20).context("create the sandbox's disk")?;
        if ephemeral {
            create(&self.dir, file::EPHEMERAL)?;
        } else {
            // After a power cut the sandbox is whole or not there; one that goes anyway need not be.
            file.sync_all().and_then(|()| image.sync_all()).context("write the sandbox to disk")?;
        }
        Ok(())
    }
}

/// Whether that is the name of a sandbox that is being removed.
pub fn is_trash(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(TRASH.as_bytes())
}

/// 12 hexadecimal digits that nobody has had before.
pub fn new_id() -> Result<String> {
    let mut bytes = [0; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context("draw a random id")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What `rm -f` does not mind.
#[derive(Debug)]
pub struct NotFound(String);

impl std::fmt::Display for NotFound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotFound {}

#[cfg(test)]
pub(crate) mod tests;
