//! What a connection is for: a name or an address, and a port. It owns which bytes are a name: one form, however it was spelled.
//! It decides nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// RFC 1035, section 2.3.4, without the final dot.
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// A host's name as RFC 1123 has it, in lower case and without a final dot. It is never an address in disguise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Why something is no name, as the rest of a sentence about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    #[error("is empty")]
    Empty,
    #[error("is longer than a host's name can be ({NAME_MAX} characters, {LABEL_MAX} between dots)")]
    Long,
    #[error(
        "holds what a host's name cannot; it is made of letters, digits, hyphens and dots (others in their form xn--)"
    )]
    Character,
    #[error("has an empty part between dots, or one that begins or ends with a hyphen")]
    Label,
    #[error("looks like a number; write an IPv4 address as four decimal numbers without leading zeros")]
    Number,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    Name(Name),
    /// An IPv4 address is never in its IPv6 form.
    Addr(IpAddr),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    pub host: Host,
    pub port: u16,
}

impl Name {
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(BadName::Empty);
        }
        if text.len() > NAME_MAX || text.split('.').any(|label| label.len() > LABEL_MAX) {
            return Err(BadName::Long);
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.')) {
            return Err(BadName::Character);
        }
        if text.split('.').any(|label| label.is_empty() || label.starts_with('-') || label.ends_with('-')) {
            return Err(BadName::Label);
        }
        let name = text.to_ascii_lowercase();
        if is_number(name.rsplit('.').next().unwrap_or_default()) {
            return Err(BadName::Number);
        }
        Ok(Self(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Resolvers read a name whose last part is a number as an IPv4 address, in forms as many as there are resolvers: WHATWG URL,
/// section 3.5, "ends in a number".
fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|it| it.is_ascii_hexdigit()));
    hex || label.bytes().all(|it| it.is_ascii_digit())
}

impl Host {
    /// A name, or an address in its one plain form.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        if let Ok(addr) = text.parse::<IpAddr>() {
            return Ok(Self::Addr(addr.to_canonical()));
        }
        Name::parse(text).map(Self::Name)
    }

    pub fn of(addr: IpAddr) -> Self {
        Self::Addr(addr.to_canonical())
    }
}

impl Destination {
    pub fn new(host: Host, port: u16) -> Self {
        Self { host, port }
    }

    /// `host`, `host:port`, `[v6]:port`; the port goes without saying where the caller has one.
    pub fn parse(text: &str, port: u16) -> Result<Self, String> {
        let (host, typed) = split_port(text)?;
        let host = Host::parse(host).map_err(|error| error.to_string())?;
        Ok(Self { host, port: typed.unwrap_or(port) })
    }
}

/// Cuts a port off a host; an IPv6 address has brackets when it has a port.
pub(super) fn split_port(text: &str) -> Result<(&str, Option<u16>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("has no closing bracket")?;
        let v6 = host.split('/').next().unwrap_or_default().parse::<std::net::Ipv6Addr>();
        v6.map_err(|_| "has brackets around what is not an IPv6 address")?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(parse_port(port)?))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err("has something behind its bracket that is not a port".into()),
        };
    }
    match text.split_once(':') {
        Some((_, rest)) if rest.contains(':') => Ok((text, None)),
        Some((host, port)) => Ok((host, Some(parse_port(port)?))),
        None => Ok((text, None)),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    let plain = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = plain.then(|| text.parse().ok()).flatten();
    port.ok_or_else(|| "has a port that is not a number from 1 to 65535; for every port, leave it out".into())
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Addr(addr) => addr.fmt(f),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Addr(IpAddr::V6(addr)) => write!(f, "[{addr}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

impl From<Ipv4Addr> for Host {
    fn from(addr: Ipv4Addr) -> Self {
        Self::Addr(addr.into())
    }
}
