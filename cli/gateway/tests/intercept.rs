//! Requests through interception, from a guest's client to a true host: what arrives, what comes back, and that the secret goes
//! nowhere else. Each test fails when the guest was given the secret, in whatever form it was asked to be.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gateway::credentials::Origin;
use gateway::intercept::{is_untrusted, serve};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{CANARY, H1, H2, HOST, Host, Seen, World, contains, full, ok, test};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

fn request(path: &str) -> http::request::Builder {
    Request::post(format!("https://{HOST}{path}")).header("host", HOST)
}

fn bearer() -> String {
    format!("Bearer {CANARY}")
}

/// Writes a request as it is, and returns all that comes back.
async fn raw(world: &World, host: Host, text: &str) -> String {
    let secrets = world.canary();
    let (mut guest, _) = world.guest(host, &secrets, H1).await;
    // What is refused before it is whole is not read to its end.
    let _ = guest.write_all(text.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = guest.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn ours_replaces_theirs_by_http1() {
    test(async |world| {
        let host = world.host(&["h2", "http/1.1"], ok).await;
        let secrets = world.canary();
        let (guest, _) = world.guest(host, &secrets, H1).await;
        let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(guest)).await.unwrap();
        tokio::spawn(driver);
        for number in 0..3 {
            let request = Request::post(format!("/v1/messages?n={number}&api_key=theirs"))
                .header("host", HOST)
                .header("authorization", "Bearer theirs")
                .header("x-api-key", "theirs")
                .header("cookie", "login=theirs")
                .header("x-kept", "yes")
                .body(Full::<Bytes>::from(vec![b'x'; 100_000]))
                .unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(answer.collect().await.unwrap().to_bytes(), "fine");
        }
        let seen = world.seen.lock().unwrap();
        assert_eq!(seen.len(), 3);
        assert_eq!(seen[2].line, "POST /v1/messages?n=2");
        for request in &*seen {
            assert_eq!(request.all("authorization"), [bearer()]);
            assert_eq!((request.all("host"), request.all("x-kept")), (vec![HOST], vec!["yes"]));
            assert!(!request.headers.iter().any(|(_, value)| value.contains("theirs")), "{request:?}");
            assert_eq!(request.body.len(), 100_000);
        }
    });
}

#[test]
fn ours_replaces_theirs_by_http2_with_trailers() {
    test(async |world| {
        let answer = |_: Seen| {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let frames = [Ok(Frame::data(Bytes::from("fine"))), Ok(Frame::trailers(trailers))];
            Response::new(StreamBody::new(tokio_stream(frames)).boxed())
        };
        let host = world.host(&["h2", "http/1.1"], answer).await;
        let secrets = world.canary();
        let (guest, _) = world.guest(host, &secrets, &["h2", "http/1.1"]).await;
        let (sender, driver) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(guest)).await.unwrap();
        tokio::spawn(driver);
        let mut calls = Vec::new();
        for number in 0..20 {
            let mut trailers = HeaderMap::new();
            trailers.insert("authorization", HeaderValue::from_static("theirs"));
            trailers.insert("x-sum", HeaderValue::from_static("1"));
            let frames = [Ok(Frame::data(Bytes::from("question"))), Ok(Frame::trailers(trailers))];
            let request = Request::post(format!("https://{HOST}/{number}"))
                .header("te", "trailers")
                .header("authorization", "Bearer theirs")
                .body(StreamBody::new(tokio_stream(frames)).boxed())
                .unwrap();
            let mut sender = sender.clone();
            calls.push(tokio::spawn(async move { sender.send_request(request).await }));
        }
        for call in calls {
            let answer = call.await.unwrap().unwrap().into_body().collect().await.unwrap();
            assert_eq!(answer.trailers().unwrap().get("grpc-status").unwrap(), "0");
            assert_eq!(answer.to_bytes(), "fine");
        }
        let seen = world.seen.lock().unwrap();
        assert_eq!(seen.len(), 20);
        for request in &*seen {
            assert_eq!(request.all("authorization"), [bearer()]);
            assert_eq!((request.trailers, &request.body[..]), (1, &b"question"[..]));
            assert!(request.line.starts_with(&format!("POST https://{HOST}/")), "{}", request.line);
        }
    });
}

/// A stream of what is there already.
fn tokio_stream<T: Send + Sync + 'static>(
    items: impl IntoIterator<Item = std::io::Result<Frame<T>>, IntoIter: Send + Sync + 'static>,
) -> impl futures_core::Stream<Item = std::io::Result<Frame<T>>> + Send + Sync {
    struct Items<I>(I);
    impl<I: Iterator + Unpin> futures_core::Stream for Items<I> {
        type Item = I::Item;
        fn poll_next(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<I::Item>> {
            std::task::Poll::Ready(self.0.next())
        }
    }
    Items(Box::new(items.into_iter()))
}

#[test]
fn a_request_for_another_host_goes_nowhere() {
    test(async |world| {
        let host = world.host(H1, ok).await;
        for (head, status) in [
            ("GET / HTTP/1.1\r\nHost: evil.example\r\n", 421),
            ("GET http://api.example.com/ HTTP/1.1\r\nHost: api.example.com\r\n", 421),
            ("GET https://evil.example/ HTTP/1.1\r\nHost: api.example.com\r\n", 421),
            ("GET / HTTP/1.1\r\nHost: api.example.com\r\nHost: evil.example\r\n", 400),
            ("GET / HTTP/1.1\r\n", 400),
            ("CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com\r\n", 405),
            ("TRACE / HTTP/1.1\r\nHost: api.example.com\r\n", 405),
            ("GET / HTTP/1.1\r\nHost: api.example.com\r\nX: a\0b\r\n", 400),
            ("GET / HTTP/1.1\r\nHost : api.example.com\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: api.example.com\r\nTransfer-Encoding: xchunked\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 1\r\nContent-Length: 2\r\n", 400),
        ] {
            let answer = raw(&world, host, &format!("{head}\r\n")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {answer}");
        }
        assert_eq!(world.seen.lock().unwrap().len(), 0);
    });
}

#[test]
fn what_has_two_lengths_is_one_request() {
    test(async |world| {
        let host = world.host(H1, ok).await;
        let inner = "GET /smuggled HTTP/1.1\r\nHost: api.example.com\r\n\r\n";
        let text = format!(
            "POST /a HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\nContent-Length: {}\r\n\
             Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{inner}\r\n0\r\n\r\n",
            7,
            inner.len()
        );
        raw(&world, host, &text).await;
        let seen = world.seen.lock().unwrap();
        assert!(seen.len() <= 1);
        for request in &*seen {
            assert_eq!((request.line.as_str(), &request.body[..]), ("POST /a", inner.as_bytes()));
        }
    });
}

#[test]
fn a_head_without_end_is_refused() {
    test(async |world| {
        let host = world.host(H1, ok).await;
        let text = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{}\r\n", "X: y\r\n".repeat(1000));
        assert!(raw(&world, host, &text).await.starts_with("HTTP/1.1 431 "));
        let text = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: {}\r\n\r\n", "y".repeat(1 << 20));
        let answer = raw(&world, host, &text).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
        assert_eq!(world.seen.lock().unwrap().len(), 0);
    });
}

#[test]
fn a_redirect_is_the_clients_to_follow() {
    test(async |world| {
        let answer = |_: Seen| {
            let redirect = Response::builder().status(307).header("location", "https://evil.example/steal");
            redirect.body(full("")).unwrap()
        };
        let host = world.host(H1, answer).await;
        let answer =
            raw(&world, host, &format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
        assert!(
            answer.starts_with("HTTP/1.1 307 ")
                && answer.contains("location: https://evil.example/steal\r\n")
        );
        assert_eq!(world.seen.lock().unwrap().len(), 1);
    });
}

/// What a host hears over TLS, from a guest that sends a request; what the guest is told, and what the gateway.
async fn heard_by(world: &World, name: &str, trusted: bool) -> (Vec<u8>, String, anyhow::Error) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = Host(listener.local_addr().unwrap());
    let acceptor = world.acceptor(name, H1, trusted);
    let heard = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        if let Ok(mut stream) = acceptor.accept(stream).await {
            let _ = stream.read_to_end(&mut heard).await;
        }
        heard
    });
    let secrets = world.canary();
    let (guest, served) = world.dial(host, &secrets);
    let mut guest = world.tls(guest, HOST, H1).await.unwrap();
    guest.write_all(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    let mut told = String::new();
    let _ = guest.read_to_string(&mut told).await;
    (heard.await.unwrap(), told, served.await.unwrap().unwrap_err())
}

#[test]
fn a_host_without_a_good_certificate_hears_nothing() {
    test(async |world| {
        for (name, trusted) in [(HOST, false), ("evil.example", true)] {
            let (heard, told, error) = heard_by(&world, name, trusted).await;
            assert_eq!(heard, b"");
            assert!(is_untrusted(&error), "{error:#}");
            assert!(told.starts_with("HTTP/1.1 502 "), "{told}");
            let reason = format!("coracle: TLS with {HOST}: invalid peer certificate: ");
            assert!(told.contains(&reason), "{told}");
        }
    });
}

#[test]
fn no_connection_is_made_for_another_name_or_without_tls() {
    test(async |world| {
        let secrets = world.canary();
        let connects = Arc::new(AtomicUsize::new(0));
        let dial = || {
            let (guest, gateway) = UnixStream::pair().unwrap();
            let (authority, connects) = (Arc::clone(&world.authority), Arc::clone(&connects));
            let injection = Arc::clone(secrets.for_host(HOST, 443).unwrap());
            let served = tokio::spawn(async move {
                let connect = async || {
                    connects.fetch_add(1, Ordering::Relaxed);
                    TcpStream::connect("127.0.0.1:1").await
                };
                serve(gateway, Vec::new(), injection, &authority, connect).await
            });
            (guest, served)
        };
        for name in ["evil.example", "192.0.2.1"] {
            let (guest, served) = dial();
            assert!(world.tls(guest, name, H1).await.is_err());
            assert!(served.await.unwrap().is_err());
        }
        let (guest, served) = dial();
        assert!(world.tls(guest, HOST, &["acme-tls/1"]).await.is_err());
        assert!(served.await.unwrap().is_err());
        let (mut guest, served) = dial();
        guest.write_all(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
        assert!(served.await.unwrap().is_err());
        let mut answer = Vec::new();
        let _ = guest.read_to_end(&mut answer).await;
        assert!(!contains(&answer, "HTTP"));
        assert_eq!(connects.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn events_arrive_as_they_are_sent() {
    for protocols in [H1, H2] {
        test(async |world| {
            let (go, wait) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
            let (told, goes) = (Arc::clone(&wait), Arc::clone(&go));
            let answer = move |_: Seen| {
                let (mut events, body) = Channel::<Bytes, std::io::Error>::new(1);
                let (go, wait) = (Arc::clone(&goes), Arc::clone(&told));
                tokio::spawn(async move {
                    for number in 0..3 {
                        events.send_data(Bytes::from(format!("data: {number}\n\n"))).await.unwrap();
                        // The next is only sent when this one has been received.
                        wait.notified().await;
                        go.notify_one();
                    }
                });
                Response::builder().header("content-type", "text/event-stream").body(body.boxed()).unwrap()
            };
            let host = world.host(protocols, answer).await;
            let secrets = world.canary();
            let (guest, _) = world.guest(host, &secrets, protocols).await;
            let answer =
                send(guest, protocols, request("/events").body(Full::from("")).unwrap()).await.unwrap();
            let mut body = answer.into_body();
            for number in 0..3 {
                let frame = body.frame().await.unwrap().unwrap();
                assert_eq!(frame.into_data().unwrap(), format!("data: {number}\n\n"));
                wait.notify_one();
                go.notified().await;
            }
            assert_eq!(body.collect().await.unwrap().to_bytes(), "");
        });
    }
}

/// One request on a connection.
async fn send(
    guest: support::Guest,
    protocols: &[&str],
    mut request: Request<Full<Bytes>>,
) -> hyper::Result<Response<hyper::body::Incoming>> {
    if protocols == H2 {
        let (mut sender, driver) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(guest)).await?;
        tokio::spawn(driver);
        request.headers_mut().remove("host");
        return sender.send_request(request).await;
    }
    let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(guest)).await?;
    tokio::spawn(driver);
    *request.uri_mut() = request.uri().path().parse().unwrap();
    sender.send_request(request).await
}

#[test]
fn large_bodies_pass_both_ways() {
    for protocols in [H1, H2] {
        test(async |world| {
            let host = world.host(protocols, |seen: Seen| Response::new(full(seen.body))).await;
            let secrets = world.canary();
            let (guest, _) = world.guest(host, &secrets, protocols).await;
            let large: Vec<u8> = (0..5_000_000_u32).map(|number| (number * 7).to_le_bytes()[1]).collect();
            let answer =
                send(guest, protocols, request("/").body(Full::from(large.clone())).unwrap()).await.unwrap();
            assert!(answer.collect().await.unwrap().to_bytes() == large);
        });
    }
}

#[test]
fn a_host_that_repeats_what_it_is_sent_is_cut_off() {
    for protocols in [H1, H2] {
        test(async |world| {
            let in_header = |seen: Seen| {
                Response::builder().header("x-echo", seen.all("authorization")[0]).body(full("")).unwrap()
            };
            let host = world.host(protocols, in_header).await;
            let secrets = world.canary();
            let (guest, _) = world.guest(host, &secrets, protocols).await;
            let answer = send(guest, protocols, request("/").body(Full::from("")).unwrap()).await.unwrap();
            assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);

            // In pieces of one byte each.
            let in_body = |seen: Seen| {
                let text = format!("you sent {:?}", seen.all("authorization"));
                let pieces: Vec<_> =
                    text.bytes().map(|byte| Ok(Frame::data(Bytes::from(vec![byte])))).collect();
                Response::new(StreamBody::new(tokio_stream(pieces)).boxed())
            };
            let host = world.host(protocols, in_body).await;
            let (guest, _) = world.guest(host, &secrets, protocols).await;
            // Where all comes at once, HTTP/2 drops the head along with the rest.
            if let Ok(answer) = send(guest, protocols, request("/").body(Full::from("")).unwrap()).await {
                assert!(answer.into_body().collect().await.is_err());
            }
        });
    }
}

#[test]
fn a_credential_that_cannot_be_had_sends_nothing() {
    test(async |world| {
        let host = world.host(H1, ok).await;
        let secrets = world.secrets(Origin::Command(format!("echo {CANARY}; exit 1")));
        let (guest, _) = world.guest(host, &secrets, H1).await;
        let answer = send(guest, H1, request("/").body(Full::from("")).unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
        let text = answer.collect().await.unwrap().to_bytes();
        assert!(contains(&text, "the credential for mine: the command for the credential fails"), "{text:?}");
        assert_eq!(world.seen.lock().unwrap().len(), 0);

        let secrets = world.secrets(Origin::Command(format!("echo {CANARY}")));
        let (guest, _) = world.guest(host, &secrets, H1).await;
        let answer = send(guest, H1, request("/").body(Full::from("")).unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(world.seen.lock().unwrap()[0].all("authorization"), [bearer()]);
    });
}

#[test]
fn a_request_that_was_begun_before_has_nothing_of_a_secret_that_is_taken_back() {
    test(async |world| {
        let host = world.host(H1, ok).await;
        let secrets = world.canary();
        let (mut guest, served) = world.guest(host, &secrets, H1).await;
        guest.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        guest.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(secrets);
        tokio::time::sleep(Duration::from_millis(100)).await;
        // It may have been hung up on already.
        let _ = guest.write_all(format!("host: {HOST}\r\n\r\n").as_bytes()).await;
        let _ = guest.flush().await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), guest.read_to_end(&mut answer)).await.unwrap();
        let _ = served.await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert_eq!(world.seen.lock().unwrap().len(), 0);
    });
}

#[test]
fn a_secret_that_is_taken_back_is_used_no_more() {
    for protocols in [H1, H2] {
        test(async |world| {
            let host = world.host(protocols, ok).await;
            let secrets = world.canary();
            let (guest, served) = world.guest(host, &secrets, protocols).await;
            let start = Instant::now();
            if protocols == H2 {
                let (mut sender, driver) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(guest))
                        .await
                        .unwrap();
                tokio::spawn(driver);
                let request =
                    || Request::get(format!("https://{HOST}/")).body(Full::<Bytes>::from("")).unwrap();
                sender.send_request(request()).await.unwrap().collect().await.unwrap();
                drop(secrets);
                // The client may have left first.
                let _ = served.await.unwrap();
                assert!(sender.send_request(request()).await.is_err());
            } else {
                let (mut sender, driver) =
                    hyper::client::conn::http1::handshake(TokioIo::new(guest)).await.unwrap();
                tokio::spawn(driver);
                let request =
                    || Request::get("/").header("host", HOST).body(Full::<Bytes>::from("")).unwrap();
                sender.send_request(request()).await.unwrap().collect().await.unwrap();
                drop(secrets);
                served.await.unwrap().unwrap();
                assert!(sender.send_request(request()).await.is_err());
            }
            assert!(start.elapsed() < Duration::from_secs(5));
            assert_eq!(world.seen.lock().unwrap().len(), 1);
        });
    }
}
