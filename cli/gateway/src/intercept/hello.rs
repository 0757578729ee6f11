//! The first message of a TLS connection: which host it asks for.
//! It owns how those bytes are read, in one way for connections that are looked into and for those that are not. It is pure, and
//! has no opinion on the name.

/// A greeting with all that clients put in it today (keys that withstand quantum computers, tickets) has 2 to 4 KiB.
pub const HELLO_MAX: usize = 64 << 10;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const RECORD_MAX: usize = 1 << 14;
const NAME_MAX: usize = 253;

/// What a connection begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// Something else than TLS.
    NotTls,
    /// More bytes are needed, at most [`HELLO_MAX`] in all.
    Incomplete,
    /// The name that it shows, in lower case; `None` when it shows none, several, or one that is no host's name.
    Sni(Option<String>),
}

/// Reads a connection's first bytes. What begins as TLS does and then is none has no name, and is not "something else".
pub fn client_hello(bytes: &[u8]) -> Hello {
    match bytes {
        [] => return Hello::Incomplete,
        [HANDSHAKE] | [HANDSHAKE, 3, ..] => {}
        _ => return Hello::NotTls,
    }
    match handshake(bytes) {
        Some(body) if body.len() < HELLO_MAX => Hello::Sni(server_name(&mut Reader(&body)).flatten()),
        None if bytes.len() < HELLO_MAX => Hello::Incomplete,
        _ => Hello::Sni(None),
    }
}

/// The first message's body, which is empty when there is no greeting in it; `None` when more bytes are needed. RFC 8446, 5.1
/// "Record Layer": a message may be cut anywhere, and no record of it is empty. What follows it does not matter.
fn handshake(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        if let [kind, high, middle, low, body @ ..] = message.as_slice() {
            let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
            if *kind != CLIENT_HELLO || length > HELLO_MAX {
                return Some(Vec::new());
            }
            if let Some(body) = body.get(..length) {
                return Some(body.to_vec());
            }
        }
        let [kind, major, _, high, low, body @ ..] = rest else { return None };
        let length = usize::from(*high) << 8 | usize::from(*low);
        if *kind != HANDSHAKE || *major != 3 || length == 0 || length > RECORD_MAX {
            return Some(Vec::new());
        }
        let whole = length.min(body.len());
        message.extend_from_slice(&body[..whole]);
        rest = &body[whole..];
    }
}

/// RFC 8446, 4.1.2 "Client Hello"; the outer `None` is one that is broken.
fn server_name(hello: &mut Reader<'_>) -> Option<Option<String>> {
    hello.take(2 + 32)?;
    for length_size in [1, 2, 1] {
        hello.vector(length_size)?;
    }
    if hello.0.is_empty() {
        return Some(None);
    }
    let mut extensions = Reader(hello.vector(2)?);
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let content = extensions.vector(2)?;
        if kind == usize::from(SERVER_NAME) && found.replace(content).is_some() {
            return None;
        }
    }
    if !hello.0.is_empty() {
        return None;
    }
    found.map_or(Some(None), |content| name(content).map(Some))
}

/// RFC 6066, 3 "Server Name Indication": one name of one kind is all that was ever in use.
fn name(content: &[u8]) -> Option<String> {
    let mut content = Reader(content);
    let mut list = Reader(content.vector(2)?);
    let kind = list.take(1)?;
    let name = list.vector(2)?;
    let only = kind == [HOST_NAME] && list.0.is_empty() && content.0.is_empty();
    let name = std::str::from_utf8(name).ok().filter(|name| only && is_host(name))?;
    Some(name.to_ascii_lowercase())
}

/// A name as DNS has them, with no dot at its end; not an address.
pub fn is_host(name: &str) -> bool {
    let word = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    name.len() <= NAME_MAX && name.split('.').all(word) && !numeric
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, size: usize) -> Option<usize> {
        Some(self.take(size)?.iter().fold(0, |number, &byte| number << 8 | usize::from(byte)))
    }

    fn vector(&mut self, length_size: usize) -> Option<&'a [u8]> {
        let length = self.number(length_size)?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::ServerName;
    use std::sync::Arc;

    /// What rustls sends to a host of that name.
    fn hello_to(name: &str) -> Vec<u8> {
        let roots = rustls::RootCertStore::empty();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of `size` bytes.
    fn cut(hello: &[u8], size: usize) -> Vec<u8> {
        hello[5..]
            .chunks(size)
            .flat_map(|piece| {
                let length = u16::try_from(piece.len()).unwrap().to_be_bytes();
                [&[22, 3, 1], &length[..], piece].concat()
            })
            .collect()
    }

    #[test]
    fn the_name_is_found_however_the_message_arrives() {
        let hello = hello_to("API.example.com");
        let found = Hello::Sni(Some("api.example.com".into()));
        assert_eq!(client_hello(&hello), found);
        assert_eq!(client_hello(&[&hello[..], b"more"].concat()), found);
        for size in [1, 3, 100] {
            assert_eq!(client_hello(&cut(&hello, size)), found);
        }
        for length in 0..hello.len() {
            assert_eq!(client_hello(&hello[..length]), Hello::Incomplete, "{length}");
        }
    }

    #[test]
    fn what_has_no_single_name_has_none() {
        assert_eq!(client_hello(&hello_to("192.0.2.1")), Hello::Sni(None));
        let hello = hello_to("a.example");
        let at = hello.windows(9).position(|it| it == b"a.example").unwrap();
        for name in [b"a\0example", b"a..exampl", b".aexample", b"a.exampl.", b"a.ex/mple", b"-.example"] {
            let mut bad = hello.clone();
            bad[at..at + 9].copy_from_slice(name);
            assert_eq!(client_hello(&bad), Hello::Sni(None), "{name:?}");
        }
        // A second extension of the kind: any other one, renamed. Which of them it is does not matter to its length.
        let mut twice = hello;
        let groups = twice.windows(3).position(|it| it == [0, 10, 0]).unwrap();
        twice[groups + 1] = 0;
        assert_eq!(client_hello(&twice), Hello::Sni(None));
    }

    #[test]
    fn what_is_not_tls_is_told_from_what_pretends() {
        for other in [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0-x", &[0x80, 0x2e, 1, 3, 1], &[22, 2, 0, 0, 9]] {
            assert_eq!(client_hello(other), Hello::NotTls);
        }
        let endless = [&[22, 3, 1, 0x40, 0][..], &[1, 0, 0xff, 0xff], &[0; HELLO_MAX]].concat();
        for broken in [
            &[22, 3, 1, 0, 0, 1][..],
            &[22, 3, 1, 0xff, 0xff],
            &[22, 3, 1, 0, 4, 2, 0, 0, 0],
            &[22, 3, 1, 0, 4, 1, 0, 0, 0],
            &[22, 3, 1, 0, 4, 1, 0xff, 0, 0],
            &[22, 3, 1, 0, 1, 1, 23, 3, 1, 0, 1, 0],
            &[22, 3, 1, 0, 3, 1, 0, 0, 22, 2, 1, 0, 1, 0],
            &endless,
        ] {
            assert_eq!(client_hello(broken), Hello::Sni(None));
        }
        assert_eq!(client_hello(&endless[..1000]), Hello::Incomplete);
    }
}
