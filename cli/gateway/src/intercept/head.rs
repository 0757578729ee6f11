//! What becomes of a request's head: it must be for the host that the stream is for, and every credential that the client put
//! in is gone before ours is set. And of a response's: what belongs to the connection stays with it.
//! It owns the lists of what is taken out. It is pure; hyper has parsed the messages.

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, PROXY_AUTHORIZATION,
    SEC_WEBSOCKET_PROTOCOL, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, request, response};

use crate::credentials::Injection;

/// Headers that log somebody in, at one service or another: on a host with a secret none of them is the client's.
const CREDENTIALS: [HeaderName; 14] = [
    AUTHORIZATION,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
    HeaderName::from_static("x-goog-iam-authorization-token"),
    HeaderName::from_static("x-auth-token"),
    HeaderName::from_static("x-auth-key"),
    HeaderName::from_static("x-access-token"),
    HeaderName::from_static("x-amz-security-token"),
    HeaderName::from_static("x-authorization"),
    HeaderName::from_static("private-token"),
    HeaderName::from_static("job-token"),
    HeaderName::from_static("x-token"),
];
/// The same, in addresses; compared without their case.
const QUERY: [&str; 6] = ["access_token", "oauth_token", "bearer_token", "api_key", "apikey", "api-key"];
/// Beginnings of a websocket's subprotocols that are none, but carry a credential where a browser can set no header.
const SUBPROTOCOLS: [&str; 2] = ["openai-insecure-api-key.", "base64url.bearer.authorization."];
/// RFC 9110, 7.6.1 "Connection", and what came before it.
const HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Why a request is not sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// RFC 9110, 15.5.20 "421 Misdirected Request".
    Misdirected,
    /// CONNECT would be a way to another host, TRACE would show what was set.
    Method,
    Malformed,
}

impl Refusal {
    pub fn status(self) -> StatusCode {
        match self {
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Malformed => StatusCode::BAD_REQUEST,
        }
    }

    pub fn reason(self) -> &'static str {
        match self {
            Self::Misdirected => "the request is for another host than the connection",
            Self::Method => "this method is not passed on",
            Self::Malformed => "the request's head is not understood",
        }
    }
}

/// Makes a request's head what is sent on, but for the credential. True when it asks for a websocket.
pub fn prepare(head: &mut request::Parts, injection: &Injection) -> Result<bool, Refusal> {
    if head.method == Method::CONNECT || head.method == Method::TRACE {
        return Err(Refusal::Method);
    }
    check_host(head, injection)?;
    let websocket = head.version == Version::HTTP_11
        && head.headers.get_all(UPGRADE).iter().any(|it| it.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && names(&head.headers, &CONNECTION).any(|it| it.eq_ignore_ascii_case("upgrade"));
    strip_credentials(&mut head.headers, injection);
    strip_hop_by_hop(&mut head.headers, head.version);
    // We answer it; the host is not asked, as what it answers would come too late.
    head.headers.remove(EXPECT);
    // What comes back must be readable, or a host that repeats what it is sent would hand our secret to the guest.
    head.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if websocket {
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, WEBSOCKET);
        strip_subprotocols(&mut head.headers);
    }
    address(head, injection)?;
    Ok(websocket)
}

/// Sets the credential: the last thing that happens to a head.
pub fn inject(head: &mut request::Parts, injection: &Injection, value: HeaderValue) {
    head.headers.insert(injection.header.clone(), value);
}

/// Every place where a request can name a host must name the one host, and one must.
fn check_host(head: &request::Parts, injection: &Injection) -> Result<(), Refusal> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next().map(HeaderValue::as_bytes);
    if hosts.next().is_some() || host.is_none() && head.uri.authority().is_none() {
        return Err(Refusal::Malformed);
    }
    let authority = head.uri.authority().map(|it| it.as_str().as_bytes());
    let named = [host, authority].into_iter().flatten();
    let secure = head.uri.scheme().is_none_or(|scheme| *scheme == Scheme::HTTPS);
    match secure && named.into_iter().all(|it| is_for(it, injection)) {
        true => Ok(()),
        false => Err(Refusal::Misdirected),
    }
}

/// RFC 9110, 7.2 "Host and :authority"; no user, no dot at the end, no port but the stream's own.
fn is_for(named: &[u8], injection: &Injection) -> bool {
    let port = format!(":{}", injection.port);
    let host = named.strip_suffix(port.as_bytes()).filter(|host| !host.contains(&b':'));
    // The default port goes without saying; another must be said.
    let host = host.or((injection.port == 443).then_some(named));
    host.is_some_and(|host| host.eq_ignore_ascii_case(injection.host.as_bytes()))
}

fn is_credential(name: &HeaderName, injection: &Injection) -> bool {
    CREDENTIALS.contains(name) || *name == injection.header || injection.cookies && *name == COOKIE
}

/// Also of trailers, which some servers take for headers.
pub fn strip_credentials(headers: &mut HeaderMap, injection: &Injection) {
    let found: Vec<_> = headers.keys().filter(|name| is_credential(name, injection)).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

fn strip_hop_by_hop(headers: &mut HeaderMap, version: Version) {
    let trailers = version == Version::HTTP_2 && names(headers, &TE).any(|it| it == "trailers");
    let named: Vec<_> = names(headers, &CONNECTION).filter_map(|it| it.parse::<HeaderName>().ok()).collect();
    if headers.contains_key(TRANSFER_ENCODING) {
        // RFC 9112, 6.3 "Message Body Length": what both were given for was read by this one.
        headers.remove(CONTENT_LENGTH);
    }
    for name in named.iter().chain(&HOP_BY_HOP).filter(|&name| *name != HOST && *name != CONTENT_LENGTH) {
        headers.remove(name);
    }
    if trailers {
        // gRPC's servers insist on it.
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// The words of a header that is a list.
fn names<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let texts = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',').map(str::trim))
}

fn strip_subprotocols(headers: &mut HeaderMap) {
    let is_one = |word: &&str| SUBPROTOCOLS.iter().any(|it| word.to_ascii_lowercase().starts_with(it));
    if !names(headers, &SEC_WEBSOCKET_PROTOCOL).any(|word| is_one(&word)) {
        return;
    }
    let kept: Vec<_> = names(headers, &SEC_WEBSOCKET_PROTOCOL).filter(|word| !is_one(word)).collect();
    let kept = HeaderValue::from_str(&kept.join(", "));
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    if let Some(kept) = kept.ok().filter(|kept| !kept.is_empty()) {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, kept);
    }
}

/// The target in the form that the version has, without the client's keys, and the one name of the host.
fn address(head: &mut request::Parts, injection: &Injection) -> Result<(), Refusal> {
    let target = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let target = without_keys(target, injection.query);
    let target = PathAndQuery::try_from(target).map_err(|_| Refusal::Malformed)?;
    let host = match injection.port {
        443 => injection.host.clone(),
        port => format!("{}:{port}", injection.host),
    };
    head.headers.remove(HOST);
    let mut uri = http::uri::Parts::default();
    if head.version == Version::HTTP_2 {
        uri.scheme = Some(Scheme::HTTPS);
        uri.authority = Some(Authority::try_from(host).map_err(|_| Refusal::Malformed)?);
    } else {
        head.version = Version::HTTP_11;
        let host = HeaderValue::try_from(host).map_err(|_| Refusal::Malformed)?;
        head.headers.insert(HOST, host);
    }
    uri.path_and_query = Some(target);
    head.uri = Uri::from_parts(uri).map_err(|_| Refusal::Malformed)?;
    Ok(())
}

fn without_keys(target: &str, more: &[&str]) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.to_owned() };
    let is_key = |parameter: &&str| {
        let name = decoded(parameter.split('=').next().unwrap_or_default());
        // Google takes its parameters with a dollar sign as well.
        let name = name.strip_prefix(b"$").unwrap_or(&name);
        QUERY.iter().chain(more).any(|key| name.eq_ignore_ascii_case(key.as_bytes()))
    };
    let kept: Vec<_> = query.split('&').filter(|parameter| !is_key(parameter)).collect();
    match kept.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{}", kept.join("&")),
    }
}

/// What a server reads where there are percent signs.
fn decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let byte = match tail {
            [high, low, ..] if *first == b'%' => {
                let digits = std::str::from_utf8(&tail[..2])
                    .ok()
                    .filter(|_| high.is_ascii_hexdigit() && low.is_ascii_hexdigit());
                digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())
            }
            _ => None,
        };
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    out
}

/// A response's head as the client gets it.
pub fn pass_back(head: &mut response::Parts) {
    let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
    strip_hop_by_hop(&mut head.headers, Version::HTTP_11);
    if switching {
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, WEBSOCKET);
    }
}

#[cfg(test)]
mod tests;
