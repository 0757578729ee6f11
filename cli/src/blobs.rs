//! The cache of verified files, each under the digest of its content: `blobs/sha256/HEX` below the cache folder.
//! A file there is whole and has been verified; what is not finished has a name with a dot, and its lock is what makes two
//! that want the same wait for each other. It does not know where the bytes come from.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock, statvfs};
use rustix::io::Errno;

use crate::digest::{Digest, Hasher};
use crate::places;
use crate::text::plain;

/// A file that nobody has asked for in so long is removed, and so is what a cut download has left. What was made of it has a
/// life of its own.
const AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// What is left free of the host's disk.
const FREE_MIN: u64 = 1 << 30;
const PIECE: usize = 128 << 10;

/// The cache of this user.
#[derive(Debug, Clone)]
pub struct Blobs {
    root: PathBuf,
}

/// What became of a wish for a file.
#[derive(Debug)]
pub enum Claim {
    /// It is in the cache.
    Here(PathBuf),
    /// Nobody else makes it: it is ours to fill.
    Ours(Box<Partial>),
}

impl Blobs {
    /// The cache, made where there is none, and rid of what was last used long ago.
    pub fn open() -> Result<Self> {
        Self::at(&places::cache()?)
    }

    pub fn at(cache: &Path) -> Result<Self> {
        let blobs = Self { root: cache.to_owned() };
        for algorithm in ["sha256", "sha512"] {
            let folder = cache.join("blobs").join(algorithm);
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            made.with_context(|| {
                format!("create {}; set XDG_CACHE_HOME to a folder that you may write to", plain(&folder))
            })?;
            remove_old(&folder);
        }
        Ok(blobs)
    }

    /// The file of that content, if it is there.
    pub fn get(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.path(digest);
        if !path.is_file() {
            return None;
        }
        mark_used(&path);
        Some(path)
    }

    /// What is to be stored of files with these digests and sizes.
    pub fn missing<'a>(&self, files: impl IntoIterator<Item = (&'a Digest, u64)>) -> u64 {
        let missing = files.into_iter().filter(|(digest, _)| self.get(digest).is_none());
        missing.fold(0, |sum, (_, size)| sum.saturating_add(size))
    }

    /// The content of a small file, verified again: what is in memory is what was asked for.
    pub fn read(&self, digest: &Digest, size_max: u64) -> Result<Vec<u8>> {
        let path = self.path(digest);
        let file = File::open(&path).with_context(|| format!("open {}", plain(&path)))?;
        let mut bytes = Vec::new();
        file.take(size_max + 1).read_to_end(&mut bytes).with_context(|| format!("read {}", plain(&path)))?;
        ensure!(bytes.len() as u64 <= size_max, "{digest} is longer than {size_max} bytes");
        let mut hasher = Hasher::like(digest);
        hasher.update(&bytes);
        digest.expect(&hasher.finish()).with_context(|| format!("{} is broken; remove it", plain(&path)))?;
        Ok(bytes)
    }

    /// Puts bytes into the cache, once they are found to be what the digest says.
    pub fn write(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        if let Claim::Ours(mut partial) = self.claim(digest)? {
            partial.restart()?;
            partial.append(bytes)?;
            partial.finish()?;
        }
        Ok(())
    }
    /// The file, or the right to make it. Waits while another process makes it.
    pub fn claim(&self, digest: &Digest) -> Result<Claim> {
        let target = self.path(digest);
        let path = self.folder(digest).join(format!(".{}.partial", digest.hex()));
        loop {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).with_context(|| format!("create {}", plain(&path)))?;
            lock(&file).with_context(|| format!("lock {}", plain(&path)))?;
            // The one who had the lock before may have finished the file, or given it up.
            let is_same = fs::metadata(&path).is_ok_and(|named| {
                file.metadata().is_ok_and(|ours| (named.dev(), named.ino()) == (ours.dev(), ours.ino()))
            });
            if target.is_file() {
                if is_same {
                    let _ = fs::remove_file(&path);
                }
                mark_used(&target);
                return Ok(Claim::Here(target));
            }
            if is_same {
                let partial = Partial::resume(file, path, target, digest.clone())?;
                return Ok(Claim::Ours(Box::new(partial)));
            }
        }
    }

    /// A file in the cache for content that does not have a name yet; nobody else sees it.
    pub fn scratch(&self) -> Result<File> {
        let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let file = rustix::fs::open(&self.root, flags, mode);
        file.map(File::from).with_context(|| format!("create a file in {}", plain(&self.root)))
    }

    /// Fails when so much does not fit into the host's disk.
    pub fn check_room(&self, size: u64) -> Result<()> {
        let stat = statvfs(&self.root).with_context(|| format!("look at {}", plain(&self.root)))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        ensure!(
            size.saturating_add(FREE_MIN) <= free,
            "{} MiB are needed and 1 GiB is left free, but {} has {} MiB; free some, or set XDG_CACHE_HOME to a larger disk",
            size.div_ceil(1 << 20),
            plain(&self.root),
            free >> 20
        );
        Ok(())
    }

    fn folder(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder(digest).join(digest.hex())
    }
}

/// A file on its way into the cache. Dropping it keeps what is there, to go on from later.
#[derive(Debug)]
pub struct Partial {
    file: File,
    path: PathBuf,
    target: PathBuf,
    digest: Digest,
    hasher: Hasher,
    length: u64,
}

impl Partial {
    /// Takes over what an earlier try has left.
    fn resume(mut file: File, path: PathBuf, target: PathBuf, digest: Digest) -> Result<Self> {
        let mut hasher = Hasher::like(&digest);
        let mut piece = vec![0; PIECE];
        let mut length = 0;
        loop {
            let count = file.read(&mut piece).with_context(|| format!("read {}", plain(&path)))?;
            if count == 0 {
                return Ok(Self { file, path, target, digest, hasher, length });
            }
            hasher.update(&piece[..count]);
            length += count as u64;
        }
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| format!("write {}", plain(&self.path)))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Forgets what is there.
    pub fn restart(&mut self) -> Result<()> {
        let empty = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        empty.with_context(|| format!("empty {}", plain(&self.path)))?;
        self.hasher = Hasher::like(&self.digest);
        self.length = 0;
        Ok(())
    }

    pub fn is_right(&self) -> bool {
        self.hasher.clone().finish() == self.digest
    }

    /// The file under its own name; when its content is not what the name says, nothing is left of it.
    pub fn finish(self) -> Result<PathBuf> {
        let found = self.hasher.clone().finish();
        if let Err(error) = self.digest.expect(&found) {
            self.abandon();
            return Err(error);
        }
        self.file.sync_data().with_context(|| format!("write {}", plain(&self.path)))?;
        fs::rename(&self.path, &self.target).with_context(|| format!("name {}", plain(&self.target)))?;
        Ok(self.target)
    }

    /// Removes what is there.
    pub fn abandon(self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn lock(file: &File) -> rustix::io::Result<()> {
    loop {
        match flock(file, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => (),
            other => return other,
        }
    }
}

/// A cache that cannot note it forgets the file earlier, which costs another download.
fn mark_used(path: &Path) {
    let _ = OpenOptions::new().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

/// That a file is old is enough: whoever fills one writes to it, and whoever takes a finished one marks it.
fn remove_old(folder: &Path) {
    let now = SystemTime::now();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let modified = entry.metadata().and_then(|stat| stat.modified());
        let age = modified.ok().and_then(|time| now.duration_since(time).ok());
        if age.is_some_and(|age| age > AGE_MAX) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(blobs: &Blobs) -> usize {
        fs::read_dir(blobs.root.join("blobs/sha256")).unwrap().count()
    }

    fn ours(blobs: &Blobs, digest: &Digest) -> Partial {
        match blobs.claim(digest).unwrap() {
            Claim::Ours(partial) => *partial,
            Claim::Here(path) => panic!("{path:?} is there"),
        }
    }

    #[test]
    fn a_file_is_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::at(folder.path()).unwrap();
        let digest = Digest::of(b"hello");
        let mut partial = ours(&blobs, &digest);
        partial.append(b"hel").unwrap();
        assert!(blobs.get(&digest).is_none());
        drop(partial);
        let mut partial = ours(&blobs, &digest);
        assert_eq!(partial.length(), 3);
        partial.append(b"lo").unwrap();
        let path = partial.finish().unwrap();
        assert_eq!(blobs.get(&digest), Some(path.clone()));
        assert_eq!(blobs.read(&digest, 5).unwrap(), b"hello");
        assert!(blobs.read(&digest, 4).is_err());
        assert!(matches!(blobs.claim(&digest).unwrap(), Claim::Here(it) if it == path));
        assert_eq!(files(&blobs), 1);
    }

    #[test]
    fn wrong_content_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::at(folder.path()).unwrap();
        let digest = Digest::of(b"hello");
        let mut partial = ours(&blobs, &digest);
        partial.append(b"hallo").unwrap();
        let error = partial.finish().unwrap_err().to_string();
        assert!(error.contains(&digest.to_string()), "{error}");
        assert_eq!(files(&blobs), 0);
        let path = blobs.root.join("blobs/sha256").join(digest.hex());
        fs::write(path, "hallo").unwrap();
        assert!(blobs.read(&digest, 100).is_err(), "what rots in the cache is noticed");
    }

    #[test]
    fn two_that_want_the_same_make_it_once() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::at(folder.path()).unwrap();
        let content = vec![7; 1 << 20];
        let digest = Digest::of(&content);
        let made: usize = std::thread::scope(|scope| {
            let make = || match blobs.claim(&digest).unwrap() {
                Claim::Here(_) => 0,
                Claim::Ours(mut partial) => {
                    assert_eq!(partial.length(), 0);
                    content.chunks(1000).for_each(|piece| partial.append(piece).unwrap());
                    partial.finish().unwrap();
                    1
                }
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((made, files(&blobs)), (1, 1));
    }

    #[test]
    fn what_was_last_used_long_ago_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::at(folder.path()).unwrap();
        let make = |name: &str, days: u64| {
            let path = blobs.root.join("blobs/sha256").join(name);
            let file = File::create(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(days * 24 * 3600)).unwrap();
            path
        };
        let used = Digest::of(b"");
        let gone = [make(".a.partial", 30), make("c", 30)];
        let kept = [make(".b.partial", 1), make("d", 1), make(used.hex(), 30)];
        assert_eq!(blobs.get(&used), Some(kept[2].clone()));
        let blobs = Blobs::at(folder.path()).unwrap();
        assert!(!gone.iter().any(|path| path.exists()));
        assert!(kept.iter().all(|path| path.exists()));
        assert!(blobs.check_room(u64::MAX).is_err());
    }
}
