//! A server for tests, on a port of its own: HTTP/1.1, one thread for each connection, and as badly behaved as a test wants.
//! What it answers is a closure of the test; it remembers what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What was asked. Names of fields are in lower case.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub path: String,
    pub fields: Vec<(String, String)>,
    pub body: String,
}

impl Asked {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    /// The first byte that is wanted.
    pub fn from(&self) -> usize {
        let range = self.field("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        range.map_or(0, |from| from.parse().unwrap())
    }
}

#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection ends after so many bytes of the body.
    pub cut: Option<usize>,
    /// It stays open then, and nothing more comes.
    pub silent: bool,
    /// In place of the body's real one.
    pub length: Option<usize>,
}

impl Reply {
    pub fn of(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// A file, from where it is wanted on.
    pub fn file(asked: &Asked, content: &[u8]) -> Self {
        match asked.from() {
            0 => Self::of(200, content),
            from if from >= content.len() => Self::of(416, ""),
            from => Self::of(206, &content[from..])
                .with("content-range", format!("bytes {from}-{}/{}", content.len() - 1, content.len())),
        }
    }

    pub fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }
}

type Handler = dyn Fn(&Asked) -> Reply + Send + Sync;

/// It answers until the test's process ends.
pub struct Server {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(|stream| stream, answer)
    }

    /// One with a certificate for that name, which it has issued itself, valid until then; the certificate as well.
    pub fn start_tls(
        name: &str,
        until_year: i32,
        answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> (Self, Vec<u8>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(until_year, 1, 1);
        let certificate = parameters.self_signed(&key).unwrap().der().clone();
        let authority = certificate.to_vec();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap());
        let wrap = move |stream| {
            rustls::StreamOwned::new(rustls::ServerConnection::new(config.clone()).unwrap(), stream)
        };
        (Self::start_with(wrap, answer), authority)
    }

    fn start_with<S: Read + Write>(
        wrap: impl Fn(TcpStream) -> S + Send + Sync + 'static,
        answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (log, wrap, answer): (_, _, Arc<Handler>) = (asked.clone(), Arc::new(wrap), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, wrap, answer) = (log.clone(), wrap.clone(), answer.clone());
                thread::spawn(move || serve(wrap(stream), &log, &*answer));
            }
        });
        Self { address, asked }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What it was asked since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn serve(stream: impl Read + Write, log: &Mutex<Vec<Asked>>, answer: &Handler) {
    let mut reader = BufReader::new(stream);
    while let Some(asked) = read(&mut reader) {
        log.lock().unwrap().push(asked.clone());
        let reply = answer(&asked);
        let length = reply.length.unwrap_or(reply.body.len());
        let mut head = format!("HTTP/1.1 {} x\r\ncontent-length: {length}\r\n", reply.status);
        reply.fields.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        let body = &reply.body[..reply.cut.unwrap_or(reply.body.len())];
        let sent = reader.get_mut().write_all(&[head.as_bytes(), b"\r\n", body].concat());
        if sent.is_err() || reader.get_mut().flush().is_err() || reply.cut.is_some() {
            // Until the other side has had enough.
            while reply.silent && reader.read(&mut [0]).is_ok_and(|count| count > 0) {}
            return;
        }
    }
}

fn read(reader: &mut impl BufRead) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let mut asked = Asked { path: words.nth(1)?, ..Asked::default() };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        asked.fields.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let length = asked.field("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    asked.body = String::from_utf8(body).unwrap();
    Some(asked)
}
