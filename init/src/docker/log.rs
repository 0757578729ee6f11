//! What the daemons say, in a file that does not grow beyond a limit.
//! It owns the file and the one before it. Nothing depends on it: what cannot be written is lost.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;

/// A file that is moved aside when it has its full length; with the older one it takes twice that.
pub struct Log {
    path: PathBuf,
    limit: u64,
    /// `None` when it cannot be opened.
    file: Option<File>,
    length: u64,
}

impl Log {
    pub fn open(path: &Path, limit: u64) -> Self {
        let file = File::options().append(true).create(true).open(path).ok();
        let length = file.as_ref().and_then(|it| it.metadata().ok()).map_or(0, |it| it.len());
        Self { path: path.to_owned(), limit, file, length }
    }

    /// What is in a pipe that does not block.
    pub fn copy(&mut self, pipe: &OwnedFd) {
        let mut buffer = [0; 16 << 10];
        while let Ok(count @ 1..) = rustix::io::read(pipe, &mut buffer) {
            self.write(&buffer[..count]);
        }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if self.length > self.limit {
            let _ = fs::rename(&self.path, self.path.with_extension("log.1"));
            *self = Self::open(&self.path, self.limit);
            self.length += bytes.len() as u64;
        }
        let _ = self.file.as_mut().map(|it| it.write_all(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_takes_twice_its_limit_at_most_and_keeps_the_newest() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("docker.log");
        for round in 0..10 {
            // Opened anew each time, as after a restart.
            let mut log = Log::open(&path, 100);
            for line in 0..10 {
                log.write(format!("{round} {line} {}\n", "x".repeat(25)).as_bytes());
            }
        }
        let sizes =
            ["docker.log", "docker.log.1"].map(|it| fs::metadata(scratch.path().join(it)).unwrap().len());
        assert!(sizes.iter().all(|&size| size <= 100), "{sizes:?}");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
        let newest = fs::read_to_string(path).unwrap();
        assert!(newest.contains("9 9 "), "{newest}");
    }
}
