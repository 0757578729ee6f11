//! Files from the network into the cache: each is asked for by its hash, gone on with after an interruption, and tried
//! again a bounded number of times. It owns what is worth another try and what is too slow. `client` knows HTTP and
//! `blobs` the files; what the bytes mean is for others.

use std::io::Read;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, anyhow};

pub mod client;
mod resolve;

pub use client::{Answer, Client};

use crate::blobs::{Blobs, Claim, Partial};
use crate::digest::Digest;
use crate::progress::Progress;
use crate::text::quoted;

/// Tries in a row that bring nothing, and tries in all.
const TRIES_MAX: u32 = 5;
const TRIES_TOTAL_MAX: u32 = 30;
/// Of the waits between tries; a server that wants longer ones is told to the user instead.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A connection that brings less than this in that time is given up.
const STALL: Duration = Duration::from_secs(60);
const STALL_BYTES: u64 = 32 << 10;
const PIECE: usize = 128 << 10;

/// A file that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub digest: &'a Digest,
    /// When it is known before.
    pub size: Option<u64>,
    /// When it is not.
    pub size_max: u64,
}

/// Why a try failed, and whether another makes sense.
#[derive(Debug)]
pub struct Failure {
    pub error: Error,
    pub again: Again,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    Never,
    /// There is no way to the server: worth a try when there was one a moment ago.
    IfItWorked,
    /// The server may have said how long to wait.
    After(Option<Duration>),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), again: Again::Never }
    }
}

impl Failure {
    fn passing(error: Error) -> Self {
        Self { error, again: Again::After(None) }
    }
}

/// The file at `url`, from the cache or through it.
pub fn to_file(
    client: &Client,
    blobs: &Blobs,
    url: &str,
    wanted: Wanted<'_>,
    progress: &Progress,
) -> anyhow::Result<PathBuf> {
    let mut open = |from| client.get(url, &[], from).and_then(Answer::content);
    let plain = url.split('?').next().unwrap_or_default();
    to_file_by(client, blobs, wanted, progress, &mut open).with_context(|| format!("fetch {}", quoted(plain)))
}

/// The same where more than a URL is needed to ask for the file: `open` asks for it from some byte on.
pub fn to_file_by(
    client: &Client,
    blobs: &Blobs,
    wanted: Wanted<'_>,
    progress: &Progress,
    open: &mut dyn FnMut(u64) -> Result<Answer, Failure>,
) -> anyhow::Result<PathBuf> {
    let mut partial = match blobs.claim(wanted.digest)? {
        Claim::Here(path) => {
            progress.found(wanted.size.unwrap_or(0));
            return Ok(path);
        }
        Claim::Ours(partial) => partial,
    };
    progress.found(partial.length());
    // What is left of an earlier try may be broken, so a wrong hash is final only for what was fetched in one go.
    let resumed = partial.length() > 0;
    fill(client, &mut partial, wanted, progress, open)?;
    if resumed && !partial.is_right() {
        restart(&mut partial, progress)?;
        fill(client, &mut partial, wanted, progress, open)?;
    }
    partial.finish()
}

/// Tries until the file is complete.
fn fill(
    client: &Client,
    partial: &mut Partial,
    wanted: Wanted<'_>,
    progress: &Progress,
    open: &mut dyn FnMut(u64) -> Result<Answer, Failure>,
) -> anyhow::Result<()> {
    let (mut in_row, mut has_worked) = (0, false);
    for _ in 0..TRIES_TOTAL_MAX {
        let mut received = 0;
        let result = attempt(partial, wanted, progress, open, &mut received);
        let Err(failure) = result else { return Ok(()) };
        has_worked |= received > 0;
        in_row = if received > 0 { 1 } else { in_row + 1 };
        if in_row == TRIES_MAX {
            return Err(failure.error.context(format!("given up after {TRIES_MAX} tries")));
        }
        let Some(pause) = client.pause(failure.again, in_row, has_worked) else { return Err(failure.error) };
        sleep(pause);
    }
    Err(anyhow!("the connection was cut {TRIES_TOTAL_MAX} times; try again later"))
}

/// Asks for what is missing, and appends what comes.
fn attempt(
    partial: &mut Partial,
    wanted: Wanted<'_>,
    progress: &Progress,
    open: &mut dyn FnMut(u64) -> Result<Answer, Failure>,
    received: &mut u64,
) -> Result<(), Failure> {
    let length_max = wanted.size.unwrap_or(wanted.size_max);
    if partial.length() > length_max {
        restart(partial, progress)?;
    }
    if partial.length() > 0 && wanted.size == Some(partial.length()) {
        return Ok(());
    }
    let mut answer = open(partial.length())?;
    if answer.from != Some(partial.length()) {
        // The server does not know ranges, or has another one in mind: this one is of no use then.
        restart(partial, progress)?;
        if answer.from != Some(0) {
            return Err(Failure::passing(anyhow!("the server answers with another part than was asked for")));
        }
    }
    let end = answer.length.map(|length| partial.length().saturating_add(length));
    match (end, wanted.size) {
        (Some(end), Some(size)) if end != size => {
            return Err(anyhow!("the server has {end} bytes of it instead of {size}").into());
        }
        (Some(end), None) if end > length_max => return Err(too_long(length_max).into()),
        _ => (),
    }
    copy(&mut answer.body, partial, length_max, progress, received)?;
    match end.or(wanted.size) {
        Some(end) if partial.length() < end => {
            Err(Failure::passing(anyhow!("the connection was cut after {} of {end} bytes", partial.length())))
        }
        _ => Ok(()),
    }
}

fn copy(
    body: &mut dyn Read,
    partial: &mut Partial,
    length_max: u64,
    progress: &Progress,
    received: &mut u64,
) -> Result<(), Failure> {
    let mut piece = vec![0; PIECE];
    let (mut window, mut in_window) = (Instant::now(), 0);
    loop {
        let count = match body.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) => {
                return Err(Failure::passing(Error::new(error).context("the connection was cut")));
            }
        };
        if partial.length() + count as u64 > length_max {
            restart(partial, progress)?;
            return Err(too_long(length_max).into());
        }
        partial.append(&piece[..count])?;
        progress.advance(count as u64);
        *received += count as u64;
        in_window += count as u64;
        if window.elapsed() >= STALL {
            if in_window < STALL_BYTES {
                return Err(Failure::passing(anyhow!("the server sends next to nothing")));
            }
            (window, in_window) = (Instant::now(), 0);
        }
    }
}

fn too_long(length_max: u64) -> Error {
    anyhow!("it is longer than {length_max} bytes")
}

fn restart(partial: &mut Partial, progress: &Progress) -> anyhow::Result<()> {
    progress.retreat(partial.length());
    partial.restart()
}

#[cfg(test)]
mod tests;
