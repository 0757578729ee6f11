//! DNS as a sandbox sees it: one question in, one answer out (RFC 1035, 4 "Messages").
//! It owns these bytes. Which names there are is its caller's to say; nothing is asked of any other server.

use std::net::Ipv4Addr;

use crate::policy::Name;

/// A question and what may come with it; what is longer is not answered.
pub const MESSAGE_MAX: usize = 4096;
const HEADER: usize = 12;
/// Of a name as it is sent, the lengths of its labels included.
const NAME_MAX: usize = 255;
/// Of the addresses, which never change: no longer than a change of policy may take to be seen.
const TTL_S: u32 = 30;

const A: u16 = 1;
const PTR: u16 = 12;
const IN: u16 = 1;

const IS_ANSWER: u16 = 1 << 15;
const AUTHORITY: u16 = 1 << 10;
const RECURSION_DESIRED: u16 = 1 << 8;
const RECURSION_AVAILABLE: u16 = 1 << 7;

const FORMAT_ERROR: u16 = 1;
const SERVER_FAILURE: u16 = 2;
const NO_SUCH_NAME: u16 = 3;
const NOT_IMPLEMENTED: u16 = 4;

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Address(Ipv4Addr),
    /// It may not be reached, and so is not there.
    Denied,
    /// There is no room for it.
    Full,
}

/// Where names are known.
pub trait Zone {
    /// The address of a name. `asked` is that it was asked for; else it matters only whether there is one.
    fn address(&mut self, name: &Name, asked: bool) -> Found;
    fn name(&self, address: Ipv4Addr) -> Option<Name>;
}

struct Question<'a> {
    /// As it was sent, with type and class.
    bytes: &'a [u8],
    /// With dots, if it could be a host's.
    name: Option<String>,
    kind: u16,
    class: u16,
}

/// Answers a message; `None` for what is no question at all.
pub fn answer(message: &[u8], zone: &mut impl Zone) -> Option<Vec<u8>> {
    let header = message.get(..HEADER)?;
    let flags = number(header, 2)?;
    if message.len() > MESSAGE_MAX || flags & IS_ANSWER != 0 {
        return None;
    }
    let question = (number(header, 4)? == 1).then(|| question(&message[HEADER..])).flatten();
    let (code, data) = match &question {
        _ if flags >> 11 & 0xf != 0 => (NOT_IMPLEMENTED, None),
        None => (FORMAT_ERROR, None),
        Some(question) if question.class != IN => (NOT_IMPLEMENTED, None),
        Some(question) => look(question, zone),
    };
    let mut reply = header[..2].to_vec();
    let flags = IS_ANSWER | AUTHORITY | RECURSION_AVAILABLE | flags & (0xf << 11 | RECURSION_DESIRED) | code;
    for field in [flags, question.is_some().into(), data.is_some().into(), 0, 0] {
        reply.extend(field.to_be_bytes());
    }
    if let Some(question) = question {
        reply.extend(question.bytes);
        if let Some(data) = data {
            // The name is that of the question, which is at a known place: RFC 1035, 4.1.4.
            reply.extend([0xc0, 12]);
            reply.extend([question.kind.to_be_bytes(), IN.to_be_bytes()].concat());
            reply.extend(TTL_S.to_be_bytes());
            reply.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
            reply.extend(data);
        }
    }
    Some(reply)
}

/// The code of an answer, and its data when there are any.
fn look(question: &Question<'_>, zone: &mut impl Zone) -> (u16, Option<Vec<u8>>) {
    let Some(text) = &question.name else { return (NO_SUCH_NAME, None) };
    if let Some(reversed) = text.strip_suffix(".in-addr.arpa") {
        let name = reverse(reversed).and_then(|address| zone.name(address));
        return match name {
            Some(name) if question.kind == PTR => (0, Some(labels(&name))),
            Some(_) => (0, None),
            None => (NO_SUCH_NAME, None),
        };
    }
    let Ok(name) = Name::parse(text) else { return (NO_SUCH_NAME, None) };
    match zone.address(&name, question.kind == A) {
        Found::Address(address) if question.kind == A => (0, Some(address.octets().to_vec())),
        Found::Address(_) => (0, None),
        Found::Denied => (NO_SUCH_NAME, None),
        Found::Full => (SERVER_FAILURE, None),
    }
}

fn question(bytes: &[u8]) -> Option<Question<'_>> {
    let (mut at, mut text, mut plain) = (0, String::new(), true);
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        // The two top bits would be a pointer, for which there is nothing before the question.
        let label = bytes.get(at..at + length).filter(|_| length < 64)?;
        at += length;
        if at >= NAME_MAX {
            return None;
        }
        plain &= label.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'.');
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    let (kind, class) = (number(bytes, at)?, number(bytes, at + 2)?);
    let name = Some(text).filter(|text| plain && !text.is_empty());
    Some(Question { bytes: &bytes[..at + 4], name, kind, class })
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn reverse(text: &str) -> Option<Ipv4Addr> {
    let address: Ipv4Addr = text.parse().ok()?;
    let [a, b, c, d] = address.octets();
    Some(Ipv4Addr::new(d, c, b, a))
}

fn labels(name: &Name) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.as_str().split('.') {
        // A label of a name has 63 bytes at most.
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One;

    impl Zone for One {
        fn address(&mut self, name: &Name, _: bool) -> Found {
            match name.as_str() {
                "a.example" => Found::Address(Ipv4Addr::new(198, 18, 1, 0)),
                "full.example" => Found::Full,
                _ => Found::Denied,
            }
        }

        fn name(&self, address: Ipv4Addr) -> Option<Name> {
            (address == Ipv4Addr::new(198, 18, 1, 0)).then(|| Name::parse("a.example").unwrap())
        }
    }

    fn ask(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend(label.as_bytes());
        }
        message.extend([0, kind.to_be_bytes()[0], kind.to_be_bytes()[1], 0, 1]);
        message
    }

    fn code(reply: &[u8]) -> u8 {
        reply[3] & 0xf
    }

    #[test]
    fn a_name_has_an_address_and_nothing_else() {
        let question = ask("A.Example", A);
        let reply = answer(&question, &mut One).unwrap();
        assert_eq!(reply[..12], [0xab, 0xcd, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(reply[12..question.len()], question[12..], "the question as it was spelled");
        let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 198, 18, 1, 0];
        assert_eq!(reply[question.len()..], record);
        for kind in [2, 5, 15, 16, 28, 33, 64, 65, 255] {
            let reply = answer(&ask("a.example", kind), &mut One).unwrap();
            assert_eq!((code(&reply), &reply[6..8]), (0, &[0, 0][..]), "{kind}");
        }
        let reply = answer(&ask("0.1.18.198.in-addr.arpa", PTR), &mut One).unwrap();
        assert!(reply.ends_with(b"\x00\x0b\x01a\x07example\x00"), "{reply:?}");
        let codes = [
            ("b.example", A, 3),
            ("full.example", A, 2),
            ("_http._tcp.a.example", 33, 3),
            ("1.1.18.198.in-addr.arpa", PTR, 3),
            ("1.in-addr.arpa", PTR, 3),
            ("", 2, 3),
        ];
        for (name, kind, expected) in codes {
            assert_eq!(code(&answer(&ask(name, kind), &mut One).unwrap()), expected, "{name}");
        }
    }

    #[test]
    fn what_is_no_question_is_said_to_be_none() {
        let good = ask("a.example", A);
        for end in 0..HEADER {
            assert_eq!(answer(&good[..end], &mut One), None);
        }
        for end in HEADER..good.len() {
            assert_eq!(code(&answer(&good[..end], &mut One).unwrap()), 1, "{end}");
        }
        let changed = |at: usize, byte| {
            let mut message = good.clone();
            message[at] = byte;
            answer(&message, &mut One)
        };
        assert_eq!(changed(2, 0x81), None, "an answer");
        assert_eq!(code(&changed(2, 0x28).unwrap()), 4, "an update");
        assert_eq!(code(&changed(5, 2).unwrap()), 1, "two questions");
        assert_eq!(code(&changed(12, 0xc0).unwrap()), 1, "a pointer");
        assert_eq!(code(&changed(13, b'.').unwrap()), 3, "a dot in a label");
        assert_eq!(code(&changed(good.len() - 1, 3).unwrap()), 4, "another class");
        let long = ask(&["a23456789"; 30].join("."), A);
        assert_eq!(code(&answer(&long, &mut One).unwrap()), 1);
        let extended = [&good[..], &[0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(code(&answer(&extended, &mut One).unwrap()), 0, "EDNS is nothing to us");
    }
}
