//! From a fresh child process of the server to the command: terminal, user, folder, execve.
//! It owns the order in which a process gives its rights away. It runs only in the child, which ends with it: as the
//! command, or with a report of why not.

use std::ffi::CString;
use std::io::Read;
use std::path::Path;

use protocol::{Exec, Message, Reply};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::search::{self, NOT_EXECUTABLE, quoted};
use super::user::{self, User};
use crate::mark::{Mark, Port};
use crate::{housekeeping, sys, trust};

/// Coracle's own failure, as with `docker run`.
pub const FAILED: u8 = 125;
/// What is read of /etc/passwd and /etc/group: more than any real one has.
const DATABASE_MAX: u64 = 1 << 20;

/// The command's side of its standard streams.
pub enum Streams {
    /// The terminal's slave.
    Tty(OwnedFd),
    /// Pipes; what is `None` is /dev/null.
    Pipes([Option<OwnedFd>; 3]),
}

/// Why a command did not start: exit code and message.
type Failure = (u8, String);

/// Becomes the command. When that is not possible, writes a reply that says why to `report`, whose closing is
/// otherwise the sign of success.
pub fn launch(exec: Exec, streams: &Streams, port: Option<Port>, report: &OwnedFd) -> ! {
    if port.is_none() {
        // Not the first command: the server may have been spared from the out-of-memory killer by now.
        housekeeping::as_usual();
    }
    let (code, message) = prepare(&exec, streams).map_or_else(
        |failure| failure,
        |user| {
            let env = trust::complete(user::complete(exec.env, &user), Path::new("/"));
            become_command(&exec.argv, &env, port)
        },
    );
    if let Ok(reply) = (Reply::Failed { code, message }).encode() {
        let _ = rustix::io::write(report, &reply);
    }
    sys::exit(code)
}

/// Everything up to the execve, as the user that it returns.
fn prepare(exec: &Exec, streams: &Streams) -> Result<User, Failure> {
    let failed = |what: &str, errno: Errno| (FAILED, format!("{what}: {errno}"));
    sys::default_sigpipe();
    rustix::process::setsid().map_err(|it| failed("new session", it))?;
    let user = user::resolve(&exec.user, &database("/etc/passwd")?, &database("/etc/group")?)
        .map_err(|message| (FAILED, message))?;
    connect(streams, &user).map_err(|it| failed("standard streams", it))?;
    switch_user(&user).map_err(|it| failed("switch user", it))?;
    rustix::process::chdir(exec.cwd.as_slice())
        .map_err(|errno| (NOT_EXECUTABLE, format!("working directory {}: {errno}", quoted(&exec.cwd))))?;
    Ok(user)
}

/// Makes the streams the standard ones. The user must own them: /dev/stdout is opened anew by its path, and a shared
/// terminal would let others in.
fn connect(streams: &Streams, user: &User) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    match streams {
        Streams::Tty(slave) => {
            rustix::process::ioctl_tiocsctty(slave)?;
            rustix::fs::fchown(slave, Some(uid), None)?;
            (0..3).try_for_each(|number| assign(slave, number))
        }
        Streams::Pipes(pipes) => {
            let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            pipes.iter().zip(0..).try_for_each(|(pipe, number)| {
                if let Some(pipe) = pipe.as_ref().filter(|_| user.uid != 0) {
                    rustix::fs::fchown(pipe, Some(uid), Some(gid))?;
                }
                assign(pipe.as_ref().unwrap_or(&null), number)
            })
        }
    }
}

fn assign(fd: &impl AsFd, number: usize) -> Result<(), Errno> {
    match number {
        0 => rustix::stdio::dup2_stdin(fd),
        1 => rustix::stdio::dup2_stdout(fd),
        _ => rustix::stdio::dup2_stderr(fd),
    }
}

/// Groups first: only root may set them. A server that is not root, as in tests, can only start commands as itself.
fn switch_user(user: &User) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let current = rustix::process::geteuid();
    if !current.is_root() && current == uid {
        return Ok(());
    }
    let groups: Vec<_> = user.groups.iter().map(|&it| Gid::from_raw(it)).collect();
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_gid(gid)?;
    rustix::thread::set_thread_uid(uid)
}

/// A missing file lists nobody; numbers can still be used.
fn database(path: &str) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    match std::fs::File::open(path).and_then(|file| file.take(DATABASE_MAX).read_to_end(&mut text)) {
        Ok(_) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(text),
        Err(error) => Err((FAILED, format!("read {path}: {error}"))),
    }
}

fn become_command(argv: &[Vec<u8>], env: &[Vec<u8>], port: Option<Port>) -> Failure {
    let (Some(program), Some(argv), Some(environment)) = (argv.first(), strings(argv), strings(env)) else {
        return (FAILED, "the command is empty or holds a NUL".to_owned());
    };
    if let Some(port) = port {
        port.mark(Mark::AgentExec);
        // The right to write to the port would outlive the execve.
        drop(port);
    }
    search::search(program, env, |file| sys::execve(file, &argv, &environment))
}

fn strings(bytes: &[Vec<u8>]) -> Option<Vec<CString>> {
    bytes.iter().map(|it| CString::new(it.as_slice()).ok()).collect()
}
