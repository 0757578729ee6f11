//! The user's SSH agent, as far as a sandbox may use it: it lists the keys that were named, signs with them, and does nothing else.
//! It owns that filter, and whom it asks. What the messages are is in `message`.

mod message;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream as Blocking;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

pub use message::{FAILURE, Identity, LIST, MESSAGE_MAX, Request, identities, is_signature, list, request};

/// Conversations at once; more wait. Each holds up to two messages.
const ROOM: usize = 16;
static CONVERSATIONS: Semaphore = Semaphore::const_new(ROOM);
/// For the agent to answer: a person may have to touch a key, or to confirm.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// For a list, which nobody has to confirm.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two requests of one client, and for it to take an answer.
const IDLE: Duration = Duration::from_secs(600);

/// Whom to ask, and about what.
#[derive(Debug, Default)]
pub struct Agent {
    /// Of who has started the sandbox.
    pub socket: Option<PathBuf>,
    /// Fingerprints; without one there is no agent.
    pub keys: Vec<String>,
}

/// A connection to an agent, and its place among them.
#[derive(Debug)]
pub struct Conversation {
    agent: UnixStream,
    _permit: SemaphorePermit<'static>,
}

impl Agent {
    /// A connection to it, once there is room for one: the agent has other users. It may be gone, as it lives as long as its own
    /// session.
    pub async fn connect(&self) -> io::Result<Conversation> {
        let socket = self.socket.as_ref().filter(|_| !self.keys.is_empty());
        let socket = socket.ok_or(io::ErrorKind::NotFound)?;
        let permit = CONVERSATIONS.acquire().await.map_err(io::Error::other)?;
        Ok(Conversation { agent: UnixStream::connect(socket).await?, _permit: permit })
    }

    /// Answers a client until it ends. Nothing that it says reaches the agent but what is allowed.
    pub async fn serve(&self, mut client: UnixStream, conversation: Conversation) -> io::Result<()> {
        let Conversation { mut agent, _permit } = conversation;
        while let Some(message) = timeout(IDLE, read(&mut client)).await?? {
            let answer = timeout(ANSWER_TIMEOUT, self.answer(&message, &mut agent)).await??;
            timeout(IDLE, write(&mut client, &answer)).await??;
        }
        Ok(())
    }

    async fn answer(&self, message: &[u8], agent: &mut UnixStream) -> io::Result<Vec<u8>> {
        let answer = match request(message) {
            Some(Request::Sign { key }) if self.may_use(key) => ask(agent, message).await?,
            Some(Request::List) => ask(agent, message).await?,
            _ => return Ok(FAILURE.to_vec()),
        };
        Ok(match identities(&answer) {
            Some(all) => list(all.iter().filter(|it| self.may_use(it.key))),
            None if is_signature(&answer) && message != LIST => answer,
            None => FAILURE.to_vec(),
        })
    }

    fn may_use(&self, key: &[u8]) -> bool {
        self.keys.contains(&message::fingerprint(key))
    }
}

async fn ask(agent: &mut UnixStream, message: &[u8]) -> io::Result<Vec<u8>> {
    write(agent, message).await?;
    read(agent).await?.ok_or(io::ErrorKind::UnexpectedEof.into())
}

/// `None` at the end.
async fn read(from: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let length = match from.read_u32().await {
        Ok(length) => usize::try_from(length).map_err(io::Error::other)?,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > MESSAGE_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    from.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write(to: &mut UnixStream, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_be_bytes(), message].concat()).await
}

/// The keys of an agent by their names, for who waits for that: each has to be a fingerprint or a comment of one key that it has.
///
/// # Errors
/// When there is no agent, or no such key, with what there is.
pub fn find(socket: Option<&Path>, names: &[String]) -> Result<Vec<String>> {
    let socket = socket.context("SSH_AUTH_SOCK is not set; start an agent, or leave out --ssh-agent")?;
    let answer =
        all(socket).with_context(|| format!("ask the SSH agent at {} (SSH_AUTH_SOCK)", socket.display()))?;
    let known = identities(&answer).context("the SSH agent's answer is not understood")?;
    let found = names.iter().map(|name| {
        let is_it = |it: &&Identity<'_>| it.fingerprint() == *name || it.comment == name.as_bytes();
        let fits: Vec<_> = known.iter().filter(is_it).map(Identity::fingerprint).collect();
        let shown: String = known.iter().map(|it| format!("\n  {it}")).collect();
        ensure!(!fits.is_empty(), "the SSH agent has no key {name}; it has:{shown}");
        ensure!(fits.len() == 1, "the SSH agent has several keys {name}; give a fingerprint:{shown}");
        Ok(fits.concat())
    });
    found.collect()
}

fn all(socket: &Path) -> io::Result<Vec<u8>> {
    let mut agent = Blocking::connect(socket)?;
    agent.set_read_timeout(Some(LIST_TIMEOUT))?;
    agent.write_all(&[&1u32.to_be_bytes()[..], &LIST].concat())?;
    let mut length = [0; 4];
    agent.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
    let mut answer = vec![0; length.min(MESSAGE_MAX)];
    agent.read_exact(&mut answer)?;
    Ok(answer)
}
