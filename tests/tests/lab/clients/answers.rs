//! What the hosts of these tests answer: an API whose messages come as events, a websocket, a redirect.

mod services;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_TYPE, LOCATION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, channel::Channel};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use serde_json::{Value, json};
use tests::hosts::{Answer, Body};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

/// RFC 6455, 5.5.1 "Close".
const CLOSE: u8 = 8;
/// RFC 6455, 1.3 "Opening Handshake".
const WEBSOCKET: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What opens the registry of images: a name and a password, as it goes into a header.
pub const BASIC: &str = "bWU6Y2FuYXJ5LWMyYTRkNmY4MDkxYWFiYmNjZGQ=";

/// `registry` is where the images are.
pub fn answer(
    home: &Path,
    registry: Option<SocketAddr>,
) -> impl Fn(&str, Request<Incoming>) -> Answer + Send + Sync + use<> {
    let read = Arc::new(Notify::new());
    let repositories = home.join("repositories");
    move |host, request| {
        let read = Arc::clone(&read);
        match host {
            "github.com" => return Box::pin(services::git(repositories.clone(), request)),
            "api.github.com" => return services::json(&request, &json!({"login": "me"})),
            "registry.npmjs.org" => return services::npm(&request),
            "registry.example" => return services::images(&request, registry),
            _ => {}
        }
        match request.uri().path() {
            "/v1/messages" => Box::pin(message(request)),
            "/stream" => {
                Box::pin(async { events(["first", "second"].map(String::from).to_vec(), Some(read)) })
            }
            "/read" => {
                read.notify_one();
                Box::pin(async { text("fine") })
            }
            "/redirect" => Box::pin(async { redirect() }),
            "/websocket" => Box::pin(async { websocket(request) }),
            _ => Box::pin(async { text("fine") }),
        }
    }
}

fn text(text: &str) -> Response<Body> {
    Response::new(Full::from(text.to_owned()).boxed())
}

fn redirect() -> Response<Body> {
    let mut response = text("");
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    response.headers_mut().insert(LOCATION, "https://other.example/landed".parse().expect("an address"));
    response
}

/// A message, as events where it is asked for so, with "pong" as all that it says.
async fn message(request: Request<Incoming>) -> Response<Body> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let usage = json!({"input_tokens": 1, "output_tokens": 1});
    let message = |content: Value, reason: Value| {
        json!({"id": "msg_1", "type": "message", "role": "assistant", "model": asked["model"], "content": content,
               "stop_reason": reason, "stop_sequence": null, "usage": usage})
    };
    if asked["stream"] != true {
        return text(&message(json!([{"type": "text", "text": "pong"}]), "end_turn".into()).to_string());
    }
    let all = [
        json!({"type": "message_start", "message": message(json!([]), Value::Null)}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "pong"}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null}, "usage": usage}),
        json!({"type": "message_stop"}),
    ];
    let event = |it: &Value| format!("{}\ndata: {it}", it["type"].as_str().unwrap_or_default());
    events(all.iter().map(event).collect(), None)
}

/// Events, the second of which waits until the client has said that it has the first.
fn events(all: Vec<String>, read: Option<Arc<Notify>>) -> Response<Body> {
    let (mut sender, body) = Channel::new(1);
    tokio::spawn(async move {
        for (index, event) in all.into_iter().enumerate() {
            if let Some(read) = read.as_ref().filter(|_| index > 0) {
                read.notified().await;
            }
            if sender.send_data(Bytes::from(format!("event: {event}\n\n"))).await.is_err() {
                break;
            }
        }
    });
    let mut response = Response::new(body.boxed());
    response.headers_mut().insert(CONTENT_TYPE, "text/event-stream".parse().expect("a type"));
    response
}

/// Says what it is told.
fn websocket(mut request: Request<Incoming>) -> Response<Body> {
    let key = request.headers().get(SEC_WEBSOCKET_KEY).map(|it| it.as_bytes().to_vec()).unwrap_or_default();
    let accept = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[&key[..], WEBSOCKET.as_bytes()].concat());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(stream) = upgrade.await else { return };
        // It ends with its client.
        let _ = echo(TokioIo::new(stream)).await;
    });
    let mut response = text("");
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, accept);
    for (name, value) in [(CONNECTION, "upgrade"), (UPGRADE, "websocket"), (SEC_WEBSOCKET_ACCEPT, &accept)] {
        response.headers_mut().insert(name, value.parse().expect("a value"));
    }
    response
}

/// RFC 6455, 5.2 "Base Framing Protocol", as far as one short text goes.
async fn echo(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) -> std::io::Result<()> {
    loop {
        let [first, length] = [stream.read_u8().await?, stream.read_u8().await? & 0x7f];
        let mut mask = [0; 4];
        stream.read_exact(&mut mask).await?;
        let mut text = vec![0; length.into()];
        stream.read_exact(&mut text).await?;
        text.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        stream.write_all(&[&[first, length][..], &text].concat()).await?;
        stream.flush().await?;
        if first & 0xf == CLOSE {
            return Ok(());
        }
    }
}
