//! Hosts that want a log-in: a code host, which is `git http-backend`, a registry of packages, and one of images.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tests::hosts::{Answer, Body};
use tests::registry::{file, layer};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::super::TOKEN;

fn answer(status: StatusCode, kind: &str, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Full::from(body).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind.parse().expect("a type"));
    response
}

fn unless_authorised(request: &Request<Incoming>, wanted: &str) -> Option<Response<Body>> {
    let shown = request.headers().get_all(AUTHORIZATION).iter().collect::<Vec<_>>();
    if shown == [wanted] {
        return None;
    }
    let mut response = answer(StatusCode::UNAUTHORIZED, "text/plain", b"who are you?".to_vec());
    response.headers_mut().insert(WWW_AUTHENTICATE, "Basic realm=\"x\"".parse().expect("a value"));
    Some(response)
}

fn bearer(request: &Request<Incoming>) -> Option<Response<Body>> {
    unless_authorised(request, &format!("Bearer {TOKEN}"))
}

/// For who shows the token.
pub fn json(request: &Request<Incoming>, value: &Value) -> Answer {
    let ok = answer(StatusCode::OK, "application/json", value.to_string().into_bytes());
    let response = bearer(request).unwrap_or(ok);
    Box::pin(async { response })
}

/// A package with nothing in it.
pub fn npm(request: &Request<Incoming>) -> Answer {
    if request.uri().path().ends_with(".tgz") {
        let response =
            bearer(request).unwrap_or_else(|| answer(StatusCode::OK, "application/octet-stream", package()));
        return Box::pin(async { response });
    }
    let dist = json!({"tarball": "https://registry.npmjs.org/@me/private/-/private-1.0.0.tgz"});
    let version = json!({"name": "@me/private", "version": "1.0.0", "dist": dist});
    json(
        request,
        &json!({"name": "@me/private", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}),
    )
}

fn package() -> Vec<u8> {
    let content = br#"{"name": "@me/private", "version": "1.0.0"}"#;
    let tar = layer(|archive| file(archive, "package/package.json", 0o644, content)).expect("an archive");
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&tar).and_then(|()| gzip.finish()).expect("memory")
}

/// What the registry at that address has, which asks nobody who they are.
pub fn images(request: &Request<Incoming>, registry: Option<SocketAddr>) -> Answer {
    let denied = unless_authorised(request, &format!("Basic {}", super::BASIC));
    let path = request.uri().path().to_owned();
    let response = denied.unwrap_or_else(|| match path.as_str() {
        "/v2/" => answer(StatusCode::OK, "application/json", b"{}".to_vec()),
        _ => registry.and_then(|it| fetch(it, &path).ok()).expect("the registry answers"),
    });
    Box::pin(async { response })
}

fn fetch(registry: SocketAddr, path: &str) -> std::io::Result<Response<Body>> {
    let mut stream = TcpStream::connect_timeout(&registry, Duration::from_secs(10))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes())?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    Ok(parse(&all, |first| first.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(500)))
}

/// An answer with a head of lines, the first of which may have the status.
fn parse(all: &[u8], status: impl Fn(&str) -> u16) -> Response<Body> {
    let end = all.windows(4).position(|it| it == b"\r\n\r\n").unwrap_or(all.len());
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let mut kind = "text/plain";
    for line in head.lines() {
        if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("content-type")
        {
            kind = value;
        }
    }
    let status = StatusCode::from_u16(status(head.lines().next().unwrap_or_default())).expect("a status");
    answer(status, kind, all.get(end + 4..).unwrap_or_default().to_vec())
}

/// RFC 3875 "The Common Gateway Interface", as far as git's program goes.
pub async fn git(repositories: PathBuf, request: Request<Incoming>) -> Response<Body> {
    let login = format!("Basic {}", STANDARD.encode(format!("x-access-token:{TOKEN}")));
    if let Some(denied) = unless_authorised(&request, &login) {
        return denied;
    }
    let mut git = Command::new("git");
    git.arg("http-backend").env("GIT_PROJECT_ROOT", repositories).env("GIT_HTTP_EXPORT_ALL", "1");
    git.env("REQUEST_METHOD", request.method().as_str()).env("PATH_INFO", request.uri().path());
    git.env("QUERY_STRING", request.uri().query().unwrap_or_default()).env("REMOTE_USER", "me");
    let protocol = http::HeaderName::from_static("git-protocol");
    for (variable, header) in [
        ("CONTENT_TYPE", CONTENT_TYPE),
        ("HTTP_CONTENT_ENCODING", CONTENT_ENCODING),
        ("GIT_PROTOCOL", protocol),
    ] {
        let value = request.headers().get(header).and_then(|it| it.to_str().ok());
        git.env(variable, value.unwrap_or_default());
    }
    let body = request.into_body().collect().await.map(|it| it.to_bytes()).unwrap_or_default();
    git.env("CONTENT_LENGTH", body.len().to_string());
    let mut child = git.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("git is there");
    let mut input = child.stdin.take().expect("it is a pipe");
    let send = tokio::spawn(async move { input.write_all(&body).await });
    let output = child.wait_with_output().await.expect("it ends");
    // It need not read all of it.
    let _ = send.await;
    parse(&output.stdout, |first| match first.strip_prefix("Status: ") {
        Some(status) => status.get(..3).and_then(|it| it.parse().ok()).unwrap_or(500),
        None => 200,
    })
}
