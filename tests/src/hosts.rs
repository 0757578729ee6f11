//! Hosts for a sandbox to talk to, by the names and ports that they have in the world: namespaces in which every name that a test
//! gives leads to loopback, and a server with TLS there, which remembers what it was sent.
//! It owns the certificates and their authority. What is answered is the test's.

use std::convert::Infallible;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustls::ServerConfig;
use rustls::crypto::ring::{default_provider, sign::any_supported_type};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tempfile::TempDir;
use tokio_rustls::LazyConfigAcceptor;

use crate::{Call, Home, Running};

/// Names lead to loopback, where two ports that belong to root in the world are listened on; both are left to who starts it.
const NAMESPACES: &str = r#"
import os, signal, socket, subprocess, sys
subprocess.run(["mount", "--bind", sys.argv[1], "/etc/hosts"], check=True)
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
# getent has no IPv4 addresses for a machine that has none but loopback.
subprocess.run(["ip", "address", "add", "192.0.2.1/32", "dev", "lo"], check=True)
for number, port in [(10, 443), (11, 80)]:
    os.dup2(socket.create_server(("127.0.0.1", port), backlog=64).detach(), number)
print("ready", flush=True)
signal.pause()
"#;
const TLS: i32 = 10;
const PLAIN: i32 = 11;

pub type Body = BoxBody<Bytes, Infallible>;
pub type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// A request's head as a host had it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The name that TLS has shown; empty without TLS.
    pub host: String,
    pub line: String,
    pub headers: Vec<(String, String)>,
}

impl Seen {
    /// All values of a header.
    #[must_use]
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(it, _)| it == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// Hosts that are up as long as this is there.
#[derive(Debug)]
pub struct Hosts {
    folder: TempDir,
    namespaces: Running,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Hosts {
    /// Hosts with these names, which answer by `answer`, called with the name and the request. The certificate is bad for names that
    /// begin with `untrusted.`, `expired.` or `misnamed.`.
    ///
    /// # Errors
    /// When this machine makes no namespaces for an ordinary user.
    pub fn start<F>(home: &Home, names: &[&str], answer: F) -> Result<Self>
    where
        F: Fn(&str, Request<Incoming>) -> Answer + Send + Sync + 'static,
    {
        let folder = tempfile::tempdir().context("make a folder")?;
        let names: String = names.iter().map(|name| format!("127.0.0.1 {name}\n")).collect();
        fs::write(folder.path().join("hosts"), names)?;
        let certificates = Certificates::new().context("make an authority")?;
        fs::write(folder.path().join("authority.pem"), &certificates.pem)?;
        let namespaces = home
            .program("unshare")
            .args(["--map-root-user", "--net", "--mount", "python3", "-c", NAMESPACES])
            .args([folder.path().join("hosts")])
            .deadline(3600);
        let mut namespaces = namespaces.spawn()?;
        namespaces.until("ready")?;
        let hosts = Self { folder, namespaces, seen: Arc::default() };
        let server = Server { certificates, answer: Box::new(answer), seen: Arc::clone(&hosts.seen) };
        let (tls, plain) = (hosts.listener(TLS)?, hosts.listener(PLAIN)?);
        thread::spawn(move || serve(server, tls, plain));
        Ok(hosts)
    }

    fn listener(&self, number: i32) -> Result<TcpListener> {
        let process = pidfd_open(self.namespaces.pid(), PidfdFlags::empty())?;
        let socket = pidfd_getfd(process, number, PidfdGetfdFlags::empty()).context("take a socket")?;
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Runs a program of the home's where these hosts are. Coracle trusts their authority there.
    #[must_use]
    pub fn program(&self, home: &Home, program: &str) -> Call {
        let pid = self.namespaces.pid().as_raw_pid().to_string();
        let enter = ["--target", &pid, "--user", "--net", "--mount", "--preserve-credentials"];
        // The folder is one of the other namespace until it is entered again.
        let there = ["sh", "-c", "cd \"$0\" && exec \"$@\""];
        home.program("nsenter")
            .args(enter)
            .args(there)
            .args([home.workspace()])
            .args([program])
            .env("SSL_CERT_FILE", self.authority())
    }

    /// The certificate of who signs for the hosts.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// What was asked since this was called last.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

type Answering = Box<dyn Fn(&str, Request<Incoming>) -> Answer + Send + Sync>;

struct Server {
    certificates: Certificates,
    answer: Answering,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// Until the process ends: what it serves is its test's alone.
fn serve(server: Server, tls: TcpListener, plain: TcpListener) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        let server = Arc::new(server);
        let tls = tokio::net::TcpListener::from_std(tls).expect("a socket");
        let plain = tokio::net::TcpListener::from_std(plain).expect("a socket");
        loop {
            tokio::select! {
                Ok((stream, _)) = tls.accept() => drop(tokio::spawn(greet(Arc::clone(&server), stream))),
                Ok((stream, _)) = plain.accept() => {
                    drop(tokio::spawn(converse(Arc::clone(&server), stream, String::new(), false)));
                }
            }
        }
    });
}

async fn greet(server: Arc<Server>, stream: tokio::net::TcpStream) {
    let Ok(start) = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await else {
        return;
    };
    let name = start.client_hello().server_name().unwrap_or_default().to_owned();
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("ring has them");
    let resolver = Arc::new(server.certificates.certified(&name));
    let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let Ok(stream) = start.into_stream(Arc::new(config)).await else { return };
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    converse(server, stream, name, is_http2).await;
}

async fn converse<S>(server: Arc<Server>, stream: S, name: String, is_http2: bool)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = request.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let line = format!("{} {} {:?}", request.method(), request.uri().path(), request.version());
        let seen = Seen { host: name.clone(), line, headers };
        server.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        let answer = (server.answer)(&name, request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let stream = TokioIo::new(stream);
    // A client that goes away is the test's matter.
    let _ = match is_http2 {
        true => {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.serve_connection(stream, service).await
        }
        false => {
            let builder = hyper::server::conn::http1::Builder::new();
            builder.serve_connection(stream, service).with_upgrades().await
        }
    };
}

struct Certificates {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Certificates {
    fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // rcgen's own needs a feature that nothing else does.
        let text = STANDARD.encode(params.self_signed(&key)?.der());
        let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    fn certified(&self, name: &str) -> Certified {
        let key = KeyPair::generate().expect("ring makes keys");
        let shown = if name.starts_with("misnamed.") { "another.example" } else { name };
        let mut params = CertificateParams::new(vec![shown.to_owned()]).expect("it is a name");
        if name.starts_with("expired.") {
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let certificate = match name.starts_with("untrusted.") {
            true => params.self_signed(&key),
            false => params.signed_by(&key, &self.issuer),
        };
        let certificate = certificate.expect("it can be signed");
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = any_supported_type(&der).expect("it is ours");
        Certified(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key)))
    }
}

#[derive(Debug)]
struct Certified(Arc<CertifiedKey>);

impl ResolvesServerCert for Certified {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}
