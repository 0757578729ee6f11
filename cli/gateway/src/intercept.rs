//! Connections to hosts that have a secret: TLS ends here, the client's credentials are taken out, ours is set, and TLS to the
//! true host begins.
//! It owns that way, request by request. Which hosts have a secret is in `credentials`, which address a host has is its caller's.
//! Both sides speak the same protocol, the one that the host chose of those that the client knows: what a client sees of a
//! host's behaviour is the host's. Nothing is tried twice and no redirect is followed: that is the client's to do.

mod authority;
pub(crate) mod body;
mod client;
mod head;
mod hello;
mod upstream;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn as out;
use hyper::server::conn as inward;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream as OutStream;
use tokio_rustls::server::TlsStream as InStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

pub use authority::{Authority, CERTIFICATE, certificate, ensure as ensure_authority};
pub use head::{Refusal, inject, prepare};
pub use hello::{HELLO_MAX, Hello, client_hello, is_host};
pub use upstream::is_untrusted;

use crate::credentials::Injection;
use client::{Client, Use};

/// For the client's part of a handshake; it is on this machine.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// To reach a host, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// For a request's head to arrive, the wait for it included; longer than clients keep connections that they do not use.
const HEAD_TIMEOUT: Duration = Duration::from_secs(300);
/// A connection on which nothing moves for this long is closed; an answer that is being thought about takes minutes.
const IDLE: Duration = Duration::from_secs(3600);
/// Connections at once; more wait. Each takes up to a few hundred KiB, and some MiB when a client does not read.
const CONNECTIONS_MAX: usize = 128;
static CONNECTIONS: Semaphore = Semaphore::const_new(CONNECTIONS_MAX);
/// Of a head, both ways. What is larger is refused with 431.
const HEAD_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 128;
/// Requests at once on one connection.
const STREAMS_MAX: u32 = 100;
/// Bytes on their way in one connection. From the host more, which can be far away.
const WINDOW_IN: u32 = 256 << 10;
const WINDOW_OUT: u32 = 1 << 20;

/// Bytes of one answer that the client has not taken: all streams of all connections stay well below the worker's memory.
const STREAM_BUFFER: usize = 32 << 10;

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

type Answer = Either<body::Response, Full<Bytes>>;

/// Carries one connection of a guest to the host of an injection. `head` is what was read of it already; `connect` opens a
/// connection to that host, at an address that policy allows. Returns when the connection has ended; dropped, it is cut.
///
/// # Errors
/// What went wrong, for the log: no secret, and nothing of a request, is in it.
pub async fn serve<S>(
    client: S,
    head: Vec<u8>,
    injection: Arc<Injection>,
    authority: &Authority,
    connect: impl AsyncFnOnce() -> io::Result<TcpStream>,
) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let _permit = CONNECTIONS.acquire().await.context("interception has ended")?;
    let (client, moved) = Client::new(head, client);
    let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), client);
    let start = timeout(HELLO_TIMEOUT, acceptor).await.context("the client sends no TLS")?;
    let start = start.context("TLS with the client")?;
    let hello = start.client_hello();
    let name = hello.server_name().unwrap_or_default();
    ensure!(
        name.eq_ignore_ascii_case(&injection.host),
        "the client asks for another host than it connected to"
    );
    let offered: Vec<_> = hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
    let known: Vec<_> =
        offered.iter().filter(|it| [HTTP2, HTTP1].contains(&it.as_slice())).cloned().collect();
    ensure!(known.is_empty() == offered.is_empty(), "the client does not speak HTTP");

    let reach = async {
        let stream = connect().await.with_context(|| format!("connect to {}", injection.host))?;
        // Small messages are answers that somebody waits for, of HTTP/2's flow control above all.
        stream.set_nodelay(true)?;
        authority.upstream.connect(stream, &injection.host, known.clone()).await
    };
    let reached = timeout(CONNECT_TIMEOUT, reach).await.context("the host does not answer");
    let host = match reached.and_then(|host| host) {
        Ok(host) => host,
        Err(error) => {
            // Whether it listens or not.
            let _ = timeout(HELLO_TIMEOUT, tell(start, known, &injection, authority, &error)).await;
            return Err(error);
        }
    };
    let chosen = host.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);

    let mut config = rustls::ServerConfig::clone(&*authority.host(&injection.host)?);
    config.alpn_protocols = chosen.iter().cloned().collect();
    let client = timeout(HELLO_TIMEOUT, start.into_stream(Arc::new(config))).await;
    let client = client.context("the client does not go on with TLS")?.context("TLS with the client")?;
    match chosen.as_deref() {
        Some(HTTP2) => http2(client, host, injection, &moved).await,
        _ => http1(client, host, injection, &moved).await,
    }
}

/// Answers every request of a client whose host cannot be had with the reason.
async fn tell<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    start: StartHandshake<Client<S>>,
    protocols: Vec<Vec<u8>>,
    injection: &Injection,
    authority: &Authority,
    error: &anyhow::Error,
) -> Result<()> {
    let mut config = rustls::ServerConfig::clone(&*authority.host(&injection.host)?);
    config.alpn_protocols = protocols;
    let client = start.into_stream(Arc::new(config)).await?;
    let is_http2 = client.get_ref().1.alpn_protocol() == Some(HTTP2);
    let service = service_fn(|_: Request<Incoming>| {
        let answer = refuse(StatusCode::BAD_GATEWAY, &format!("{error:#}"));
        async { Ok::<_, Infallible>(answer) }
    });
    let client = TokioIo::new(client);
    match is_http2 {
        true => inward::http2::Builder::new(TokioExecutor::new()).serve_connection(client, service).await?,
        false => inward::http1::Builder::new().serve_connection(client, service).await?,
    }
    Ok(())
}

async fn http1<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    client: InStream<Client<S>>,
    host: OutStream<TcpStream>,
    injection: Arc<Injection>,
    moved: &Use,
) -> Result<()> {
    let mut builder = out::http1::Builder::new();
    builder.max_buf_size(HEAD_MAX).max_headers(HEADERS_MAX);
    let (sender, driver) = builder.handshake(TokioIo::new(host)).await.context("HTTP with the host")?;
    let exchange = Arc::new(Exchange::new(Sender::Http1(tokio::sync::Mutex::new(sender)), injection));
    let service = service_fn({
        let exchange = Arc::clone(&exchange);
        move |request| Arc::clone(&exchange).answer(request)
    });
    let mut builder = inward::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.max_buf_size(HEAD_MAX).max_headers(HEADERS_MAX);
    let server = pin!(builder.serve_connection(TokioIo::new(client), service).with_upgrades());
    run(server, |server| server.graceful_shutdown(), driver.with_upgrades(), &exchange, moved).await?;
    exchange.upgraded(moved).await
}

async fn http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    client: InStream<Client<S>>,
    host: OutStream<TcpStream>,
    injection: Arc<Injection>,
    moved: &Use,
) -> Result<()> {
    let mut builder = out::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(HEAD_MAX)?)
        .initial_stream_window_size(WINDOW_OUT)
        .initial_connection_window_size(WINDOW_OUT)
        .keep_alive_interval(HEAD_TIMEOUT);
    let (sender, driver) = builder.handshake(TokioIo::new(host)).await.context("HTTP with the host")?;
    let exchange = Arc::new(Exchange::new(Sender::Http2(sender), injection));
    let service = service_fn({
        let exchange = Arc::clone(&exchange);
        move |request| Arc::clone(&exchange).answer(request)
    });
    let mut builder = inward::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(HEAD_MAX)?)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(WINDOW_IN)
        .initial_connection_window_size(WINDOW_IN)
        .max_send_buf_size(STREAM_BUFFER);
    let server = pin!(builder.serve_connection(TokioIo::new(client), service));
    run(server, |server| server.graceful_shutdown(), driver, &exchange, moved).await
}

/// Drives both sides until the client's has ended. When the host's ends, or the secret is revoked, the client is told that no
/// more requests are taken.
async fn run<C: Future<Output = hyper::Result<()>>>(
    mut server: Pin<&mut C>,
    shut_down: impl Fn(Pin<&mut C>),
    driver: impl Future<Output = hyper::Result<()>>,
    exchange: &Exchange,
    moved: &Use,
) -> Result<()> {
    let mut driver = pin!(driver);
    let mut waiting = exchange.waiting.subscribe();
    let mut injection_lives = exchange.injection.lives.clone();
    let mut watchdog = tokio::time::interval(IDLE);
    let (mut gone, mut closing) = (false, false);
    loop {
        tokio::select! {
            biased;
            result = &mut server => return result.context("HTTP with the client"),
            // Its errors are told to who waits for an answer.
            _ = &mut driver, if !gone => gone = true,
            // Not while an answer's head is on its way: it may be a switch to another protocol, which is no end.
            _ = waiting.wait_for(|count| *count == 0), if gone && !closing => {
                closing = true;
                if !exchange.is_upgraded() {
                    shut_down(server.as_mut());
                }
            }
            _ = injection_lives.changed(), if !closing => {
                closing = true;
                shut_down(server.as_mut());
            }
            _ = watchdog.tick() => ensure!(moved.since(), "nothing has moved for a long time"),
        }
    }
}

enum Sender {
    Http1(tokio::sync::Mutex<out::http1::SendRequest<body::Request>>),
    Http2(out::http2::SendRequest<body::Request>),
}

/// The requests of one connection.
struct Exchange {
    sender: Sender,
    injection: Arc<Injection>,
    /// Answers whose heads are not there yet.
    waiting: watch::Sender<usize>,
    /// The client's side and the host's, when they no longer speak HTTP.
    upgrade: Mutex<Option<(OnUpgrade, OnUpgrade)>>,
}

impl Exchange {
    fn new(sender: Sender, injection: Arc<Injection>) -> Self {
        Self { sender, injection, waiting: watch::Sender::new(0), upgrade: Mutex::default() }
    }

    /// An error closes the connection, or resets the stream: what a client sees of a host that is gone.
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> hyper::Result<Response<Answer>> {
        self.waiting.send_modify(|count| *count += 1);
        let waits = Waits(&self.waiting);
        let answer = self.forward(request).await;
        drop(waits);
        answer
    }

    async fn forward(&self, mut request: Request<Incoming>) -> hyper::Result<Response<Answer>> {
        let client = hyper::upgrade::on(&mut request);
        let (mut head, body) = request.into_parts();
        let websocket = match prepare(&mut head, &self.injection) {
            Ok(websocket) => websocket,
            Err(refusal) => return Ok(refuse(refusal.status(), refusal.reason())),
        };
        let (value, secrets) = match self.injection.value().await {
            Ok(value) => value,
            Err(error) => return Ok(refuse(StatusCode::BAD_GATEWAY, &format!("{error:#}"))),
        };
        // A client that does not go when it is told to goes on asking.
        if self.injection.lives.has_changed().is_err() {
            return Ok(refuse(StatusCode::BAD_GATEWAY, "the secret for this host was taken back"));
        }
        inject(&mut head, &self.injection, value);
        let body = body::Request { body, injection: Arc::clone(&self.injection) };
        let response = self.send(Request::from_parts(head, body)).await?;
        Ok(self.pass_back(response, websocket, client, secrets))
    }

    async fn send(&self, request: Request<body::Request>) -> hyper::Result<Response<Incoming>> {
        match &self.sender {
            Sender::Http1(sender) => {
                // The client's next request may come before the host's connection has found out that the last one is done.
                let mut sender = sender.lock().await;
                sender.ready().await?;
                let response = sender.send_request(request);
                drop(sender);
                response.await
            }
            Sender::Http2(sender) => sender.clone().send_request(request).await,
        }
    }

    fn pass_back(
        &self,
        mut response: Response<Incoming>,
        websocket: bool,
        client: OnUpgrade,
        secrets: body::Secrets,
    ) -> Response<Answer> {
        let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let host = switching.then(|| hyper::upgrade::on(&mut response));
        let (mut head, body) = response.into_parts();
        if switching != (switching && websocket) {
            return refuse(StatusCode::BAD_GATEWAY, "the host switches to a protocol that nobody asked for");
        }
        if secrets.are_in(&head.headers) {
            return refuse(StatusCode::BAD_GATEWAY, body::LEAK);
        }
        head::pass_back(&mut head);
        if let Some(host) = host {
            *self.upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some((client, host));
        }
        Response::from_parts(head, Either::Left(body::Response::new(body, secrets)))
    }

    fn is_upgraded(&self) -> bool {
        self.upgrade.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Carries what follows a switch of protocols, until one side ends it.
    async fn upgraded(&self, moved: &Use) -> Result<()> {
        let upgrade = self.upgrade.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((client, host)) = upgrade else { return Ok(()) };
        let client = client.await.context("switch protocols with the client")?;
        let host = host.await.context("switch protocols with the host")?;
        let (mut client, mut host) = (TokioIo::new(client), TokioIo::new(host));
        let mut carry = pin!(tokio::io::copy_bidirectional(&mut client, &mut host));
        let mut lives = self.injection.lives.clone();
        let mut watchdog = tokio::time::interval(IDLE);
        loop {
            tokio::select! {
                result = &mut carry => return result.map(drop).context("carry a websocket"),
                _ = lives.changed() => bail!("the credential of an open websocket is gone"),
                _ = watchdog.tick() => ensure!(moved.since(), "nothing has moved for a long time"),
            }
        }
    }
}

/// One answer less to wait for, whatever became of it.
struct Waits<'a>(&'a watch::Sender<usize>);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// An answer of ours. The connection ends with it, as what is left of the request is not read.
fn refuse(status: StatusCode, reason: &str) -> Response<Answer> {
    let text = format!("coracle: {reason}\n");
    let mut response = Response::new(Either::Right(Full::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
