//! One repository of one registry: its manifests and blobs, and who we are to it. It owns the log-in: what a registry may
//! ask for is a token to read this repository, and what it gets is the user's password for itself.
//! Sources: OCI Distribution Specification 1.1, "Pulling manifests", "Pulling blobs"; Docker Registry, "Token
//! Authentication Specification"; RFC 6749, 6 "Refreshing an Access Token".

use std::sync::Mutex;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use ureq::http::header::WWW_AUTHENTICATE;
use ureq::http::{HeaderMap, Uri};

use super::credentials::Login;
use super::manifest::{DOCUMENT_MAX, INDEX, INDEX_DOCKER, MANIFEST, MANIFEST_DOCKER};
use super::reference::Version;
use crate::digest::{Digest, Hasher};
use crate::fetch::client::{is_loopback_host, percent};
use crate::fetch::{Answer, Client, Failure};
use crate::text::{plain, quoted};

const TOKEN_MAX: u64 = 1 << 20;
const COMPLAINT_MAX: u64 = 64 << 10;
const TRIES_MAX: u32 = 4;

pub struct Repository<'a> {
    client: &'a Client,
    /// Such as `https://registry-1.docker.io`, with what a mirror has before `/v2/`.
    base: String,
    /// For messages.
    pub host: String,
    name: String,
    login: Option<Login>,
    /// The header that has worked last.
    authorization: Mutex<Option<String>>,
}

impl<'a> Repository<'a> {
    pub fn new(client: &'a Client, base: &str, name: &str, login: Option<Login>) -> Self {
        let base = base.trim_end_matches('/').to_owned();
        let host = authority(&base).to_owned();
        Self { client, base, host, name: name.to_owned(), login, authorization: Mutex::default() }
    }

    /// A manifest or an index, and its digest. What is asked for by its digest is what comes.
    pub fn manifest(&self, version: &Version) -> Result<(Vec<u8>, Digest)> {
        let accept = [MANIFEST, INDEX, MANIFEST_DOCKER, INDEX_DOCKER].join(", ");
        let path = format!("manifests/{version}");
        let mut tries = 0;
        let bytes = loop {
            tries += 1;
            match self.ask(&path, Some(&accept), 0).and_then(|answer| answer.bytes(DOCUMENT_MAX)) {
                Ok(bytes) => break bytes,
                Err(failure) => match self.client.pause(failure.again, tries, false) {
                    Some(pause) if tries < TRIES_MAX => std::thread::sleep(pause),
                    _ => return Err(failure.error),
                },
            }
        };
        let digest = match version {
            Version::Tag(_) => Digest::of(&bytes),
            Version::Digest(digest) => {
                let mut hasher = Hasher::like(digest);
                hasher.update(&bytes);
                digest
                    .expect(&hasher.finish())
                    .with_context(|| format!("the manifest from {}", self.host))?;
                digest.clone()
            }
        };
        Ok((bytes, digest))
    }

    /// A blob from some byte on; it is not verified here.
    pub fn blob(&self, digest: &Digest, from: u64) -> Result<Answer, Failure> {
        self.ask(&format!("blobs/{digest}"), None, from)
    }

    fn ask(&self, path: &str, accept: Option<&str>, from: u64) -> Result<Answer, Failure> {
        let url = format!("{}/v2/{}/{path}", self.base, self.name);
        let mut authorization = self.authorization.lock().expect("no one panics while holding it").clone();
        let send = |authorization: Option<&str>| {
            let fields = [authorization.map(|it| ("authorization", it)), accept.map(|it| ("accept", it))];
            self.client.get(&url, &fields.into_iter().flatten().collect::<Vec<_>>(), from)
        };
        let mut answer = send(authorization.as_deref())?;
        if answer.status == 401 {
            authorization = self.authorize(&answer.headers, authorization.as_deref())?;
            answer = send(authorization.as_deref())?;
        }
        match answer.status {
            200 | 206 | 416 => answer.content(),
            401 | 403 | 404 => Err(self.denied(answer)),
            _ => {
                let failure = answer.refusal();
                let said = complaint(answer);
                Err(Failure { error: anyhow!("{}{said}", failure.error), ..failure })
            }
        }
    }

    fn denied(&self, answer: Answer) -> Failure {
        let name = format!("{}/{}", self.host, self.name);
        let what = match (answer.status, &self.login) {
            (404, _) => format!("{name} does not have it; check name and tag"),
            (_, None) => format!(
                "{name} does not exist or is not for everybody; check the name, or use docker login {}",
                self.host
            ),
            (_, Some(_)) => {
                format!("{name} does not exist, or is not for who you are there (docker login {})", self.host)
            }
        };
        anyhow!("{what}{}", complaint(answer)).into()
    }

    /// A header that the registry will accept. `refused` is what it has not.
    fn authorize(&self, headers: &HeaderMap, refused: Option<&str>) -> Result<Option<String>, Failure> {
        let mut known = self.authorization.lock().expect("no one panics while holding it");
        // Another thread may have been quicker.
        if known.as_deref() != refused {
            return Ok(known.clone());
        }
        let offered = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenges: Vec<_> = offered.filter_map(Challenge::parse).collect();
        let of = |scheme: &str| challenges.iter().find(|it| it.scheme.eq_ignore_ascii_case(scheme));
        let header = if let Some(challenge) = of("bearer") {
            let token = self.token(challenge).with_failure(|| format!("log in to {}", self.host))?;
            Some(format!("Bearer {token}"))
        } else if of("basic").is_some() {
            self.login.as_ref().and_then(Login::basic)
        } else {
            return Err(anyhow!("{} wants a log-in of a kind that is not understood", self.host).into());
        };
        known.clone_from(&header);
        Ok(header)
    }

    /// A token to read this repository, whatever the challenge would have it for.
    fn token(&self, challenge: &Challenge) -> Result<String, Failure> {
        let realm = challenge.get("realm").context("it does not say where tokens come from")?;
        let realm_host =
            host(realm).with_context(|| format!("tokens come from {}, which is no URL", quoted(realm)))?;
        let is_own = host(&self.base).is_some_and(|own| is_loopback_host(&own));
        if is_loopback_host(&realm_host) && !is_own {
            return Err(anyhow!("it sends us to this machine for a token, which is not done").into());
        }
        let scope = format!("repository:{}:pull", self.name);
        let service = challenge.get("service").unwrap_or_default();
        let answer = if let Some(Login::IdentityToken(token)) = &self.login {
            let form = [
                ("grant_type", "refresh_token"),
                ("service", service),
                ("scope", &scope),
                ("client_id", "coracle"),
                ("refresh_token", token),
            ];
            self.client.post_form(realm, &form)?
        } else {
            let separator = if realm.contains('?') { '&' } else { '?' };
            let url = format!("{realm}{separator}service={}&scope={}", percent(service), percent(&scope));
            let basic = self.login.as_ref().and_then(Login::basic);
            let fields: Vec<_> = basic.iter().map(|it| ("authorization", it.as_str())).collect();
            self.client.get(&url, &fields, 0)?
        };
        match answer.status {
            200 => (),
            401 | 403 if self.login.is_some() => {
                return Err(anyhow!(
                    "your password or token is not accepted; use docker login {}",
                    self.host
                )
                .into());
            }
            _ => return Err(answer.refusal()),
        }
        let token: Token = serde_json::from_slice(&answer.bytes(TOKEN_MAX)?)
            .map_err(|_| anyhow!("the answer of {} is not a token", quoted(&realm_host)))?;
        let token = token.token.or(token.access_token).filter(|it| is_token(it));
        Ok(token.with_context(|| format!("the answer of {} has no token in it", quoted(&realm_host)))?)
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

trait WithFailure<T> {
    fn with_failure(self, context: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> WithFailure<T> for Result<T, Failure> {
    fn with_failure(self, context: impl FnOnce() -> String) -> Self {
        self.map_err(|failure| Failure { error: failure.error.context(context()), ..failure })
    }
}

/// What a registry says about an error, as the rest of a message.
fn complaint(answer: Answer) -> String {
    #[derive(Deserialize)]
    struct Complaints {
        errors: Vec<Complaint>,
    }
    #[derive(Deserialize)]
    struct Complaint {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let body = answer.bytes(COMPLAINT_MAX).unwrap_or_default();
    let complaints = serde_json::from_slice::<Complaints>(&body).ok();
    match complaints.and_then(|it| it.errors.into_iter().next()) {
        Some(Complaint { code, message }) => {
            format!(" ({})", plain(format!("{code}: {message}").chars().take(200).collect::<String>()))
        }
        None => String::new(),
    }
}

/// RFC 9110, 11.6.1 "WWW-Authenticate", one challenge to a field, as all registries have it.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let mut parameters = Vec::new();
        loop {
            rest = rest.trim_start_matches([' ', ',']);
            let Some((name, after)) = rest.split_once('=') else { break };
            let value;
            (value, rest) = match after.strip_prefix('"') {
                Some(quoted) => unquote(quoted)?,
                None => {
                    let end = after.find(',').unwrap_or(after.len());
                    (after[..end].trim().to_owned(), &after[end..])
                }
            };
            parameters.push((name.trim().to_ascii_lowercase(), value));
        }
        (!scheme.is_empty()).then(|| Self { scheme: scheme.to_owned(), parameters })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }
}

/// What stands before the closing quote, and what after it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(c),
        }
    }
    None
}

/// The address of a registry, which is asked in the clear only when it is this machine.
pub fn base(registry: &str) -> String {
    let clear = format!("http://{registry}");
    match registry {
        "docker.io" => "https://registry-1.docker.io".into(),
        _ if host(&clear).is_some_and(|host| is_loopback_host(&host)) => clear,
        _ => format!("https://{registry}"),
    }
}

/// The host of such an address, with its port.
pub fn authority(base: &str) -> &str {
    let rest = base.split_once("://").map_or(base, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

/// The host of a URL, without its port.
fn host(url: &str) -> Option<String> {
    url.parse::<Uri>().ok()?.host().map(str::to_owned)
}

/// Refuses what is no address of a mirror.
pub fn check_base(url: &str) -> Result<()> {
    let uri: Uri = url.parse().with_context(|| format!("{} is not a URL", quoted(url)))?;
    let host = uri.host().with_context(|| format!("{} has no host", quoted(url)))?;
    match uri.scheme_str() {
        Some("https") => (),
        Some("http") if is_loopback_host(host) => (),
        Some("http") => bail!("{} is not encrypted, which is accepted of this machine only", quoted(url)),
        _ => bail!("{} does not begin with https://", quoted(url)),
    }
    ensure!(!url.contains(['@', '?', '#']), "{} has more than a host and a path", quoted(url));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_taken_apart() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull,push""#;
        let challenge = Challenge::parse(hub).unwrap();
        assert_eq!(challenge.get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(challenge.get("service"), Some("registry.docker.io"));
        assert_eq!(challenge.get("scope"), Some("repository:library/debian:pull,push"));
        let plain = Challenge::parse(r#"basic Realm=a b , charset="U\"T\\F" , x"#).unwrap();
        assert_eq!(
            (plain.scheme.as_str(), plain.get("realm"), plain.get("charset")),
            ("basic", Some("a b"), Some("U\"T\\F"))
        );
        assert_eq!(Challenge::parse("Negotiate").unwrap().parameters, []);
        for broken in ["", " ", r#"Bearer realm="x"#, r#"Bearer realm="x\"#] {
            assert_eq!(Challenge::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn any_challenge_is_read_or_not() {
        let alphabet: Vec<char> = "Bearer =\",\\é\n".chars().collect();
        let mut state = 1_u64;
        for _ in 0..100_000 {
            let text: String = std::iter::from_fn(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = usize::try_from(state >> 33).unwrap() % (alphabet.len() + 1);
                alphabet.get(at)
            })
            .collect();
            Challenge::parse(&text);
        }
    }

    #[test]
    fn only_this_machine_is_asked_in_the_clear() {
        for (host, url) in [
            ("docker.io", "https://registry-1.docker.io"),
            ("ghcr.io", "https://ghcr.io"),
            ("localhost", "http://localhost"),
            ("localhost:5000", "http://localhost:5000"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000"),
            ("127.0.0.1", "http://127.0.0.1"),
            ("[::1]:5000", "http://[::1]:5000"),
            ("[::1]", "http://[::1]"),
            ("localhost.example:5000", "https://localhost.example:5000"),
            ("192.0.2.1:5000", "https://192.0.2.1:5000"),
        ] {
            assert_eq!(base(host), url);
        }
        for good in ["https://mirror.example/docker-hub", "http://localhost:5000"] {
            check_base(good).unwrap();
        }
        for bad in
            ["", "mirror.example", "http://mirror.example", "ftp://localhost", "https://u:p@x", "https://x?y"]
        {
            assert!(check_base(bad).is_err(), "{bad}");
        }
    }
}
