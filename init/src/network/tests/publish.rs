//! Published ports for real: services on the loopback interface of a network of their own, and a host that is the test.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, ToSocketAddrs};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use protocol::{Answer, Publish};
use tempfile::TempDir;

use super::{loopback, outside};
use crate::network::publish;

/// The way of the host's connections, as long as the folder is there.
struct Host {
    folder: TempDir,
}

impl Host {
    fn new() -> Self {
        loopback();
        let host = Self { folder: tempfile::tempdir().unwrap() };
        let listener = UnixListener::bind(host.path()).unwrap();
        rustix::net::listen(&listener, 1024).unwrap();
        listener.set_nonblocking(true).unwrap();
        thread::spawn(move || publish::run(&listener.into()).map(drop).unwrap());
        host
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("host.sock")
    }

    fn stream(&self, head: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(head).unwrap();
        stream
    }

    /// The answer, and then the service.
    fn visit(&self, port: u16) -> (Answer, UnixStream) {
        let mut stream = self.stream(&Publish { port }.encode());
        let mut answer = [0];
        stream.read_exact(&mut answer).unwrap();
        (Answer::decode(answer[0]).unwrap(), stream)
    }
}

/// A service that says back what it hears until that ends; its port.
fn echo(at: impl ToSocketAddrs) -> u16 {
    let listener = TcpListener::bind(at).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            thread::spawn(move || {
                let mut writer = stream.try_clone().unwrap();
                // A client may go at any time.
                let _ = std::io::copy(&mut stream, &mut writer);
            });
        }
    });
    port
}

fn is_echoed(mut stream: UnixStream, word: &[u8]) {
    stream.write_all(word).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, word);
}

#[test]
fn a_service_is_found_wherever_it_listens() {
    if outside("publish::a_service_is_found_wherever_it_listens") {
        return;
    }
    let host = Host::new();
    for at in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
        let (answer, stream) = host.visit(echo(at));
        assert_eq!(answer, Answer::Connected, "{at}");
        is_echoed(stream, at.as_bytes());
    }
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (answer, mut stream) = host.visit(closed);
    assert_eq!((answer, stream.read(&mut [0]).unwrap()), (Answer::Refused, 0));
}

#[test]
fn what_is_no_port_is_hung_up_on() {
    if outside("publish::what_is_no_port_is_hung_up_on") {
        return;
    }
    let host = Host::new();
    let mut broken = host.stream(&[0, 0, 1, 2, 3]);
    // Bytes that were not read are lost, which the kernel may tell by a reset.
    assert!(!broken.read(&mut [0]).is_ok_and(|count| count > 0));
    drop(host.stream(&[1]));
    let port = echo("127.0.0.1:0").to_be_bytes();
    let mut slow = host.stream(&port[..1]);
    thread::sleep(Duration::from_millis(20));
    slow.write_all(&port[1..]).unwrap();
    slow.read_exact(&mut [0]).unwrap();
    is_echoed(slow, b"slow");
}

#[test]
fn both_ways_are_carried_whole_and_end_by_themselves() {
    if outside("publish::both_ways_are_carried_whole_and_end_by_themselves") {
        return;
    }
    let host = Host::new();
    let port = echo("127.0.0.1:0");
    // What is sent before the answer waits for the service.
    let mut stream = host.stream(&Publish { port }.encode());
    let sent: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut writer, copy) = (stream.try_clone().unwrap(), sent.clone());
    let writer = thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(received[0] == Answer::Connected as u8 && received[1..] == sent);
}

#[test]
fn a_service_that_takes_nobody_holds_up_no_other() {
    if outside("publish::a_service_that_takes_nobody_holds_up_no_other") {
        return;
    }
    let host = Host::new();
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&deaf, 1).unwrap();
    let port = deaf.local_addr().unwrap().port();
    let mut waiting: Vec<_> = (0..300).map(|_| host.stream(&Publish { port }.encode())).collect();
    let start = Instant::now();
    let (answer, stream) = host.visit(echo("127.0.0.1:0"));
    assert_eq!(answer, Answer::Connected);
    is_echoed(stream, b"others");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    // The last of them is given up, in the end, and all that are closed make room.
    let mut answer = [0];
    waiting.last_mut().unwrap().read_exact(&mut answer).unwrap();
    assert_eq!(Answer::decode(answer[0]), Ok(Answer::Refused));
    drop(waiting);
    let port = echo("127.0.0.1:0");
    for _ in 0..300 {
        is_echoed(host.visit(port).1, b"again");
    }
}
