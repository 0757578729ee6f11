//! Interception when one side misbehaves: breaks off, stalls, or changes the protocol. The host's side is written by hand here.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::{CANARY, H1, HOST, Host, World, contains, test};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;

/// A host that does with its one connection what `play` says.
async fn host<F: Future<Output = ()> + Send + 'static>(
    world: &World,
    play: impl FnOnce(TlsStream<TcpStream>) -> F + Send + 'static,
) -> Host {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = Host(listener.local_addr().unwrap());
    let acceptor = world.acceptor(HOST, H1, true);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        play(acceptor.accept(stream).await.unwrap()).await;
    });
    host
}

/// Reads up to the end of a head.
async fn head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { break };
        text.push(byte);
    }
    String::from_utf8_lossy(&text).into_owned()
}

const GET: &str = "GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n";

/// What a guest gets for a GET, to the end of its connection.
async fn get(world: &World, host: Host) -> String {
    let secrets = world.canary();
    let (mut guest, _) = world.guest(host, &secrets, H1).await;
    guest.write_all(GET.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = guest.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_body_that_breaks_off_does_not_look_whole() {
    test(async |world| {
        let lengths = [
            ("Content-Length: 100", "begin"),
            ("Transfer-Encoding: chunked", "5\r\nbegin\r\n"),
            ("Transfer-Encoding: chunked", "5\r\nbegin\r\nzz\r\n"),
            // What could be the secret's beginning is held back, and gone with the rest.
            ("Content-Length: 100", "begincanary-5f1d"),
        ];
        for (length, begin) in lengths {
            let host = host(&world, async move |mut stream| {
                head(&mut stream).await;
                let text = format!("HTTP/1.1 200 OK\r\n{length}\r\n\r\n{begin}");
                stream.write_all(text.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
            })
            .await;
            let answer = get(&world, host).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("begin"), "{answer}");
            let ended = answer.ends_with("0\r\n\r\n") || answer.len() > 200;
            assert!(!ended && !answer.contains("canary"), "{answer}");
        }
    });
}

#[test]
fn a_host_that_says_nothing_or_nonsense_is_an_end_and_no_answer() {
    test(async |world| {
        for said in [
            "",
            "HTTP/1.1 200",
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 99999 x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\0c\r\n\r\n",
        ] {
            let host = host(&world, async move |mut stream| {
                head(&mut stream).await;
                stream.write_all(said.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            })
            .await;
            assert_eq!(get(&world, host).await, "", "{said}");
        }
        // A switch that nobody asked for would be a way past all checks.
        let host = host(&world, async move |mut stream| {
            head(&mut stream).await;
            let text =
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nmore";
            stream.write_all(text.as_bytes()).await.unwrap();
            head(&mut stream).await;
        })
        .await;
        let answer = get(&world, host).await;
        assert!(!answer.contains("101") && !answer.contains("more"), "{answer}");
    });
}

#[test]
fn a_client_that_leaves_ends_the_hosts_work() {
    test(async |world| {
        let (tell, told) = tokio::sync::oneshot::channel();
        let host = host(&world, async move |mut stream| {
            head(&mut stream).await;
            let mut rest = Vec::new();
            let result = stream.read_to_end(&mut rest).await;
            tell.send((rest, result.is_err())).unwrap();
        })
        .await;
        let secrets = world.canary();
        let (mut guest, served) = world.guest(host, &secrets, H1).await;
        guest
            .write_all(
                format!(
                    "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n"
                )
                .as_bytes(),
            )
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(guest);
        let (rest, _) = told.await.unwrap();
        assert!(contains(&rest, "begin") && !rest.ends_with(b"0\r\n\r\n"), "{rest:?}");
        assert!(served.await.unwrap().is_err());
    });
}

#[test]
fn a_slow_host_is_waited_for() {
    test(async |world| {
        let host = host(&world, async move |mut stream| {
            head(&mut stream).await;
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow" {
                stream.write_all(&[*byte]).await.unwrap();
                stream.flush().await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        assert!(get(&world, host).await.ends_with("\r\n\r\nslow"));
    });
}

#[test]
fn a_client_that_reads_nothing_holds_the_host_back() {
    test(async |world| {
        let (tell, told) = tokio::sync::oneshot::channel();
        let host = host(&world, async move |mut stream| {
            head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await.unwrap();
            let (mut sent, piece) = (0, [0; 64 << 10]);
            while let Ok(result) =
                tokio::time::timeout(Duration::from_millis(500), stream.write_all(&piece)).await
            {
                result.unwrap();
                sent += piece.len();
            }
            tell.send(sent).unwrap();
        })
        .await;
        let secrets = world.canary();
        let (mut guest, _served) = world.guest(host, &secrets, H1).await;
        guest.write_all(GET.as_bytes()).await.unwrap();
        // What the sockets hold on their own is most of it.
        let sent = told.await.unwrap();
        assert!(sent < 16 << 20, "{sent}");
    });
}

#[test]
fn a_websocket_is_carried_with_the_credential_on_its_first_request() {
    test(async |world| {
        let (tell, told) = tokio::sync::oneshot::channel();
        let host = host(&world, async move |mut stream| {
            tell.send(head(&mut stream).await).unwrap();
            let text = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                        Sec-WebSocket-Accept: x\r\n\r\nwelcome";
            stream.write_all(text.as_bytes()).await.unwrap();
            let mut buffer = [0; 4];
            while stream.read_exact(&mut buffer).await.is_ok() {
                stream.write_all(&buffer).await.unwrap();
            }
            stream.write_all(b"bye").await.unwrap();
            stream.shutdown().await.unwrap();
        })
        .await;
        let secrets = world.canary();
        let (mut guest, served) = world.guest(host, &secrets, H1).await;
        let text = format!(
            "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: k\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer theirs\r\n\r\n"
        );
        guest.write_all(text.as_bytes()).await.unwrap();
        let answer = head(&mut guest).await;
        assert!(
            answer.starts_with("HTTP/1.1 101 ") && answer.contains("sec-websocket-accept: x"),
            "{answer}"
        );
        assert!(answer.contains("upgrade: websocket") && !answer.contains("close"), "{answer}");
        let mut buffer = [0; 7];
        guest.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"welcome");
        for word in [b"ping", b"pong"] {
            guest.write_all(word).await.unwrap();
            let mut buffer = [0; 4];
            guest.read_exact(&mut buffer).await.unwrap();
            assert_eq!(&buffer, word);
        }
        // Half-closed, the other half goes on.
        guest.shutdown().await.unwrap();
        let mut rest = String::new();
        guest.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "bye");
        served.await.unwrap().unwrap();
        let asked = told.await.unwrap().to_lowercase();
        assert!(
            asked.contains(&format!("authorization: bearer {CANARY}\r\n")) && !asked.contains("theirs"),
            "{asked}"
        );
        assert!(
            asked.contains("connection: upgrade\r\n") && asked.contains("upgrade: websocket\r\n"),
            "{asked}"
        );
    });
}

#[test]
fn a_websocket_ends_with_its_secret() {
    test(async |world| {
        let host = host(&world, async move |mut stream| {
            head(&mut stream).await;
            let text =
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            stream.write_all(text.as_bytes()).await.unwrap();
            head(&mut stream).await;
        })
        .await;
        let secrets = Arc::new(world.canary());
        let (mut guest, served) = world.guest(host, &secrets, H1).await;
        let text =
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
        guest.write_all(text.as_bytes()).await.unwrap();
        assert!(head(&mut guest).await.starts_with("HTTP/1.1 101 "));
        drop(secrets);
        assert!(served.await.unwrap().is_err());
        assert_eq!(guest.read(&mut [0; 1]).await.unwrap_or(0), 0);
    });
}
