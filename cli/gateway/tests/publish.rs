//! Published ports as clients of this machine meet them: true sockets on loopback, the worker between, and a VMM that is the test.

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use gateway::handover;
use gateway::ports::{Listener, Opening, Port};
use gateway::worker::publish::SOCKET;
use gateway::worker::{Place, serve};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep, timeout};

const SOON: Duration = Duration::from_secs(10);
const CONNECTED: u8 = 1;
const REFUSED: u8 = 2;

/// What the supervisor and the VMM have, in the place of both.
struct Lab {
    folder: TempDir,
    channel: OwnedFd,
    listeners: Vec<Listener>,
}

/// Runs a test beside a worker.
fn test<F: Future<Output = ()>>(body: impl FnOnce(Lab) -> F) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["sandbox", "settings"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let (channel, theirs) = handover::pair().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(folder.path().join("gateway.sock")).unwrap();
    let place = Place {
        folder: folder.path().join("sandbox"),
        settings: folder.path().join("settings"),
        sandbox: "test".into(),
        ports: Some(theirs),
        ..Place::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async move {
        let gateway = spawn_local(serve(listener, place));
        tokio::select! {
            result = gateway => panic!("the gateway has ended: {result:?}"),
            () = timeout_of(body(Lab { folder, channel, listeners: Vec::new() })) => {}
        }
    });
}

async fn timeout_of(body: impl Future<Output = ()>) {
    timeout(6 * SOON, body).await.expect("it waits for something");
}

impl Lab {
    /// Publishes a port of the guest; where it is open.
    fn publish(&mut self, guest: u16) -> SocketAddr {
        let mut port = Port { address: None, host: 0, guest, any: true };
        let listeners = port.open().unwrap();
        let at = listeners[0].opening.at;
        self.listeners.extend(listeners);
        self.tell();
        at
    }

    fn unpublish(&mut self, guest: u16) {
        self.listeners.retain(|it| it.opening.guest != guest);
        self.tell();
    }

    fn tell(&self) {
        let openings: Vec<Opening> = self.listeners.iter().map(|it| it.opening).collect();
        let sockets: Vec<_> = self.listeners.iter().map(|it| it.socket.as_fd()).collect();
        handover::send(&self.channel, &openings, &sockets).unwrap();
    }

    /// The VMM's socket, and each connection's port by `serve`.
    fn vmm<F: Future<Output = ()> + 'static>(&self, serve: impl Fn(u16, UnixStream) -> F + 'static) {
        let path: &Path = self.folder.path();
        let listener = UnixListener::bind(path.join("sandbox").join(SOCKET)).unwrap();
        rustix::net::listen(&listener, 1024).unwrap();
        spawn_local(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let port = stream.read_u16().await.unwrap();
                spawn_local(serve(port, stream));
            }
        });
    }
}

/// As init does it for a service that says back what it hears.
async fn echo(_port: u16, mut stream: UnixStream) {
    // A client may go at any time.
    let _ = stream.write_u8(CONNECTED).await;
    let (mut reader, mut writer) = stream.split();
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
    let _ = writer.shutdown().await;
}

async fn refuse(_port: u16, mut stream: UnixStream) {
    let _ = stream.write_u8(REFUSED).await;
}

async fn is_reset(at: SocketAddr) {
    let start = Instant::now();
    let mut client = TcpStream::connect(at).await.unwrap();
    let error = timeout(SOON, client.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(start.elapsed() < SOON / 2);
}

async fn is_echoed(at: SocketAddr, word: &[u8]) {
    let mut client = TcpStream::connect(at).await.unwrap();
    client.write_all(word).await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = Vec::new();
    timeout(SOON, client.read_to_end(&mut heard)).await.unwrap().unwrap();
    assert_eq!(heard, word);
}

#[test]
fn both_ways_are_carried_whole_and_end_by_themselves() {
    test(async |mut lab: Lab| {
        lab.vmm(echo);
        lab.publish(3000);
        for at in lab.listeners.iter().map(|it| it.opening.at) {
            let (mut reader, mut writer) = TcpStream::connect(at).await.unwrap().into_split();
            let sent: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
            let copy = sent.clone();
            spawn_local(async move {
                writer.write_all(&copy).await.unwrap();
                writer.shutdown().await.unwrap();
            });
            let mut heard = Vec::new();
            reader.read_to_end(&mut heard).await.unwrap();
            assert!(heard == sent, "by {at}");
        }
    });
}

#[test]
fn what_nobody_serves_is_reset_at_once() {
    test(async |mut lab: Lab| {
        let at = lab.publish(3000);
        is_reset(at).await;
        lab.vmm(refuse);
        is_reset(at).await;
    });
}

#[test]
fn a_guest_that_hangs_up_or_talks_nonsense_harms_only_its_client() {
    test(async |mut lab: Lab| {
        lab.vmm(async |port, mut stream| match port {
            1 => drop(stream),
            2 => drop(stream.write_all(&[0xff; 4096]).await),
            _ => echo(port, stream).await,
        });
        let [silent, wild, fine] = [1, 2, 3].map(|guest| lab.publish(guest));
        is_reset(silent).await;
        is_reset(wild).await;
        is_echoed(fine, b"fine").await;
    });
}

#[test]
fn what_is_published_no_longer_ends_at_once_and_the_rest_goes_on() {
    test(async |mut lab: Lab| {
        lab.vmm(echo);
        let (first, second) = (lab.publish(1), lab.publish(2));
        let mut open = Vec::new();
        for at in [first, second] {
            let mut client = TcpStream::connect(at).await.unwrap();
            client.write_all(b"x").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'x');
            open.push(client);
        }
        lab.unpublish(1);
        let ended = timeout(SOON, open[0].read_u8()).await.expect("it is cut");
        ended.unwrap_err();
        open[1].write_all(b"y").await.unwrap();
        assert_eq!(open[1].read_u8().await.unwrap(), b'y');
        assert!(TcpStream::connect(first).await.is_err());
        let third = lab.publish(3);
        is_echoed(third, b"new").await;
    });
}

#[test]
fn a_port_whose_service_takes_nobody_leaves_room_for_others() {
    // Both ends of all clients are in this process.
    let known = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: known.maximum, maximum: known.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    test(async |mut lab: Lab| {
        lab.vmm(async |port, stream| match port {
            1 => sleep(10 * SOON).await,
            _ => echo(port, stream).await,
        });
        let (deaf, fine) = (lab.publish(1), lab.publish(2));
        let mut waiting = Vec::new();
        for _ in 0..1500 {
            waiting.push(timeout(SOON, TcpStream::connect(deaf)).await.unwrap().unwrap());
        }
        let start = Instant::now();
        is_echoed(fine, b"fine").await;
        assert!(start.elapsed() < SOON / 2);
        // Those that have waited for long enough are reset, and others have their turn.
        let first = timeout(3 * SOON, waiting[0].read_u8()).await.unwrap();
        assert_eq!(first.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_service_that_never_reads_stops_its_client() {
    test(async |mut lab: Lab| {
        lab.vmm(async |_, mut stream| {
            stream.write_u8(CONNECTED).await.unwrap();
            sleep(10 * SOON).await;
        });
        let at = lab.publish(1);
        let mut client = TcpStream::connect(at).await.unwrap();
        let mut taken = 0;
        while let Ok(written) = timeout(Duration::from_secs(1), client.write(&[7; 65536])).await {
            taken += written.unwrap();
            assert!(taken < 64 << 20, "somebody keeps it");
        }
    });
}
