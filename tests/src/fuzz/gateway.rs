//! What a guest says to the gateway before it is believed: questions for names, TLS greetings, heads of requests to hosts that have a
//! secret, and what it asks the SSH agent.

use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};

use gateway::agent::{Identity, Request as Asked, identities, is_signature, list, request};
use gateway::credentials::{Injection, Lent, Secrets, Store};
use gateway::dns::{Found, Zone, answer};
use gateway::intercept::{Hello, client_hello, inject, is_host, prepare};
use gateway::policy::Name;
use http::{HeaderValue, Request, Uri, Version};

use super::Choices;

/// What is found in a greeting does not change with what comes later, and is what rustls finds, where that finds anything.
pub fn client_greeting(input: &[u8]) {
    let (cut, bytes) = input.split_first().unwrap_or((&0, &[]));
    let whole = client_hello(bytes);
    let part = client_hello(&bytes[..usize::from(*cut).min(bytes.len())]);
    assert!(part == whole || part == Hello::Incomplete, "{part:?} {whole:?}");
    if let Hello::Sni(Some(name)) = &whole {
        assert!(is_host(name) && *name == name.to_ascii_lowercase(), "{name}");
    }
    let mut acceptor = rustls::server::Acceptor::default();
    let mut rest = bytes;
    while acceptor.read_tls(&mut rest).is_ok_and(|count| count > 0) {}
    if let Ok(Some(accepted)) = acceptor.accept()
        && let Some(name) = accepted.client_hello().server_name()
    {
        // It knows names with a dot at their end, and such.
        let same = [Hello::Sni(None), Hello::Sni(Some(name.to_ascii_lowercase()))];
        assert!(same.contains(&whole), "{name} {whole:?}");
    }
}

pub fn client_greeting_seeds() -> Vec<Vec<u8>> {
    let greeting = |name: &'static str| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = name.try_into().expect("it is a name");
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("it can start");
        let mut bytes = vec![64];
        client.write_tls(&mut bytes).expect("memory takes it");
        bytes
    };
    vec![greeting("api.example.com"), greeting("192.0.2.1"), b"\x05GET / HTTP/1.1\r\n\r\n".to_vec()]
}

static SECRETS: LazyLock<Secrets> = LazyLock::new(|| {
    let lent = ["anthropic", "github", "google"]
        .map(|service| Lent { service: service.into(), secret: "s3cret-s3cret".into() });
    Secrets::new(&Store::default(), "box", &lent).expect("these services are known")
});
const HOSTS: [&str; 3] = ["api.anthropic.com", "github.com", "generativelanguage.googleapis.com"];
/// What is in a head by chance too rarely.
const NAMES: [&str; 10] = [
    "host",
    "authorization",
    "x-api-key",
    "cookie",
    "connection",
    "upgrade",
    "te",
    "transfer-encoding",
    "content-length",
    "sec-websocket-protocol",
];
const VALUES: [&str; 8] = [
    "api.anthropic.com",
    "github.com:443",
    "generativelanguage.googleapis.com",
    "upgrade, host",
    "websocket",
    "theirs",
    "trailers",
    "openai-insecure-api-key.theirs",
];
const TARGETS: [&str; 6] = [
    "/",
    "/a?key=theirs&b=1",
    "/?%61ccess_token=theirs",
    "*",
    "https://github.com/x?token=theirs",
    "http://github.com/",
];

/// A head that is sent on is for the one host, has our credential once and nobody else's.
pub fn request_head(input: &[u8]) {
    let mut choices = Choices(input);
    let injection = SECRETS.for_host(choices.of(&HOSTS), 443).expect("it has a secret");
    let Some(mut head) = head(&mut choices) else { return };
    if prepare(&mut head, injection).is_err() {
        return;
    }
    inject(&mut head, injection, HeaderValue::from_static("ours"));
    check(&head, injection);
}

fn head(choices: &mut Choices<'_>) -> Option<http::request::Parts> {
    let version = choices.of(&[Version::HTTP_10, Version::HTTP_11, Version::HTTP_2]);
    let target = match choices.byte() {
        0..192 => choices.of(&TARGETS).parse::<Uri>().ok()?,
        length => Uri::try_from(choices.take(usize::from(length)).to_vec()).ok()?,
    };
    let mut request = Request::builder().version(version).uri(target);
    while !choices.is_empty() {
        let length = usize::from(choices.byte());
        let (named, valued) = (length % 4 > 0, length % 8 > 1);
        let name =
            if named { choices.of(&NAMES).as_bytes().to_vec() } else { choices.take(length / 8).to_vec() };
        let value =
            if valued { choices.of(&VALUES).as_bytes().to_vec() } else { choices.take(length / 8).to_vec() };
        request = request.header(name, value);
    }
    Some(request.body(()).ok()?.into_parts().0)
}

fn check(head: &http::request::Parts, injection: &Injection) {
    let text = |name: &str| head.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
    assert_eq!(text(injection.header.as_str()), [b"ours"]);
    for name in ["authorization", "x-api-key", "x-goog-api-key", "proxy-authorization"] {
        assert!(name == injection.header.as_str() || text(name).is_empty(), "{head:?}");
    }
    let hosts = match head.version {
        Version::HTTP_2 => head.uri.authority().map(|it| it.as_str().as_bytes()).into_iter().collect(),
        _ => text("host"),
    };
    assert_eq!(hosts, [injection.host.as_bytes()], "{head:?}");
    assert!(text("transfer-encoding").is_empty() && text("connection").len() <= 1, "{head:?}");
    let query = head.uri.query().unwrap_or_default();
    let key = |parameter: &str| {
        parameter.split('=').next().is_some_and(|name| name.eq_ignore_ascii_case("access_token"))
    };
    assert!(!query.split('&').any(key), "{query}");
}

pub fn request_head_seeds() -> Vec<Vec<u8>> {
    // HTTP/1.1 to github.com with these, by their places in the lists.
    vec![
        vec![1, 1, 0, 1, 7, 0, 1, 7, 1, 5, 7, 3, 5],
        vec![1, 2, 0, 4, 7, 1, 5],
        vec![0, 1, 0, 0, 7, 0, 0, 7, 4, 3, 7, 5, 4],
    ]
}

/// An answer is short, repeats id and question, and answers nothing that is no question.
pub fn dns(input: &[u8]) {
    struct All;
    impl Zone for All {
        fn address(&mut self, name: &Name, _: bool) -> Found {
            assert_eq!(Name::parse(name.as_str()).as_ref(), Ok(name));
            match name.as_str().len() % 3 {
                0 => Found::Address([198, 18, 1, 0].into()),
                1 => Found::Denied,
                _ => Found::Full,
            }
        }

        fn name(&self, address: Ipv4Addr) -> Option<Name> {
            address.is_loopback().then(|| Name::parse("a.example").unwrap())
        }
    }
    let Some(answer) = answer(input, &mut All) else { return };
    assert!(answer.len() <= 512 && answer[..2] == input[..2]);
    assert!(answer[2] & 0x80 != 0 && input[2] & 0x80 == 0);
    if answer[5] == 1 {
        // As sent, up to the record that is the answer or the end.
        let end = answer.len() - if answer[7] == 1 { 12 } else { 0 };
        let same = answer[12..end].iter().zip(&input[12..]).take_while(|(a, b)| a == b).count();
        assert!(same >= 5, "the question is repeated");
    }
}

pub fn dns_seeds() -> Vec<Vec<u8>> {
    let header = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let names: [&[u8]; 3] =
        [b"\x01a\x07example\x00", b"\x011\x010\x010\x03127\x07in-addr\x04arpa\x00", b"\x00"];
    let kinds = [1, 12, 28, 65];
    let all = names.iter().flat_map(|name| kinds.map(|kind| [&header[..], name, &[0, kind, 0, 1]].concat()));
    all.collect()
}

/// What is passed on is one of two requests, whole; a list is what it was made of.
pub fn agent(input: &[u8]) {
    match request(input) {
        Some(Asked::List) => assert_eq!(input, [11]),
        Some(Asked::Sign { key }) => {
            assert_eq!(input[0], 13);
            assert!(key.len() + 13 <= input.len() && input[5..].starts_with(key));
        }
        None => {}
    }
    let known = identities(input);
    if let Some(known) = &known {
        assert_eq!(list(known.iter()), input);
        assert!(known.iter().all(|it| it.to_string().starts_with("SHA256:")));
    }
    assert!(!is_signature(input) || known.is_none() && request(input).is_none());
}

pub fn agent_seeds() -> Vec<Vec<u8>> {
    let identity = Identity { key: b"a key", comment: b"me@example" };
    let sign = b"\x0d\x00\x00\x00\x05a key\x00\x00\x00\x04data\x00\x00\x00\x04".to_vec();
    let signature = b"\x0e\x00\x00\x00\x04sign".to_vec();
    vec![vec![11], sign, signature, list([&identity, &identity].into_iter())]
}
