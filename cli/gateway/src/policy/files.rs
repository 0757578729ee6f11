//! The files that a policy is read from and written to: one of the user's, and one of each sandbox. It owns their format, that an
//! edit is whole and loses no other, and how a change is noticed. It decides nothing.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use serde::Deserialize;

use super::preset::Preset;
use super::rule::Rule;

/// The name of a policy's file, in the folder of the user's settings and in a sandbox's.
pub const NAME: &str = "policy.toml";
const LOCK: &str = "policy.lock";
const NEW: &str = "policy.toml.new";
const SIZE_MAX: u64 = 1 << 20;
/// Of one file: each connection is compared with all of them.
const RULES_MAX: usize = 2000;

/// Where the policy of a sandbox is. Either file may be missing.
#[derive(Clone, Debug)]
pub struct Files {
    /// For all sandboxes.
    pub global: PathBuf,
    pub sandbox: Option<PathBuf>,
}

/// What one file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub preset: Option<Preset>,
    pub allow: Vec<Rule>,
    pub deny: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Toml {
    preset: Option<Preset>,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    deny: Vec<String>,
}

impl Rules {
    pub fn parse(text: &str) -> Result<Self> {
        let toml: Toml = toml::from_str(text).map_err(|error| anyhow!("{}", error.message().trim()))?;
        ensure!(toml.allow.len() + toml.deny.len() <= RULES_MAX, "it has more than {RULES_MAX} rules");
        let rules = |list: Vec<String>| -> Result<Vec<Rule>> {
            list.iter()
                .map(|rule| rule.parse().map_err(|error| anyhow!("the rule {rule:?} {error}")))
                .collect()
        };
        Ok(Self { preset: toml.preset, allow: rules(toml.allow)?, deny: rules(toml.deny)? })
    }

    /// The rules of a file; `None` when there is none.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let name = || format!("{} cannot be used", path.display());
        let Some(file) = open(path).with_context(name)? else { return Ok(None) };
        let mut text = String::new();
        file.take(SIZE_MAX + 1).read_to_string(&mut text).with_context(name)?;
        ensure!(text.len() as u64 <= SIZE_MAX, "{} is longer than {SIZE_MAX} bytes", path.display());
        Self::parse(&text).with_context(name).map(Some)
    }

    /// The text of a file with these rules.
    pub fn text(&self) -> String {
        let list = |name: &str, rules: &[Rule]| {
            let lines: String = rules.iter().map(|rule| format!("    \"{rule}\",\n")).collect();
            if rules.is_empty() { String::new() } else { format!("{name} = [\n{lines}]\n") }
        };
        let preset = self.preset.map(|it| format!("preset = \"{}\"\n", it.name())).unwrap_or_default();
        let head = "# Kept by coracle policy, which leaves no comments of yours when it changes this file.\n";
        [head, &preset, &list("allow", &self.allow), &list("deny", &self.deny)].concat()
    }

    /// Adds what is not there yet; false when all of it was.
    pub fn add(list: &mut Vec<Rule>, rules: &[Rule]) -> bool {
        let before = list.len();
        for rule in rules {
            if !list.contains(rule) {
                list.push(rule.clone());
            }
        }
        list.len() > before
    }
}

/// A file that only the user can have written. A FIFO in its place must not block us.
fn open(path: &Path) -> Result<Option<File>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(anyhow!("it is a symbolic link; put the file itself there"));
        }
        Err(error) => return Err(error.into()),
    };
    let stat = file.metadata()?;
    ensure!(stat.is_file(), "it is not a file");
    ensure!(stat.uid() == rustix::process::geteuid().as_raw(), "it is another user's file");
    ensure!(stat.mode() & 0o022 == 0, "others may write to it; chmod go-w it");
    Ok(Some(file))
}

/// Changes a policy's file: whole or not at all, and no two changes lose each other. Does nothing where `change` says so.
pub fn edit(path: &Path, change: impl FnOnce(&mut Rules) -> Result<bool>) -> Result<bool> {
    let folder = path.parent().context("a policy needs a folder")?;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("create {}", folder.display()))?;
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let mut private = fs::OpenOptions::new();
    private.write(true).create(true).mode(0o600).custom_flags(flags);
    let lock = private.clone().truncate(false).open(folder.join(LOCK)).context("open the policy's lock")?;
    flock(&lock, FlockOperation::LockExclusive).context("lock the policy")?;
    let mut rules = Rules::read(path)?.unwrap_or_default();
    if !change(&mut rules)? {
        return Ok(false);
    }
    ensure!(rules.allow.len() + rules.deny.len() <= RULES_MAX, "a policy has {RULES_MAX} rules at most");
    let new = folder.join(NEW);
    let mut file = private.truncate(true).open(&new).context("write the policy")?;
    file.write_all(rules.text().as_bytes()).and_then(|()| file.sync_all()).context("write the policy")?;
    fs::rename(&new, path).context("replace the policy")?;
    // The name is on the disk as well, where the file system can say so.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(true)
}

/// Tells when a file of a policy may have changed.
#[derive(Debug)]
pub struct Watch {
    files: Files,
    inotify: OwnedFd,
    seen: Vec<Option<Identity>>,
}

/// Device, inode, size, and when it was changed.
type Identity = (u64, u64, u64, i64, i64);

impl Files {
    /// Begins to watch. What has changed before is not reported: load after this.
    pub fn watch(&self) -> Result<Watch> {
        let inotify =
            inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context("watch the policy")?;
        let mut watch = Watch { files: self.clone(), inotify, seen: Vec::new() };
        watch.arm();
        watch.seen = watch.look();
        Ok(watch)
    }

    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.global).chain(&self.sandbox)
    }
}

impl Watch {
    /// Reads the events, and looks. To be called when the descriptor is readable; and every few seconds, as network file
    /// systems report nothing, and a folder that is removed takes its watch along.
    pub fn changed(&mut self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        while let Ok(_) | Err(Errno::INTR) = reader.next() {}
        self.arm();
        let now = self.look();
        let changed = now != self.seen;
        self.seen = now;
        changed
    }

    /// The folders are watched, as files are replaced; where there is none yet, the nearest above it.
    fn arm(&self) {
        let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE;
        let flags = flags
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        for path in self.files.paths() {
            let above = path.ancestors().skip(1);
            let _ = above.map(|it| inotify::add_watch(&self.inotify, it, flags)).find(Result::is_ok);
        }
    }

    fn look(&self) -> Vec<Option<Identity>> {
        let identity = |path: &PathBuf| {
            let it = fs::symlink_metadata(path).ok()?;
            Some((it.dev(), it.ino(), it.size(), it.ctime(), it.ctime_nsec()))
        };
        self.files.paths().map(identity).collect()
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
