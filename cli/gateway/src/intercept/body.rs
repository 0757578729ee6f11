//! Bodies on their way through, as a stream: nothing is gathered.
//! It owns what may not pass: a client's credential in a request's trailers, and our secret in a response, from a host that
//! repeats what it is sent. It does not decode anything.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::{Bytes, Incoming};
use memchr::memmem::Finder;

use super::head;
use crate::credentials::Injection;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A shorter secret could be in any text by chance.
const NEEDLE_MIN: usize = 12;

/// A request's.
pub struct Request {
    pub body: Incoming,
    pub injection: Arc<Injection>,
}

impl Body for Request {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            head::strip_credentials(trailers, &self.injection);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's. The host's bytes pass as they come, but for an end that could become the secret with what follows.
pub struct Response {
    body: Incoming,
    secrets: Secrets,
    held: Vec<u8>,
    /// What comes after the bytes that are held.
    last: Option<Frame<Bytes>>,
    ended: bool,
}

impl Response {
    pub fn new(body: Incoming, secrets: Secrets) -> Self {
        Self { body, secrets, held: Vec::new(), last: None, ended: false }
    }
}

impl Body for Response {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        loop {
            if self.ended {
                let held = std::mem::take(&mut self.held);
                let rest = (!held.is_empty()).then(|| Frame::data(Bytes::from(held)));
                return Poll::Ready(rest.or(self.last.take()).map(Ok));
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose() {
                Ok(frame) => frame,
                // What is held goes with it: a body that breaks off is not one that ended.
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            };
            match frame.map(Frame::into_data) {
                Some(Ok(bytes)) => {
                    let this = &mut *self;
                    let passed = this.secrets.pass(&mut this.held, bytes)?;
                    if !passed.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(passed))));
                    }
                }
                Some(Err(trailers)) => {
                    if trailers.trailers_ref().is_some_and(|trailers| self.secrets.are_in(trailers)) {
                        return Poll::Ready(Some(Err(LEAK.into())));
                    }
                    (self.ended, self.last) = (true, Some(trailers));
                }
                None => self.ended = true,
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.last.is_none() && (self.ended || self.body.is_end_stream())
    }

    /// Nothing is taken out: it is all, or an error.
    fn size_hint(&self) -> SizeHint {
        match self.held.is_empty() && !self.ended {
            true => self.body.size_hint(),
            false => SizeHint::default(),
        }
    }
}

pub const LEAK: &str = "the host sends the credential back";

/// What must not come back, in each of the forms in which it is sent.
#[derive(Clone, Default)]
pub struct Secrets(Vec<Finder<'static>>);

impl Secrets {
    pub fn new(forms: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let forms = forms.into_iter().filter(|form| form.len() >= NEEDLE_MIN);
        Self(forms.map(|form| Finder::new(&form).into_owned()).collect())
    }

    pub fn are_in(&self, headers: &HeaderMap) -> bool {
        headers.values().any(|value| self.find(value.as_bytes()))
    }

    fn find(&self, text: &[u8]) -> bool {
        self.0.iter().any(|secret| secret.find(text).is_some())
    }

    /// How many of the last bytes are a secret's first.
    fn open_end(&self, text: &[u8]) -> usize {
        let of = |secret: &Finder<'_>| {
            let secret = secret.needle();
            let longest = (secret.len() - 1).min(text.len());
            (1..=longest).rev().find(|&count| secret.starts_with(&text[text.len() - count..])).unwrap_or(0)
        };
        self.0.iter().map(of).max().unwrap_or(0)
    }

    /// What can pass of the bytes that were held and these.
    fn pass(&self, held: &mut Vec<u8>, bytes: Bytes) -> Result<Bytes, Failure> {
        let mut text = match held.is_empty() {
            true => bytes,
            false => Bytes::from([held.as_slice(), &bytes].concat()),
        };
        if self.find(&text) {
            return Err(LEAK.into());
        }
        *held = text.split_off(text.len() - self.open_end(&text)).to_vec();
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "aab-aab-aac-secret";

    /// What passes of these pieces, and whether all of it may.
    fn passed(pieces: &[&str]) -> (String, bool) {
        let secrets = Secrets::new([SECRET.into(), b"short".to_vec(), b"another-one!".to_vec()]);
        let (mut held, mut out) = (Vec::new(), Vec::new());
        for piece in pieces {
            match secrets.pass(&mut held, Bytes::copy_from_slice(piece.as_bytes())) {
                Ok(bytes) => out.extend_from_slice(&bytes),
                Err(_) => return (String::from_utf8(out).unwrap(), false),
            }
        }
        out.extend(held);
        (String::from_utf8(out).unwrap(), true)
    }

    #[test]
    fn what_is_not_the_secret_passes_unchanged() {
        for pieces in [
            &["hello", "", " world"][..],
            &["aab-aab-", "aab-aab-aax", "aab"],
            &["a", "a", "b", "-", "x"],
            &["short", "anothe", "r-one?"],
            &["aab-aab-aac-secre"],
        ] {
            assert_eq!(passed(pieces), (pieces.concat(), true));
        }
    }

    #[test]
    fn no_cut_hides_the_secret() {
        let text = format!("aab-{SECRET} and more");
        for first in 0..text.len() {
            for second in first..text.len() {
                let (out, all) = passed(&[&text[..first], &text[first..second], &text[second..]]);
                assert!(!all && !out.contains("secret"), "{first} {second} {out}");
            }
        }
        let bytes: Vec<String> = text.chars().map(String::from).collect();
        assert!(!passed(&bytes.iter().map(String::as_str).collect::<Vec<_>>()).1);
        assert!(!passed(&["x another-one! y"]).1);
    }
}
