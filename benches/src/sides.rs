//! The two sides that a workload is measured on in one running sandbox: the share and the guest's own disk.
//! It owns where they are and how one run is timed. What is run is in `workloads`, what it means in `compare`.
//!
//! The disk's side is the ext4 itself, and not the container's overlay over it, which adds a cost of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::product::{Product, Running};
use crate::tree;
use crate::workloads::{Caches, FIXTURE, LARGE_LEN, WORKLOADS, Workload};

const MEMORY: &str = "512m";
/// Where the guest's disk is mounted once more, outside of the overlay.
const DISK: &str = "/mnt/bench";
const MOUNT_DISK: &str =
    "sudo mkdir -p /mnt && sudo mount /dev/vda /mnt && sudo install -d -o agent -g agent /mnt/bench";
const DROP_CACHES: &str = "sync; echo 3 | sudo tee /proc/sys/vm/drop_caches";
/// Runs a script by the guest's own clock, and prints the nanoseconds: a session has costs that are no file system's.
const TIMER: &str = "import subprocess, sys, time
start = time.monotonic_ns()
status = subprocess.run(['bash', '-ec', sys.argv[1]], stdout=subprocess.DEVNULL).returncode
print(time.monotonic_ns() - start)
sys.exit(status)";

/// Where a workload is run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Side {
    Share,
    Disk,
}

impl Side {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Share => "share",
            Self::Disk => "disk",
        }
    }
}

/// A running sandbox with the same files on both sides.
#[derive(Debug)]
pub struct Sides<'p> {
    running: Running<'p>,
    share: PathBuf,
}

impl<'p> Sides<'p> {
    /// Starts the sandbox, with a tree of `files` files.
    ///
    /// # Errors
    /// When it does not start, or a side cannot be filled.
    pub fn new(product: &'p Product, files: usize) -> Result<Self> {
        let share = product.workspace().to_owned();
        tree::write(&share.join("tree"), files)?;
        fs::write(share.join("large"), vec![b'x'; LARGE_LEN]).context("write the large file")?;
        let running = product.running(MEMORY)?;
        let sides = Self { running, share };
        // The same commands make the same state on both, down to the times in git's index.
        let copy = format!("{MOUNT_DISK} && cp -r {0}/tree {0}/large {DISK}/", sides.share.display());
        sides.shell(Path::new("/"), &copy).context("copy the tree to the guest's disk")?;
        for side in [Side::Share, Side::Disk] {
            sides
                .shell(sides.folder(side), &format!("set -e; {FIXTURE}"))
                .with_context(|| format!("fill the {}", side.name()))?;
        }
        Ok(sides)
    }

    /// What one run of `workload` on `side` takes.
    ///
    /// # Errors
    /// When its script fails there; with what it said.
    pub fn time(&self, workload: &Workload, side: Side) -> Result<Duration> {
        let folder = self.folder(side);
        let before = match workload.caches {
            Caches::Cold => DROP_CACHES,
            Caches::Warm => workload.script,
        };
        self.shell(folder, &format!("set -e; {}\n( {before} ) >/dev/null", workload.prepare))
            .and_then(|_| self.timed(folder, workload.script))
            .with_context(|| format!("{} on the {}", workload.name, side.name()))
    }

    fn timed(&self, folder: &Path, script: &str) -> Result<Duration> {
        let printed = self.running.exec(folder, &["python3", "-c", TIMER, script])?;
        let nanoseconds = printed.trim().parse().with_context(|| format!("{printed:?} is no time"))?;
        Ok(Duration::from_nanos(nanoseconds))
    }

    fn shell(&self, folder: &Path, script: &str) -> Result<String> {
        self.running.exec(folder, &["bash", "-c", script])
    }

    fn folder(&self, side: Side) -> &Path {
        match side {
            Side::Share => &self.share,
            Side::Disk => Path::new(DISK),
        }
    }
}

/// The workloads whose names contain `part`.
pub fn workloads(part: &str) -> impl Iterator<Item = &'static Workload> {
    WORKLOADS.iter().filter(move |workload| workload.name.contains(part))
}
