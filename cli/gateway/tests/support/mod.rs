//! What the tests of interception stand on: a true host with TLS on loopback that remembers what it was sent, and a guest's
//! client that remembers every byte it was given.
//! It owns the names and the secret. Nothing in it is a mock: the TLS is rustls', the HTTP hyper's, the sockets the kernel's.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use gateway::credentials::{Custom, Entry, Origin, Secrets, Store};
use gateway::intercept::{Authority, ensure_authority, serve};
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub const HOST: &str = "api.example.com";
/// It must reach the host, and nobody else.
pub const CANARY: &str = "canary-5f1d3b9c7a2e4d6f8091";
pub const H1: &[&str] = &["http/1.1"];
pub const H2: &[&str] = &["h2"];

pub type Body = BoxBody<Bytes, io::Error>;

/// What a host was sent: a request's head, and its body.
#[derive(Clone, Debug)]
pub struct Seen {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    pub trailers: usize,
}

impl Seen {
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(it, _)| it == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// What tests share.
pub struct World {
    folder: TempDir,
    roots: RootCertStore,
    pub authority: Arc<Authority>,
    issuer: Issuer<'static, KeyPair>,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    /// All that the guest was given, of all its connections.
    pub given: Arc<Mutex<Vec<u8>>>,
}

/// Runs a test on a runtime of one thread, as the gateway has.
pub fn test(body: impl AsyncFnOnce(World)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::new();
        let given = Arc::clone(&world.given);
        tokio::time::timeout(Duration::from_secs(60), body(world)).await.expect("no test takes so long");
        let given = given.lock().unwrap();
        assert!(!contains(&given, CANARY), "the guest has seen the secret");
    });
}

pub fn contains(text: &[u8], what: &str) -> bool {
    text.windows(what.len()).any(|it| it == what.as_bytes())
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        ensure_authority(folder.path()).unwrap();
        let authority = Authority::load(folder.path()).unwrap().unwrap().with_roots(roots.clone());
        Self {
            authority: Arc::new(authority),
            issuer: Issuer::new(params, key),
            seen: Arc::default(),
            given: Arc::default(),
            folder,
            roots,
        }
    }

    /// The secrets of a sandbox that has one, for the host.
    pub fn secrets(&self, origin: Origin) -> Secrets {
        let custom = Custom {
            hosts: vec![(HOST.into(), 443)],
            header: "authorization".into(),
            format: "Bearer %s".into(),
            variables: Vec::new(),
        };
        let entry = Entry { service: "mine".into(), sandbox: None, origin, custom: Some(custom) };
        let settings = self.folder.path().join("settings");
        Store::change(&settings, |secrets| *secrets = vec![entry]).unwrap();
        Secrets::load(&settings, "box", &[]).unwrap()
    }

    pub fn canary(&self) -> Secrets {
        self.secrets(Origin::Value(CANARY.into()))
    }

    /// A host with a certificate for `name`, by the authority that is trusted or by another.
    pub fn acceptor(&self, name: &str, protocols: &[&str], trusted: bool) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = match trusted {
            true => params.signed_by(&key, &self.issuer).unwrap(),
            false => params.self_signed(&key).unwrap(),
        };
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.into()], key.into())
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// A host that answers by `answer` and remembers; its address.
    pub async fn host<F>(&self, protocols: &'static [&'static str], answer: F) -> Host
    where
        F: Fn(Seen) -> Response<Body> + Clone + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = Host(listener.local_addr().unwrap());
        let acceptor = self.acceptor(HOST, protocols, true);
        let seen = Arc::clone(&self.seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let (answer, seen) = (answer.clone(), Arc::clone(&seen));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (answer, seen) = (answer.clone(), Arc::clone(&seen));
                    async move {
                        let request = remember(request).await.map_err(io::Error::other)?;
                        seen.lock().unwrap().push(request.clone());
                        Ok::<_, io::Error>(answer(request))
                    }
                });
                let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                tokio::spawn(async move {
                    let stream = TokioIo::new(stream);
                    let _ = match h2 {
                        true => {
                            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                                .serve_connection(stream, service)
                                .await
                        }
                        false => {
                            hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await
                        }
                    };
                });
            }
        });
        host
    }

    /// A guest's connection to HOST by way of the gateway: its end, and what the gateway makes of it.
    pub fn dial(&self, host: Host, secrets: &Secrets) -> (UnixStream, JoinHandle<anyhow::Result<()>>) {
        let (guest, gateway) = UnixStream::pair().unwrap();
        let injection = Arc::clone(secrets.for_host(HOST, 443).unwrap());
        let authority = Arc::clone(&self.authority);
        let served = tokio::spawn(async move {
            serve(gateway, Vec::new(), injection, &authority, async || TcpStream::connect(host.0).await).await
        });
        (guest, served)
    }

    /// TLS on a guest's connection, by what the guest trusts.
    pub async fn tls(&self, guest: UnixStream, name: &str, protocols: &[&str]) -> io::Result<Guest> {
        let pem = gateway::intercept::certificate(self.folder.path()).unwrap().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, guest).await?;
        Ok(Guest { stream, given: Arc::clone(&self.given) })
    }

    pub async fn guest(
        &self,
        host: Host,
        secrets: &Secrets,
        protocols: &[&str],
    ) -> (Guest, JoinHandle<anyhow::Result<()>>) {
        let (guest, served) = self.dial(host, secrets);
        (self.tls(guest, HOST, protocols).await.unwrap(), served)
    }
}

/// A host's address.
#[derive(Clone, Copy, Debug)]
pub struct Host(pub std::net::SocketAddr);

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

async fn remember(request: Request<Incoming>) -> hyper::Result<Seen> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().map_or(0, http::HeaderMap::len);
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    Ok(Seen {
        line: format!("{} {}", head.method, head.uri),
        headers: head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        trailers,
        body: body.to_bytes(),
    })
}

pub fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed()
}

pub fn ok(_: Seen) -> Response<Body> {
    Response::new(full("fine"))
}

/// The guest's end of TLS.
pub struct Guest {
    stream: TlsStream<UnixStream>,
    given: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.given.lock().unwrap().extend_from_slice(&buffer.filled()[before..]);
        result
    }
}

impl AsyncWrite for Guest {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
