//! What is said to an SSH agent and by it: draft-ietf-sshm-ssh-agent, 3 "Agent Protocol Messages", as far as listing and signing go.
//! It is pure, and understands a message whole or not at all.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::digest::{SHA256, digest};

/// Of a message: what OpenSSH's agent takes.
pub const MESSAGE_MAX: usize = 256 << 10;
/// SSH_AGENT_FAILURE.
pub const FAILURE: [u8; 1] = [5];
/// SSH_AGENTC_REQUEST_IDENTITIES.
pub const LIST: [u8; 1] = [11];
/// SSH_AGENT_IDENTITIES_ANSWER, SSH_AGENTC_SIGN_REQUEST, SSH_AGENT_SIGN_RESPONSE.
const IDENTITIES: u8 = 12;
const SIGN: u8 = 13;
const SIGNATURE: u8 = 14;
/// SSH_AGENT_RSA_SHA2_256 and SSH_AGENT_RSA_SHA2_512: how, and with the same key.
const FLAGS: u32 = 2 | 4;

/// What may be asked.
#[derive(Debug, PartialEq, Eq)]
pub enum Request<'a> {
    List,
    Sign { key: &'a [u8] },
}

/// A key of an agent, public.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity<'a> {
    pub key: &'a [u8],
    pub comment: &'a [u8],
}

/// A request that may be passed on, if the key may be used.
pub fn request(message: &[u8]) -> Option<Request<'_>> {
    if message == LIST {
        return Some(Request::List);
    }
    let mut rest = message.strip_prefix(&[SIGN])?;
    let key = string(&mut rest)?;
    string(&mut rest)?;
    let flags = number(&mut rest)?;
    (flags & !FLAGS == 0 && rest.is_empty()).then_some(Request::Sign { key })
}

/// The keys in an answer to `LIST`.
pub fn identities(message: &[u8]) -> Option<Vec<Identity<'_>>> {
    let mut rest = message.strip_prefix(&[IDENTITIES])?;
    let count = number(&mut rest)?;
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(Identity { key: string(&mut rest)?, comment: string(&mut rest)? });
    }
    rest.is_empty().then_some(all)
}

/// The answer to `LIST` that has these.
pub fn list<'a>(identities: impl Iterator<Item = &'a Identity<'a>>) -> Vec<u8> {
    let (mut count, mut body) = (0u32, Vec::new());
    for Identity { key, comment } in identities {
        count += 1;
        for text in [key, comment] {
            // It was one of a message, whose length is such a number.
            body.extend(u32::try_from(text.len()).unwrap_or_default().to_be_bytes());
            body.extend_from_slice(text);
        }
    }
    [&[IDENTITIES][..], &count.to_be_bytes(), &body].concat()
}

pub fn is_signature(message: &[u8]) -> bool {
    let Some(mut rest) = message.strip_prefix(&[SIGNATURE]) else { return false };
    string(&mut rest).is_some() && rest.is_empty()
}

/// As `ssh-keygen -l` has it.
pub fn fingerprint(key: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(digest(&SHA256, key)))
}

impl Identity<'_> {
    pub fn fingerprint(&self) -> String {
        fingerprint(self.key)
    }
}

/// For people; a comment is anything.
impl fmt::Display for Identity<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.fingerprint(), String::from_utf8_lossy(self.comment).escape_debug())
    }
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_be_bytes(*number))
}

fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(number(rest)?).ok()?;
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(key: &str, data: &str, flags: u32) -> Vec<u8> {
        let length = |text: &str| u32::try_from(text.len()).unwrap().to_be_bytes();
        [&[SIGN][..], &length(key), key.as_bytes(), &length(data), data.as_bytes(), &flags.to_be_bytes()]
            .concat()
    }

    #[test]
    fn only_listing_and_signing_are_requests() {
        assert_eq!(request(&LIST), Some(Request::List));
        assert_eq!(request(&sign("key", "data", 4)), Some(Request::Sign { key: b"key" }));
        // Adding, removing, locking, extensions, and whatever comes: a request of that kind, in each possible form of ours.
        for kind in (0..=u8::MAX).filter(|kind| ![LIST[0], SIGN].contains(kind)) {
            assert_eq!(request(&[kind]), None);
            assert_eq!(request(&[&[kind], &sign("key", "data", 0)[1..]].concat()), None);
        }
        let whole = sign("key", "data", 0);
        for end in 0..whole.len() {
            assert_eq!(request(&whole[..end]), None);
        }
        for bad in [&[&whole[..], &[0]].concat(), &[LIST[0], 0][..], &sign("key", "data", 1), &[]] {
            assert_eq!(request(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_answer_is_understood_whole() {
        let keys = [Identity { key: b"one", comment: b"me" }, Identity { key: b"", comment: b"\x1b[2J" }];
        let answer = list(keys.iter());
        assert_eq!(identities(&answer).unwrap(), keys);
        assert_eq!(identities(&list([].iter())), Some(Vec::new()));
        for end in 0..answer.len() {
            assert_eq!(identities(&answer[..end]), None);
        }
        assert_eq!(identities(&[IDENTITIES, 0xff, 0xff, 0xff, 0xff]), None);
        assert!(is_signature(&[SIGNATURE, 0, 0, 0, 1, 7]) && !is_signature(&[SIGNATURE, 0, 0, 0, 1, 7, 8]));
        assert_eq!(keys[1].to_string().split_once(' ').unwrap().1, r"\u{1b}[2J");
        // printf '' | sha256sum, in base64.
        assert_eq!(keys[1].fingerprint(), "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU");
    }
}
