//! Where a secret comes from when it is used: it is known, or a command of the user's is asked for it.
//! It owns the bounds of such a command, in time, size and how often it runs. It knows no service.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::timeout;

/// A secret is never longer; of what a command says, no more is read.
pub const SECRET_MAX: usize = 16 << 10;
/// A person may have to touch a key.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a command's answer is used: programs make many requests, and those tokens live for an hour or so.
const FRESH: Duration = Duration::from_secs(300);
/// A command that fails is not run for each request that a guest makes.
const FAILED: Duration = Duration::from_secs(10);

pub enum Source {
    Known(String),
    Command { line: String, last: Arc<Mutex<Last>> },
}

/// When a command was asked, and what it said.
type Last = Option<(Instant, Result<String, String>)>;

impl Source {
    pub fn command(line: String) -> Self {
        Self::Command { line, last: Arc::default() }
    }

    /// The secret, now. Errors never quote what was answered.
    pub async fn secret(&self) -> Result<String> {
        let (line, last) = match self {
            Self::Known(secret) => return Ok(secret.clone()),
            Self::Command { line, last } => (line, last),
        };
        // A task of its own: who asks may go away, and ask again, and the command is not to be run each time.
        let answer = tokio::spawn(renew(line.clone(), Arc::clone(last)));
        answer
            .await
            .context("the command for the credential is not waited for")?
            .map_err(|error| anyhow!(error))
    }
}

/// Whoever comes meanwhile waits for the same answer.
async fn renew(line: String, last: Arc<Mutex<Last>>) -> Result<String, String> {
    let mut last = last.lock().await;
    if let Some((when, answer)) = &*last
        && when.elapsed() < if answer.is_ok() { FRESH } else { FAILED }
    {
        return answer.clone();
    }
    let answer = ask(&line).await.context("the command for the credential fails");
    let answer = answer.map_err(|error| format!("{error:#}"));
    *last = Some((Instant::now(), answer.clone()));
    answer
}

/// A command, and what it has started: those of one that has not answered end with it.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Its number is its group's, and not another's before it is waited for.
        let pid = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

async fn ask(line: &str) -> Result<String> {
    let mut command = Command::new("sh");
    command.arg("-c").arg(line).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let child = command.kill_on_drop(true).process_group(0).spawn().context("it cannot be started")?;
    let mut child = Group(child);
    let stdout = child.0.stdout.take().expect("it is a pipe");
    let talk = async {
        let mut answer = Vec::new();
        let limit = u64::try_from(SECRET_MAX + 1).expect("a small number");
        stdout.take(limit).read_to_end(&mut answer).await.context("read from it")?;
        ensure!(answer.len() <= SECRET_MAX, "its answer is longer than {SECRET_MAX} bytes");
        let status = child.0.wait().await.context("wait for it")?;
        ensure!(status.success(), "it ends with {status}");
        check(answer)
    };
    timeout(COMMAND_TIMEOUT, talk).await.context("it does not answer")?
}

/// Bytes as a secret: one line that a header can hold, without the line's end.
pub fn check(mut bytes: Vec<u8>) -> Result<String> {
    while matches!(bytes.last(), Some(b'\n' | b'\r')) {
        bytes.pop();
    }
    ensure!(!bytes.is_empty(), "there is no secret in it");
    ensure!(bytes.len() <= SECRET_MAX, "it is longer than {SECRET_MAX} bytes");
    ensure!(
        bytes.iter().all(u8::is_ascii_graphic),
        "a secret is one word of letters, digits and signs, without spaces or line ends"
    );
    Ok(String::from_utf8(bytes).expect("it is ASCII"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_command_is_asked_when_needed_and_not_more_often() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let source = Source::command(format!("echo x >> {}; echo s3cret", log.display()));
        block_on(async {
            assert_eq!(source.secret().await.unwrap(), "s3cret");
            assert_eq!(source.secret().await.unwrap(), "s3cret");
        });
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "x\n");
        let failing = Source::command(format!("echo y >> {}; echo s3cret; exit 3", log.display()));
        block_on(async {
            for _ in 0..2 {
                let error = format!("{:#}", failing.secret().await.unwrap_err());
                assert!(error.contains("exit status: 3") && !error.contains("s3cret"), "{error}");
            }
        });
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "x\ny\n");
    }

    #[test]
    fn bad_answers_are_refused_without_being_shown() {
        for line in
            ["yes s3cret", "echo s3 cret", "true", "printf 's3cret\\nmore'", "nonexistent-s3cret 2>&1"]
        {
            let error = format!("{:#}", block_on(Source::command(line.into()).secret()).unwrap_err());
            assert!(!error.contains("s3cret"), "{line}: {error}");
        }
        assert_eq!(check(b"key\r\n".to_vec()).unwrap(), "key");
        for bad in ["", "\n", "a b", "a\tb", "k\u{e9}y", "a\0b"] {
            check(bad.into()).unwrap_err();
        }
    }
}
