//! Heads as clients and attackers write them.

use super::*;
use crate::credentials::{Entry, Origin, Secrets, Store};

/// The injection of a service on its first host.
fn injection(service: &str, host: &str) -> std::sync::Arc<Injection> {
    let settings = tempfile::tempdir().unwrap();
    let origin = Origin::Value("s3cret-s3cret".into());
    let entry = Entry { service: service.into(), sandbox: None, origin, custom: None };
    Store::change(settings.path(), |secrets| secrets.push(entry)).unwrap();
    let secrets = Secrets::load(settings.path(), "box", &[]).unwrap();
    secrets.for_host(host, 443).unwrap().clone()
}

fn anthropic() -> std::sync::Arc<Injection> {
    injection("anthropic", "api.anthropic.com")
}

fn head(version: Version, method: &str, uri: &str, headers: &[(&str, &str)]) -> request::Parts {
    let mut request = http::Request::builder().version(version).method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// What is sent on of a GET by HTTP/1.1 with these headers, as sorted lines.
fn sent(
    uri: &str,
    headers: &[(&str, &str)],
    injection: &Injection,
) -> Result<(String, Vec<String>), Refusal> {
    let headers = [&[("host", injection.host.as_str())], headers].concat();
    let mut head = head(Version::HTTP_11, "GET", uri, &headers);
    prepare(&mut head, injection)?;
    let mut lines: Vec<_> =
        head.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    lines.sort();
    Ok((head.uri.to_string(), lines))
}

#[test]
fn the_clients_credentials_are_taken_out() {
    let theirs = [
        ("authorization", "Bearer theirs"),
        ("Authorization", "Basic dGhlaXJz"),
        ("X-Api-Key", "theirs"),
        ("x-goog-api-key", "theirs"),
        ("proxy-authorization", "Basic dGhlaXJz"),
        ("api-key", "theirs"),
        ("cookie", "kept=1"),
        ("anthropic-version", "2023-06-01"),
    ];
    let (uri, lines) = sent(
        "/v1/messages?beta=true&api%5Fkey=theirs&Access_Token=theirs&%24api_key=theirs",
        &theirs,
        &anthropic(),
    )
    .unwrap();
    assert_eq!(uri, "/v1/messages?beta=true");
    let kept = [
        "accept-encoding: identity",
        "anthropic-version: 2023-06-01",
        "cookie: kept=1",
        "host: api.anthropic.com",
    ];
    assert_eq!(lines, kept);
    let (uri, _) =
        sent("/v1beta/models?%6bey=theirs", &[], &injection("google", "generativelanguage.googleapis.com"))
            .unwrap();
    assert_eq!(uri, "/v1beta/models");
    let (uri, lines) =
        sent("/a?token=theirs&x", &[("cookie", "login=theirs")], &injection("github", "github.com")).unwrap();
    assert_eq!((uri.as_str(), lines.len()), ("/a?x", 2));
}

#[test]
fn what_only_looks_like_a_key_stays() {
    for uri in ["/v1/keys?keyboard=1&monkey=2", "/?", "/?a&&b=%", "/api_key=1?x=api_key", "/a?b=%4"] {
        assert_eq!(sent(uri, &[], &anthropic()).unwrap().0, uri);
    }
}

#[test]
fn a_request_is_for_the_host_of_its_connection() {
    let injection = anthropic();
    let refused = |version, method: &str, uri: &str, hosts: &[&str]| {
        let headers: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
        prepare(&mut head(version, method, uri, &headers), &injection).err()
    };
    let h1 = |uri: &str, hosts: &[&str]| refused(Version::HTTP_11, "GET", uri, hosts);
    for hosts in [["api.anthropic.com"], ["API.Anthropic.com"], ["api.anthropic.com:443"]] {
        assert_eq!(h1("/", &hosts), None);
    }
    assert_eq!(h1("https://api.anthropic.com/", &["api.anthropic.com"]), None);
    for host in [
        "evil.example",
        "api.anthropic.com.evil.example",
        "api.anthropic.com.",
        "api.anthropic.com:80",
        "api.anthropic.com:443:443",
        "user@api.anthropic.com",
        "api.anthropic.com,evil.example",
        "",
    ] {
        assert_eq!(h1("/", &[host]), Some(Refusal::Misdirected), "{host}");
    }
    assert_eq!(h1("/", &[]), Some(Refusal::Malformed));
    assert_eq!(h1("/", &["api.anthropic.com", "api.anthropic.com"]), Some(Refusal::Malformed));
    for uri in ["https://evil.example/", "http://api.anthropic.com/", "https://user@api.anthropic.com/"] {
        assert_eq!(h1(uri, &["api.anthropic.com"]), Some(Refusal::Misdirected), "{uri}");
    }
    let h2 = |uri: &str, hosts: &[&str]| refused(Version::HTTP_2, "POST", uri, hosts);
    assert_eq!(h2("https://api.anthropic.com/v1", &[]), None);
    assert_eq!(h2("https://api.anthropic.com/v1", &["evil.example"]), Some(Refusal::Misdirected));
    assert_eq!(h2("https://evil.example/v1", &["api.anthropic.com"]), Some(Refusal::Misdirected));
    for method in ["CONNECT", "TRACE"] {
        assert_eq!(refused(Version::HTTP_11, method, "/", &["api.anthropic.com"]), Some(Refusal::Method));
    }
}

#[test]
fn what_belongs_to_the_connection_stays_there() {
    let (_, lines) = sent(
        "/",
        &[
            ("connection", "keep-alive, X-Secret, host, content-length"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("transfer-encoding", "chunked"),
            ("content-length", "7"),
            ("expect", "100-continue"),
            ("accept-encoding", "gzip, br"),
        ],
        &anthropic(),
    )
    .unwrap();
    assert_eq!(lines, ["accept-encoding: identity", "host: api.anthropic.com"]);
    let mut grpc = head(Version::HTTP_2, "POST", "https://api.anthropic.com/", &[("te", "trailers")]);
    prepare(&mut grpc, &anthropic()).unwrap();
    assert_eq!(grpc.headers.get("te").unwrap(), "trailers");
    assert_eq!((grpc.uri.to_string().as_str(), grpc.headers.len()), ("https://api.anthropic.com/", 2));
}

#[test]
fn websockets_are_the_one_other_protocol() {
    let (_, lines) = sent(
        "/v1/realtime",
        &[
            ("connection", "Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-protocol", "realtime, openai-insecure-api-key.theirs"),
        ],
        &injection("openai", "api.openai.com"),
    )
    .unwrap();
    assert_eq!(
        lines,
        [
            "accept-encoding: identity",
            "connection: upgrade",
            "host: api.openai.com",
            "sec-websocket-protocol: realtime",
            "upgrade: websocket",
        ]
    );
}
