//! What is on the host: processes that belong to a home, and the content of folders.
//! It owns how both are found out. It changes nothing.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::process::Pid;

/// A process that works on a home.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: Pid,
    /// The arguments, with spaces between them.
    pub command: String,
}

impl Process {
    #[must_use]
    pub fn is_vmm(&self) -> bool {
        self.command.split(' ').nth(1) == Some("vmm")
    }

    /// How often its thread `name` has waited for something to do.
    ///
    /// # Errors
    /// When there is no such thread.
    pub fn switches(&self, name: &str) -> Result<u64> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid.as_raw_pid()))?.flatten();
        let status = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        let of_thread = |text: &String| text.starts_with(&format!("Name:\t{name}\n"));
        let status = status.into_iter().find(of_thread).with_context(|| format!("no thread {name}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.context("no count of switches")?.trim().parse().context("a count of switches")
    }
}

/// The processes that have `home` in their arguments or their environment. Zombies have neither.
#[must_use]
pub fn processes(home: &Path) -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    entries.filter_map(|entry| process(&entry.path(), home)).collect()
}

fn process(dir: &Path, home: &Path) -> Option<Process> {
    let pid = Pid::from_raw(dir.file_name()?.to_str()?.parse().ok()?)?;
    // A process may end at any moment, and those of others cannot be read: both are not ours.
    let command = fs::read(dir.join("cmdline")).ok()?;
    let environment = fs::read(dir.join("environ")).unwrap_or_default();
    let names_home = |text: &[u8]| contains(text, home.as_os_str().as_bytes());
    (names_home(&command) || names_home(&environment)).then(|| Process {
        pid,
        command: String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " "),
    })
}

/// What the threads of a process wait for, a line each.
#[must_use]
pub fn threads(pid: Pid) -> String {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid())).into_iter().flatten().flatten();
    let read = |dir: &Path, name| fs::read_to_string(dir.join(name)).unwrap_or_default().trim().to_owned();
    let line = |dir: &Path| {
        let names = ["comm", "wchan", "syscall", "schedstat"];
        format!("  thread {}\n", names.map(|name| read(dir, name)).join(" | "))
    };
    tasks.map(|task| line(&task.path())).collect()
}

/// Whether `part` is somewhere in `text`.
#[must_use]
pub fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len().max(1)).any(|window| window == part)
}

/// The number of entries of a folder, such as /proc/PID/fd.
///
/// # Errors
/// When it cannot be read.
pub fn count(dir: impl AsRef<Path>) -> Result<usize> {
    let dir = dir.as_ref();
    Ok(fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?.count())
}

/// All that would show a change below a folder: every path with its inode, mode, size and times. Sorted.
#[must_use]
pub fn snapshot(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut folders: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(data) = entry.path().symlink_metadata() else { continue };
            lines.push(format!(
                "{} inode {} mode {:o} size {} modified {}.{:09}",
                entry.path().display(),
                data.ino(),
                data.mode(),
                data.size(),
                data.mtime(),
                data.mtime_nsec()
            ));
            if data.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    lines.sort();
    lines
}
