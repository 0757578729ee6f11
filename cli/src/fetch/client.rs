//! HTTP requests: over TLS with the host's certificates and proxies, in the clear to this machine only. It follows
//! redirects itself, since where credentials may go is decided there. It owns the timeouts and which errors may pass.

use std::fmt;
use std::io::{ErrorKind, Read};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use rustls::pki_types::CertificateDer;
use ureq::http::header::{AUTHORIZATION, CONTENT_RANGE, LOCATION, RANGE, RETRY_AFTER};
use ureq::http::{HeaderMap, Request, Response, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body, Proxy};

use super::resolve::Resolver;
use super::{Again, Failure, PAUSE_MAX};
use crate::text::quoted;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Without a byte.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const REDIRECTS_MAX: u32 = 10;
/// The first wait before another try; the others are twice as long each.
const PAUSE: Duration = Duration::from_millis(500);

/// Where requests start. Its connections are used again.
#[derive(Debug)]
pub struct Client {
    outside: OnceLock<Agent>,
    /// To this machine no proxy leads.
    inside: OnceLock<Agent>,
    first_pause: Duration,
    /// How long a server may say nothing.
    idle: Duration,
    /// In place of those that the host trusts.
    authorities: Option<Vec<CertificateDer<'static>>>,
}

/// A field of a request's head.
pub type Field<'a> = (&'a str, &'a str);

/// What a server has answered.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    /// The byte of the file that the body begins with, when it is one.
    pub from: Option<u64>,
    /// Of the body, when it is known.
    pub length: Option<u64>,
    pub body: Box<dyn Read>,
    url: Uri,
}

impl Client {
    pub fn new() -> Self {
        Self {
            outside: OnceLock::new(),
            inside: OnceLock::new(),
            first_pause: PAUSE,
            idle: IDLE_TIMEOUT,
            authorities: None,
        }
    }

    #[cfg(test)]
    pub fn impatient() -> Self {
        Self { first_pause: Duration::from_millis(1), ..Self::new() }
    }

    #[cfg(test)]
    pub fn without_patience(idle: Duration) -> Self {
        Self { idle, ..Self::impatient() }
    }

    #[cfg(test)]
    pub fn trusting(authority: &[u8]) -> Self {
        Self { authorities: Some(vec![authority.to_vec().into()]), ..Self::impatient() }
    }

    /// Asks for what is at `url`, from some byte on. Any status is an answer.
    pub fn get(&self, url: &str, fields: &[Field<'_>], from: u64) -> Result<Answer, Failure> {
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let range = range.iter().map(|range| (RANGE.as_str(), range.as_str()));
        let fields: Vec<_> = fields.iter().copied().chain(range).collect();
        let start = checked(url)?;
        let mut at = start.clone();
        let mut has_left = false;
        for _ in 0..=REDIRECTS_MAX {
            let carried = fields
                .iter()
                .filter(|(name, _)| !(has_left && name.eq_ignore_ascii_case(AUTHORIZATION.as_str())));
            let mut request = Request::get(&at);
            for (name, value) in carried {
                request = request.header(*name, *value);
            }
            let request = request.body(()).context("make a request")?;
            let response = self.agent(&at)?.run(request).map_err(|error| failure(error, &at))?;
            let Some(next) = redirect(&response, &at)? else { return Ok(Answer::new(response, at)) };
            if is_loopback(&next) && !is_loopback(&start) {
                return Err(anyhow!(
                    "{} redirects to this machine itself, which is not followed",
                    shown(&at)
                )
                .into());
            }
            has_left |= origin(&next) != origin(&at);
            at = next;
        }
        Err(anyhow!("{} redirects more than {REDIRECTS_MAX} times", shown(&start)).into())
    }

    /// Sends a form and returns the answer; redirects are not followed.
    pub fn post_form(&self, url: &str, form: &[Field<'_>]) -> Result<Answer, Failure> {
        let at = checked(url)?;
        let body: Vec<_> = form.iter().map(|(name, value)| format!("{name}={}", percent(value))).collect();
        let request = Request::post(&at)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.join("&"))
            .context("make a request")?;
        let response = self.agent(&at)?.run(request).map_err(|error| failure(error, &at))?;
        Ok(Answer::new(response, at))
    }

    /// How long to wait before another try after that many failed ones; none when there should be no other.
    pub fn pause(&self, again: Again, tries: u32, has_worked: bool) -> Option<Duration> {
        let usual = self.first_pause.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(PAUSE_MAX);
        match again {
            Again::Never => None,
            Again::IfItWorked => has_worked.then_some(usual),
            Again::After(None) => Some(usual),
            Again::After(Some(pause)) => (pause <= PAUSE_MAX).then_some(pause),
        }
    }

    fn agent(&self, url: &Uri) -> Result<&Agent> {
        let (slot, proxy) = match is_loopback(url) {
            true => (&self.inside, None),
            false => (&self.outside, Proxy::try_from_env()),
        };
        if slot.get().is_none() {
            let _ = slot.set(self.new_agent(proxy, url.scheme_str() == Some("https"))?);
        }
        Ok(slot.get().expect("it was set above"))
    }

    fn new_agent(&self, proxy: Option<Proxy>, needs_tls: bool) -> Result<Agent> {
        let authorities = match &self.authorities {
            Some(authorities) => authorities.clone(),
            None => rustls_native_certs::load_native_certs().certs,
        };
        ensure!(
            !(needs_tls && authorities.is_empty()),
            "no certificate authority is known; install ca-certificates, or set SSL_CERT_FILE to a file with some"
        );
        let roots = authorities.iter().map(|der| Certificate::from_der(der).to_owned());
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::from(roots))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("coracle/", env!("CARGO_PKG_VERSION")))
            .proxy(proxy)
            .tls_config(tls)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(2 * self.idle))
            .timeout_per_read(Some(self.idle))
            .timeout_per_write(Some(self.idle))
            .build();
        Ok(Agent::with_parts(config, DefaultConnector::default(), Resolver))
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).field("url", &self.url).finish_non_exhaustive()
    }
}

impl Answer {
    fn new(response: Response<Body>, url: Uri) -> Self {
        let (head, body) = response.into_parts();
        let status = head.status.as_u16();
        let from = match status {
            200 => Some(0),
            206 => range_start(&head.headers),
            _ => None,
        };
        let length = body.content_length();
        Self { status, headers: head.headers, from, length, body: Box::new(body.into_reader()), url }
    }

    /// Itself when it brings the file, or a part of it; else the error that it stands for.
    pub fn content(self) -> Result<Self, Failure> {
        match self.status {
            200 | 206 => Ok(self),
            // What is there already is not a part of what the server has: another try begins at the start.
            416 => Ok(Self { from: None, ..self }),
            _ => Err(self.refusal()),
        }
    }

    /// The error that an answer stands for which is none to what was asked.
    pub fn refusal(&self) -> Failure {
        let status = ureq::http::StatusCode::from_u16(self.status).ok();
        let reason = status.and_then(|status| status.canonical_reason()).unwrap_or("no known status");
        let pause = self.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let pause = pause.map(Duration::from_secs);
        let mut error = anyhow!("{} answers {} {reason}", shown(&self.url), self.status);
        if let Some(pause) = pause.filter(|pause| *pause > PAUSE_MAX) {
            error = anyhow!("{error} and wants to be asked again in {} s", pause.as_secs());
        }
        let again = match self.status {
            408 | 425 | 429 | 500 | 502 | 503 | 504 => Again::After(pause),
            _ => Again::Never,
        };
        Failure { error, again }
    }

    /// A short body as a whole.
    pub fn bytes(self, length_max: u64) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        let read = self.body.take(length_max + 1).read_to_end(&mut bytes);
        let cut = || format!("{}: the connection was cut", shown(&self.url));
        read.map_err(|error| Failure { error: Error::new(error).context(cut()), again: Again::After(None) })?;
        if bytes.len() as u64 > length_max {
            return Err(anyhow!("{} answers with more than {length_max} bytes", shown(&self.url)).into());
        }
        if self.length.is_some_and(|length| length != bytes.len() as u64) {
            return Err(Failure { error: anyhow!(cut()), again: Again::After(None) });
        }
        Ok(bytes)
    }
}

/// A URL that may be asked: over TLS, or in the clear when it does not leave the machine.
fn checked(url: &str) -> Result<Uri> {
    let uri: Uri = url.parse().with_context(|| format!("{} is not a URL", quoted(url)))?;
    let authority = uri.authority().with_context(|| format!("{} is not a URL with a host", quoted(url)))?;
    ensure!(!authority.as_str().contains('@'), "{} has a password in it", quoted(authority.host()));
    match uri.scheme_str() {
        Some("https") => (),
        Some("http") if is_loopback(&uri) => (),
        Some("http") => bail!("{} is not encrypted, which is accepted of this machine only", shown(&uri)),
        _ => bail!("{} is not a URL that begins with https://", quoted(url)),
    }
    Ok(uri)
}

/// Where a redirect leads to.
fn redirect(response: &Response<Body>, from: &Uri) -> Result<Option<Uri>> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.with_context(|| format!("{} redirects to nowhere", shown(from)))?;
    let location = location.split('#').next().unwrap_or_default();
    let absolute = join(from, location);
    checked(&absolute).map(Some).with_context(|| format!("{} redirects", shown(from)))
}

/// RFC 3986, 5.2 "Relative Resolution", without dot segments, which no server needs.
fn join(base: &Uri, reference: &str) -> String {
    let scheme = base.scheme_str().unwrap_or("https");
    let host = base.authority().map_or("", |authority| authority.as_str());
    let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    match reference {
        _ if reference.contains("://") => reference.to_owned(),
        _ if reference.starts_with("//") => format!("{scheme}:{reference}"),
        _ if reference.starts_with('/') => format!("{scheme}://{host}{reference}"),
        _ => format!("{scheme}://{host}{folder}/{reference}"),
    }
}

fn origin(url: &Uri) -> (Option<&str>, Option<&str>, u16) {
    let port = if url.scheme_str() == Some("http") { 80 } else { 443 };
    (url.scheme_str(), url.host(), url.port_u16().unwrap_or(port))
}

fn is_loopback(url: &Uri) -> bool {
    url.host().is_some_and(is_loopback_host)
}

/// Whether a name or address, as it stands in a URL, is this machine by definition.
pub fn is_loopback_host(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A URL for a message. What comes after the path may be a secret.
fn shown(url: &Uri) -> String {
    let host = url.authority().map_or("", |authority| authority.as_str());
    quoted(format!("{}://{host}{}", url.scheme_str().unwrap_or_default(), url.path()))
}

/// RFC 9110, 14.4 "Content-Range".
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// A value of a query or form.
pub fn percent(value: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let encode = |byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    value.bytes().map(encode).collect()
}

/// What a request that was not answered means for another one.
fn failure(error: ureq::Error, url: &Uri) -> Failure {
    use ErrorKind::{
        AddrNotAvailable, ConnectionRefused, HostUnreachable, InvalidData, NetworkDown, NetworkUnreachable,
    };
    let again = match &error {
        ureq::Error::HostNotFound | ureq::Error::Other(_) | ureq::Error::ConnectProxyFailed(_) => {
            Again::IfItWorked
        }
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => Again::IfItWorked,
        ureq::Error::Io(error) => match error.kind() {
            InvalidData => Again::Never,
            AddrNotAvailable | ConnectionRefused | HostUnreachable | NetworkDown | NetworkUnreachable => {
                Again::IfItWorked
            }
            _ => Again::After(None),
        },
        ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed => Again::After(None),
        _ => Again::Never,
    };
    let error = match error {
        ureq::Error::Io(error) => Error::new(error),
        ureq::Error::Other(error) => anyhow!(error),
        other => Error::new(other),
    };
    Failure { error: error.context(format!("get {}", shown(url))), again }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_encrypted_or_local_urls_are_asked() {
        for good in
            ["https://example.org/x?y", "http://localhost:5000/", "http://127.3.2.1/", "http://[::1]:80/"]
        {
            checked(good).unwrap();
        }
        for bad in [
            "",
            "x",
            "/x",
            "http://example.org/",
            "http://localhost.example.org/",
            "http://127.0.0.1.nip.io/",
            "ftp://localhost/",
            "file:///etc/passwd",
            "https://user:secret@example.org/",
            "http://[fe80::1]/",
            "http://169.254.169.254/",
            "https://",
            "https:///x",
        ] {
            let error = format!("{:#}", checked(bad).unwrap_err());
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_reference_is_resolved_at_its_base() {
        let base: Uri = "https://a.example:8443/v2/x/blobs/1?q=1".parse().unwrap();
        for (reference, url) in [
            ("https://b.example/y", "https://b.example/y"),
            ("//b.example/y", "https://b.example/y"),
            ("/y?z", "https://a.example:8443/y?z"),
            ("2", "https://a.example:8443/v2/x/blobs/2"),
        ] {
            assert_eq!(join(&base, reference), url);
        }
        assert_eq!(origin(&base), (Some("https"), Some("a.example"), 8443));
        assert_eq!(percent("a b&c/é"), "a%20b%26c%2F%C3%A9");
        assert_eq!(shown(&base), "\"https://a.example:8443/v2/x/blobs/1\"");
    }

    #[test]
    fn another_try_waits_longer_but_not_for_ever() {
        let client = Client::new();
        let pauses: Vec<_> =
            (1..=4).map(|tries| client.pause(Again::After(None), tries, false).unwrap()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000].map(Duration::from_millis));
        assert_eq!(client.pause(Again::After(None), 99, false), Some(PAUSE_MAX));
        assert_eq!(client.pause(Again::After(Some(PAUSE_MAX * 2)), 1, true), None);
        assert_eq!(client.pause(Again::IfItWorked, 1, false), None);
        assert!(client.pause(Again::IfItWorked, 1, true).is_some());
    }
}
