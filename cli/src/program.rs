//! Programs of the host that are asked a question: a bounded answer, in bounded time. It knows none of them.

use std::io::{ErrorKind, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Runs it with `input` on its standard input; what it writes to its standard output comes back. Errors other than its
/// own: it is not there, answers with more than `length_max` bytes, or takes longer than `timeout`; then it is killed.
pub fn ask(
    command: &mut Command,
    input: &[u8],
    length_max: usize,
    timeout: Duration,
) -> Result<(ExitStatus, Vec<u8>)> {
    let deadline = Instant::now() + timeout;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("it cannot be started")?;
    let answer = converse(&mut child, input, length_max, deadline);
    if answer.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().context("wait for it")?;
    Ok((status, answer?))
}

fn converse(child: &mut Child, input: &[u8], length_max: usize, deadline: Instant) -> Result<Vec<u8>> {
    // A pipe holds more than any question that there is; it can be refused, which the answer then tells.
    let mut stdin = child.stdin.take().expect("it is a pipe");
    match stdin.write_all(input) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error).context("write to it"),
        _ => drop(stdin),
    }
    let mut stdout = child.stdout.take().expect("it is a pipe");
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        wait_for(&mut PollFd::new(&stdout, PollFlags::IN), deadline)?;
        let count = stdout.read(&mut piece).context("read from it")?;
        if count == 0 {
            break;
        }
        answer.extend_from_slice(&piece[..count]);
        ensure!(answer.len() <= length_max, "its answer is longer than {length_max} bytes");
    }
    let pid = Pid::from_child(child);
    let process = pidfd_open(pid, PidfdFlags::empty()).context("open the process")?;
    wait_for(&mut PollFd::new(&process, PollFlags::IN), deadline)?;
    Ok(answer)
}

fn wait_for(what: &mut PollFd<'_>, deadline: Instant) -> Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("the time is too long")?;
        match poll(std::slice::from_mut(what), Some(&timeout)) {
            Ok(0) => anyhow::bail!("it does not answer"),
            Err(rustix::io::Errno::INTR) => (),
            other => return other.map(drop).context("wait for it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout: Duration) -> Result<(ExitStatus, Vec<u8>)> {
        ask(Command::new("sh").args(["-c", script]), b"question\n", 100, timeout)
    }

    #[test]
    fn answers_are_bounded() {
        let long = Duration::from_secs(60);
        let (status, answer) = sh("cat; exit 3", long).unwrap();
        assert_eq!((status.code(), answer.as_slice()), (Some(3), &b"question\n"[..]));
        assert_eq!(sh("exec <&-; echo x", long).unwrap().1, b"x\n");
        assert!(sh("yes", long).unwrap_err().to_string().contains("longer"));
        let start = Instant::now();
        assert!(sh("sleep 60", Duration::from_millis(50)).is_err());
        assert!(sh("exec >&-; sleep 60", Duration::from_millis(50)).is_err());
        assert!(start.elapsed() < Duration::from_secs(30));
        assert!(ask(&mut Command::new("/nonexistent"), b"", 1, long).is_err());
    }
}
