//! The rules and the relay for real, in a network namespace of their own, with a gateway that does what the test says.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use protocol::{Answer, STREAM_LEN, Stream};
use rustix::io::Errno;

use super::*;

mod publish;

const INSIDE: &str = "CORACLE_TEST_NETWORK";
const MANY: usize = 1500;

/// Runs a test again, as root of a network of its own. False where it is that already.
fn outside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    let program = std::env::current_exe().unwrap();
    let mut unshare = Command::new("unshare");
    unshare.args(["-r", "-n"]).arg(program).args([
        "--exact",
        &format!("network::tests::{test}"),
        "--nocapture",
    ]);
    let output = unshare.env(INSIDE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    true
}

/// A gateway at a socket, which answers each stream in a thread of its own.
fn gateway(path: &Path, serve: impl Fn(Stream, UnixStream) + Send + Sync + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    rustix::net::listen(&listener, BACKLOG).unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().map(Result::unwrap) {
            let serve = Arc::clone(&serve);
            thread::spawn(move || {
                let mut stream = stream;
                let mut header = [0; STREAM_LEN];
                stream.read_exact(&mut header).unwrap();
                serve(Stream::decode(&header).unwrap(), stream);
            });
        }
    });
}

/// The interface that there is, and descriptors for many connections.
fn loopback() {
    let lo = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
    sys::loopback_up(&lo).unwrap();
    let (current, maximum) = (1 << 14, 1 << 14);
    let limit = rustix::process::Rlimit { current: Some(current), maximum: Some(maximum) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
}

/// The sandbox's network, whose way out is the socket at `path`.
fn network(path: &Path) {
    loopback();
    let [streams, names] = relay_sockets().unwrap();
    let path = path.to_owned();
    thread::spawn(move || {
        let connect = || {
            let stream = UnixStream::connect(&path).map_err(|_| Errno::CONNREFUSED)?;
            stream.set_nonblocking(true).unwrap();
            Ok(OwnedFd::from(stream))
        };
        relay::run(&streams, &names, connect).map(drop).unwrap();
    });
}

fn answer(stream: &mut UnixStream, answer: Answer) {
    stream.write_all(&[answer as u8]).unwrap();
}

fn echo(mut stream: UnixStream) {
    answer(&mut stream, Answer::Connected);
    let mut writer = stream.try_clone().unwrap();
    std::io::copy(&mut stream, &mut writer).unwrap();
    writer.shutdown(Shutdown::Write).unwrap();
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&to, Duration::from_secs(5))
}

fn dial(address: [u8; 4], port: u16) -> TcpStream {
    connect(SocketAddrV4::new(Ipv4Addr::from(address), port).into()).unwrap()
}

/// What a program sees of a connection that the gateway does not open, now or when it uses it.
fn is_reset(address: [u8; 4], port: u16) -> bool {
    let result = connect(SocketAddrV4::new(Ipv4Addr::from(address), port).into());
    let result = result.and_then(|mut stream| stream.read(&mut [0]));
    result.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

#[test]
fn all_that_leaves_goes_to_the_gateway() {
    if outside("all_that_leaves_goes_to_the_gateway") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.sock");
    gateway(&path, |to, mut stream| match to {
        Stream::Tcp(to) if to.port() == 443 => {
            assert_eq!(*to.ip(), Ipv4Addr::new(198, 18, 0, 7));
            echo(stream);
        }
        Stream::Tcp(to) if to.port() == 82 => {
            answer(&mut stream, Answer::Connected);
            stream.write_all(b"begin").unwrap();
        }
        Stream::Tcp(to) if to.port() == 83 => {
            answer(&mut stream, Answer::Connected);
            stream.write_all(b"all").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        }
        Stream::Tcp(to) if to.port() == 81 => answer(&mut stream, Answer::Unreachable),
        Stream::Tcp(_) | Stream::Container(_) | Stream::Agent => answer(&mut stream, Answer::Refused),
        Stream::Dns => answers(stream),
    });
    network(&path);

    let mut stream = dial([198, 18, 0, 7], 443);
    let mut reader = stream.try_clone().unwrap();
    let sent: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    let copy = sent.clone();
    let writer = thread::spawn(move || {
        stream.write_all(&copy).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(received == sent, "half of it is closed, and all of it comes back");

    for (address, port) in [([198, 18, 0, 7], 80), ([169, 254, 169, 254], 80), ([10, 0, 0, 1], 81)] {
        let start = Instant::now();
        assert!(is_reset(address, port));
        assert!(start.elapsed() < Duration::from_secs(5));
    }
    // What breaks off does not look whole, and what is whole does.
    let read = |port| {
        let mut heard = Vec::new();
        let end = dial([198, 18, 0, 7], port).read_to_end(&mut heard).map_err(|error| error.kind());
        (String::from_utf8(heard).unwrap(), end)
    };
    for _ in 0..50 {
        assert_eq!(read(82), ("begin".into(), Err(ErrorKind::ConnectionReset)));
        assert_eq!(read(83), ("all".into(), Ok(3)));
    }
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = connect(own.local_addr().unwrap()).unwrap();
    assert_eq!(own.accept().unwrap().1, there.local_addr().unwrap(), "the guest's own is left alone");
    assert!(connect("[2001:db8::1]:443".parse().unwrap()).is_err());
    names_are_asked();
    nothing_else_leaves();
}

/// Answers each question by itself, but for its kind.
fn answers(mut stream: UnixStream) {
    answer(&mut stream, Answer::Connected);
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut message).unwrap();
        message[2] |= 0x80;
        stream.write_all(&[&length[..], &message].concat()).unwrap();
    }
}

fn ask(server: &str, id: u8) -> Vec<u8> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.connect(server).unwrap();
    let question = [&[0xab, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x01a\x00\x00\x01\x00\x01"].concat();
    socket.send(&question).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).unwrap();
    assert_eq!(answer[..2], question[..2]);
    assert_eq!(answer[4..length], question[4..]);
    answer[..length].to_vec()
}

fn names_are_asked() {
    for server in ["192.0.2.1:53", "8.8.8.8:53"] {
        let asked: Vec<_> = (0..50).map(|id| thread::spawn(move || ask(server, id))).collect();
        for answer in asked {
            assert_eq!(answer.join().unwrap()[2..4], [0x81, 0], "of {server}");
        }
    }
    let mut stream = dial([8, 8, 8, 8], 53);
    stream.write_all(b"\x00\x0cabcdefghijkl").unwrap();
    let mut answer = [0; 14];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"\x00\x0cab\xe3defghijkl");
}

fn nothing_else_leaves() {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let sent = socket.connect("8.8.8.8:443").and_then(|()| socket.send(b"quic"));
    let heard = sent.and_then(|_| socket.recv(&mut [0]));
    heard.unwrap_err();
}

/// The gateway ends a stream for names on which nobody asks for two minutes.
#[test]
fn a_stream_for_names_that_has_ended_is_followed_by_another() {
    if outside("a_stream_for_names_that_has_ended_is_followed_by_another") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.sock");
    let (streams, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (begun, over) = (Arc::clone(&streams), Arc::clone(&ended));
    gateway(&path, move |_, mut stream| {
        begun.fetch_add(1, Ordering::SeqCst);
        answer(&mut stream, Answer::Connected);
        let mut message = [0; 2 + 19];
        stream.read_exact(&mut message).unwrap();
        message[4] |= 0x80;
        stream.write_all(&message).unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
        over.fetch_add(1, Ordering::SeqCst);
    });
    network(&path);
    for round in 1..=3 {
        assert_eq!(ask("192.0.2.1:53", 7)[2..4], [0x81, 0]);
        while ended.load(Ordering::SeqCst) < round {
            thread::sleep(Duration::from_millis(1));
        }
        // The relay hears of it in its own time.
        thread::sleep(Duration::from_millis(100));
        assert_eq!(streams.load(Ordering::SeqCst), round);
    }
}

#[test]
fn without_a_gateway_all_is_refused_at_once() {
    if outside("without_a_gateway_all_is_refused_at_once") {
        return;
    }
    network(Path::new("/nonexistent"));
    for _ in 0..100 {
        assert!(is_reset([1, 1, 1, 1], 443));
    }
    assert_eq!(ask("192.0.2.1:53", 7)[2..4], [0x81, 0x82], "the server has failed");
}

#[test]
fn many_connections_at_once_do_not_mix() {
    if outside("many_connections_at_once_do_not_mix") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.sock");
    let open = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&open);
    gateway(&path, move |_, stream| {
        seen.fetch_add(1, Ordering::Relaxed);
        echo(stream);
    });
    network(&path);
    let mut streams: Vec<_> = (0..MANY).map(|_| dial([198, 18, 0, 1], 80)).collect();
    for (index, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&index.to_be_bytes()).unwrap();
    }
    for (index, stream) in streams.iter_mut().enumerate() {
        let mut bytes = [0; 8];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(usize::from_be_bytes(bytes), index);
    }
    assert_eq!(open.load(Ordering::Relaxed), MANY);
}
