//! Times programs from exec to exit, and waits until nothing of them is left.
//! It owns the clock and the processes. What is run is its callers' business.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::process::{WaitOptions, getpid, set_child_subreaper, wait};

/// How often a figure is taken; the median counts. Odd, so that the median is one of them.
pub const SAMPLES: usize = 5;
/// The same for what takes a few milliseconds, to which the random places of a process's memory matter more.
pub const SHORT_SAMPLES: usize = 25;

/// Makes this process the parent of what its children leave running, so that `settle` can wait for it.
///
/// # Errors
/// When the kernel is older than Linux 3.4.
pub fn adopt_orphans() -> Result<()> {
    set_child_subreaper(Some(getpid())).context("become the parent of orphans")
}

/// Waits until all descendants have ended. What is timed next would otherwise share the machine with their end.
///
/// # Errors
/// None that a process without threads of its own waiting can meet.
pub fn settle() -> Result<()> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::CHILD) => return Ok(()),
            Err(error) => return Err(error).context("wait for what the last command left running"),
        }
    }
}

/// What a command printed, and the time from before it was started until its end was known.
#[derive(Debug)]
pub struct Timed {
    pub time: Duration,
    pub stderr: String,
}

/// Runs `command`, which must succeed. It has no input, and its output is dropped. Its error stream is a file: a pipe
/// would need a reader, who would take time from it.
///
/// # Errors
/// When it cannot be started, or fails; with what it said.
pub fn time(command: &mut Command) -> Result<Timed> {
    let mut said = tempfile::tempfile().context("create a file for the error stream")?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said.try_clone().context("duplicate the file of the error stream")?);
    let start = Instant::now();
    let status = command.spawn().and_then(|mut child| child.wait());
    let time = start.elapsed();
    let status = status.with_context(|| format!("run {command:?}"))?;
    let stderr = text(&mut said)?;
    ensure!(status.success(), "{command:?} failed, {status}: {}", stderr.trim());
    Ok(Timed { time, stderr })
}

fn text(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).context("read the error stream")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The middle one of `values`.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median of `count` times that `sample` returns; one more before them only warms the caches.
///
/// # Errors
/// Those of `sample`.
pub fn sample_median(count: usize, mut sample: impl FnMut() -> Result<Duration>) -> Result<f64> {
    sample()?;
    let times: Result<Vec<_>> = (0..count).map(|_| Ok(ms(sample()?))).collect();
    Ok(median(times?))
}

/// Milliseconds with all the nanoseconds in the fraction.
#[must_use]
pub fn ms(time: Duration) -> f64 {
    // Exact: below 2^53 ns, which are 104 days.
    time.as_nanos() as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_the_program_said() {
        let error = time(Command::new("sh").args(["-c", "echo no >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3: no"), "{error}");
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![3.0, 1.0, 200.0]), 3.0);
    }

    #[test]
    fn the_first_sample_does_not_count() {
        let mut next = [900, 5, 4, 1, 2, 3].into_iter();
        let median =
            sample_median(5, || Ok(Duration::from_millis(next.next().expect("six are taken")))).unwrap();
        assert_eq!(median, 3.0);
    }
}
