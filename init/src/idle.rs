//! What a sandbox does when nobody needs it: it gives its page cache back to the host, which has the same pages in its own.
//! It owns when that is. It takes nothing from programs: only what can be read again, the least used first.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::sys;

/// How often it looks; the sandbox has to have been idle at that many looks in a row.
const INTERVAL: Duration = Duration::from_secs(15);
const QUIET_LOOKS: u32 = 2;
/// Less of one processor than this is idle: a program that waits for input may still blink, or look at its files.
const BUSY_MAX_PERCENT: u64 = 5;
/// The kernel counts processor time in these (Linux Documentation/filesystems/proc.rst, "/proc/stat").
const TICKS_PER_SECOND: u64 = 100;
/// This much of the page cache stays: what a next command needs first.
const KEPT_KIB: u64 = 64 << 10;

/// A watch over one sandbox.
pub struct Idle {
    looked: Instant,
    busy_ticks: u64,
    quiet: u32,
}

impl Idle {
    /// Begins now.
    pub fn new(now: Instant) -> Self {
        Self { looked: now, busy_ticks: busy_ticks().unwrap_or(0), quiet: 0 }
    }

    /// When to look next.
    pub fn deadline(&self) -> Instant {
        self.looked + INTERVAL
    }

    /// Looks, if it is time, and gives back what is due: once for each time that the sandbox is idle.
    pub fn expire(&mut self, now: Instant) {
        // Where somebody has taken /proc away, nothing is ever idle.
        if self.deadline() <= now && self.is_due(now, busy_ticks().unwrap_or(u64::MAX)) {
            sys::detached(|| {
                if let Err(error) = give_back() {
                    crate::log(format_args!("give the page cache back: {error:#}"));
                }
            });
        }
    }

    fn is_due(&mut self, now: Instant, busy_ticks: u64) -> bool {
        let passed = u64::try_from(now.duration_since(self.looked).as_millis()).unwrap_or(u64::MAX);
        let used_ms = busy_ticks.saturating_sub(self.busy_ticks).saturating_mul(1000 / TICKS_PER_SECOND);
        (self.looked, self.busy_ticks) = (now, busy_ticks);
        let is_quiet =
            busy_ticks < u64::MAX && used_ms.saturating_mul(100) <= passed.saturating_mul(BUSY_MAX_PERCENT);
        self.quiet = if is_quiet { self.quiet.saturating_add(1) } else { 0 };
        self.quiet == QUIET_LOOKS
    }
}

/// What all processors have done, but for waiting.
fn busy_ticks() -> Option<u64> {
    parse_busy(&std::fs::read_to_string("/proc/stat").ok()?)
}

fn parse_busy(stat: &str) -> Option<u64> {
    const IDLE_AND_IOWAIT: [usize; 2] = [3, 4];
    let all = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().take(7);
    let busy = all.enumerate().filter(|(index, _)| !IDLE_AND_IOWAIT.contains(index));
    busy.map(|(_, ticks)| ticks.parse::<u64>().ok()).sum()
}

/// Linux Documentation/admin-guide/cgroup-v2.rst, "memory.reclaim". There is no swap, so this is the page cache, and with it
/// what the kernel remembers of files. It may fall short, which it says; then there was no more.
fn give_back() -> Result<()> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let cache = parse_cache_kib(&meminfo).context("/proc/meminfo has no files")?;
    if let Some(kib @ 1..) = cache.checked_sub(KEPT_KIB) {
        let _ = std::fs::write("/sys/fs/cgroup/memory.reclaim", format!("{kib}K"));
    }
    Ok(())
}

fn parse_cache_kib(meminfo: &str) -> Option<u64> {
    let kib = |name| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some(kib("Active(file):")? + kib("Inactive(file):")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_once_for_each_time_of_quiet() {
        let start = Instant::now();
        let mut idle = Idle { looked: start, busy_ticks: 1000, quiet: 0 };
        // 15 s each: 75 ticks are 5 %.
        let looks = [
            (1200, false),
            (1275, false),
            (1350, true),
            (1350, false),
            (1426, false),
            (1426, false),
            (1426, true),
        ];
        for (look, (ticks, due)) in (1..).zip(looks) {
            assert_eq!(idle.is_due(start + INTERVAL * look, ticks), due, "look {look}");
        }
    }

    #[test]
    fn without_figures_it_is_never_due_and_never_in_a_hurry() {
        let start = Instant::now();
        let mut idle = Idle { looked: start, busy_ticks: 0, quiet: 0 };
        for look in 1..5 {
            assert!(!idle.is_due(start + INTERVAL * look, u64::MAX));
            assert_eq!(idle.deadline(), start + INTERVAL * (look + 1));
        }
    }

    #[test]
    fn the_kernels_figures_are_understood() {
        assert_eq!(parse_busy("cpu  10 20 30 4000 5000 60 70 8 9 1\ncpu0 1 1"), Some(10 + 20 + 30 + 60 + 70));
        assert_eq!(parse_busy("cpu0 1 2 3"), None);
        let meminfo = "MemTotal: 500 kB\nActive(file):    1024 kB\nInactive(file):   2048 kB\n";
        assert_eq!(parse_cache_kib(meminfo), Some(3072));
        assert_eq!(parse_cache_kib("Active(file): 1 kB\n"), None);
    }
}
