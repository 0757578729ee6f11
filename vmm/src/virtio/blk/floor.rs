//! The space that a disk leaves free on the file system its file is on: a guest must not fill the host.
//! It owns the decision whether a write may make the file grow. It does not write, and knows nothing of sectors.
//!
//! To ask at each write would cost a system call each. So each answer is good for a part of what is free, and not for long,
//! as others write there, too: the nearer the floor, the more often it asks.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, fstatvfs, seek};

/// How long an answer is good for.
const TRUST: Duration = Duration::from_millis(500);
/// The part of the free space above the floor that is given away at once, and the most: several disks ask at the same time.
const PART: u64 = 16;
const CREDIT_MAX: u64 = 64 << 20;
/// Writes up to this size go on until only this part of the floor is left: the guest's file system needs some of its own even
/// to delete a file, and where one of those fails, it is read-only from then on.
const SMALL: u64 = 64 << 10;
const SMALL_PART: u64 = 2;

/// The floor under one disk.
#[derive(Debug)]
pub struct Floor {
    file: Arc<File>,
    keep_free: u64,
    /// Bytes that may be written until it asks again.
    credit: u64,
    asked: Option<Instant>,
}

impl Floor {
    /// At least `keep_free` bytes stay free where `file` is; 0 is no floor.
    pub fn new(file: Arc<File>, keep_free: u64) -> Self {
        Self { file, keep_free, credit: 0, asked: None }
    }

    /// Whether this may be written. What the file has space for already, always may.
    pub fn allows(&mut self, offset: u64, length: u64) -> bool {
        if self.keep_free == 0 || self.draw(length) {
            return true;
        }
        let free = self.free();
        let above = free.saturating_sub(self.keep_free);
        self.credit = (above / PART).min(CREDIT_MAX);
        self.asked = Some(Instant::now());
        let is_small = length <= SMALL && free.saturating_sub(self.keep_free / SMALL_PART) >= length;
        self.draw(length) || length <= above || is_small || self.has_space(offset, length)
    }

    fn draw(&mut self, length: u64) -> bool {
        let left =
            self.credit.checked_sub(length).filter(|_| self.asked.is_some_and(|at| at.elapsed() < TRUST));
        self.credit = left.unwrap_or(self.credit);
        left.is_some()
    }

    fn free(&self) -> u64 {
        // A file system that does not say is one that nobody can watch over.
        fstatvfs(&self.file).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn has_space(&self, offset: u64, length: u64) -> bool {
        // The position that this moves is nobody's: all reads and writes say where.
        seek(&self.file, SeekFrom::Hole(offset)).is_ok_and(|hole| hole >= offset.saturating_add(length))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file() -> Arc<File> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[7; 64 << 10], 0).unwrap();
        Arc::new(file)
    }

    #[test]
    fn below_the_floor_only_what_has_space_is_written() {
        let mut floor = Floor::new(file(), u64::MAX);
        for (offset, length, allowed) in [
            (0, 4096, true),
            (60 << 10, 4096, true),
            (60 << 10, 4097, false),
            (64 << 10, 1, false),
            (512 << 10, 4096, false),
            ((1 << 20) - 1, 1, false),
            (u64::MAX, u64::MAX, false),
        ] {
            assert_eq!(floor.allows(offset, length), allowed, "{offset} {length}");
        }
    }

    /// As free as the file system is now, but for what others do meanwhile.
    #[test]
    fn a_little_below_it_small_writes_go_on() {
        let file = file();
        let free = Floor::new(Arc::clone(&file), 0).free();
        for (keep_free, small) in [(free + free / 4, true), (free * 2 + free / 4, false)] {
            let mut floor = Floor::new(Arc::clone(&file), keep_free);
            assert_eq!(floor.allows(512 << 10, SMALL), small);
            assert!(!floor.allows(512 << 10, SMALL + 1));
            assert!(floor.allows(0, 64 << 10), "it has space");
        }
    }

    #[test]
    fn above_it_all_is_written_and_a_credit_is_drawn_on() {
        let mut floor = Floor::new(file(), 1);
        assert!(floor.allows(512 << 10, 4096));
        let credit = floor.credit;
        assert!(credit > 0 && credit <= CREDIT_MAX);
        assert!(floor.allows(512 << 10, 4096));
        assert_eq!(floor.credit, credit - 4096);
        floor.keep_free = u64::MAX;
        assert!(floor.allows(512 << 10, credit - 4096), "what was promised holds");
        assert!(!floor.allows(512 << 10, 1), "and is gone then");
        assert!(Floor::new(file(), 0).allows(u64::MAX, u64::MAX), "no floor");
    }

    #[test]
    fn an_old_answer_is_worth_nothing() {
        let mut floor = Floor::new(file(), 1);
        assert!(floor.allows(512 << 10, 4096));
        floor.keep_free = u64::MAX;
        floor.asked = floor.asked.and_then(|at| at.checked_sub(TRUST));
        assert!(!floor.allows(512 << 10, 4096));
    }
}
