//! The SSH agent behind its filter: what a guest gets of it, and what it hears of a guest.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use gateway::agent::{Agent, FAILURE, Identity, LIST, MESSAGE_MAX, list};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

const MINE: Identity<'_> = Identity { key: b"my key", comment: b"me" };
const OTHER: Identity<'_> = Identity { key: b"other key", comment: b"me" };
const SIGNATURE: &[u8] = b"\x0e\x00\x00\x00\x04sign";

/// Both ends of a conversation: the guest's, and all that the agent was asked.
struct Scene {
    guest: UnixStream,
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
    _folder: tempfile::TempDir,
}

async fn read(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut message = vec![0; stream.read_u32().await.ok()?.try_into().unwrap()];
    stream.read_exact(&mut message).await.ok()?;
    Some(message)
}

async fn write(stream: &mut UnixStream, message: &[u8]) {
    stream.write_u32(message.len().try_into().unwrap()).await.unwrap();
    stream.write_all(message).await.unwrap();
}

impl Scene {
    /// An agent with two keys, the first of which may be used; to all but a list it says `answer`.
    async fn new(answer: &'static [u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let hears = Arc::clone(&asked);
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            while let Some(message) = read(&mut stream).await {
                hears.lock().unwrap().push(message.clone());
                let all = list([MINE, OTHER].iter());
                write(&mut stream, if message == LIST { &all } else { answer }).await;
            }
        });
        let (guest, gateway) = UnixStream::pair().unwrap();
        let agent = Agent { socket: Some(socket), keys: vec![MINE.fingerprint()] };
        let there = agent.connect().await.unwrap();
        tokio::spawn(async move { agent.serve(gateway, there).await });
        Self { guest, asked, _folder: folder }
    }

    async fn ask(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        write(&mut self.guest, message).await;
        timeout(Duration::from_secs(10), read(&mut self.guest)).await.expect("it answers or hangs up")
    }
}

fn sign(key: &[u8]) -> Vec<u8> {
    let length = u32::try_from(key.len()).unwrap().to_be_bytes();
    [&[13][..], &length, key, b"\x00\x00\x00\x04data\x00\x00\x00\x00"].concat()
}

#[tokio::test]
async fn only_the_named_key_is_listed_and_signs() {
    let mut scene = Scene::new(SIGNATURE).await;
    assert_eq!(scene.ask(&LIST).await.unwrap(), list([MINE].iter()));
    assert_eq!(scene.ask(&sign(MINE.key)).await.unwrap(), SIGNATURE);
    assert_eq!(scene.ask(&sign(OTHER.key)).await.unwrap(), FAILURE);
    // To add and remove keys, to lock, and extensions.
    for kind in [9, 17, 18, 19, 20, 21, 22, 23, 25, 26, 27] {
        assert_eq!(scene.ask(&[&[kind], &sign(MINE.key)[1..]].concat()).await.unwrap(), FAILURE, "{kind}");
    }
    assert_eq!(scene.ask(b"").await.unwrap(), FAILURE);
    assert_eq!(*scene.asked.lock().unwrap(), [LIST.to_vec(), sign(MINE.key)]);
}

#[tokio::test]
async fn what_no_agent_answers_does_not_reach_the_guest() {
    for bad in [&b"\x0e\x00\x00\x00\x04signmore"[..], b"\x0d", b"", b"anything"] {
        assert_eq!(Scene::new(bad).await.ask(&sign(MINE.key)).await.unwrap(), FAILURE, "{bad:?}");
    }
}

#[tokio::test]
async fn what_is_too_long_is_hung_up_on() {
    let mut scene = Scene::new(SIGNATURE).await;
    let largest = vec![0; MESSAGE_MAX];
    assert_eq!(scene.ask(&largest).await.unwrap(), FAILURE);
    scene.guest.write_u32(u32::try_from(MESSAGE_MAX + 1).unwrap()).await.unwrap();
    assert_eq!(read(&mut scene.guest).await, None);
}

#[tokio::test]
async fn without_keys_or_without_an_agent_there_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let gone = Agent { socket: Some(socket.clone()), keys: vec![MINE.fingerprint()] };
    gone.connect().await.unwrap_err();
    let _listener = UnixListener::bind(&socket).unwrap();
    gone.connect().await.unwrap();
    Agent { socket: Some(socket), keys: Vec::new() }.connect().await.unwrap_err();
    Agent { socket: None, keys: vec![MINE.fingerprint()] }.connect().await.unwrap_err();
}
