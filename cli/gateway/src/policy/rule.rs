//! A rule: which destinations it is about. It owns the language of rules and refuses what could mean more than it seems to.
//! Whether a rule allows or denies is not its business.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::address::{Kind, Net, special};
use super::name::{Destination, Host, Name, split_port};

/// Names of this machine in a sandbox.
pub const HOST_NAMES: [&str; 2] = ["host.coracle.internal", "host.docker.internal"];
/// Bytes of a rule, before anything else is looked at.
const RULE_MAX: usize = 300;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pattern: Pattern,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    /// `**`: every name, and every address of the open internet.
    All,
    Name(Name),
    /// `*.NAME`: with one label before it.
    One(Name),
    /// `**.NAME`: with any number of labels before it, but not none.
    Below(Name),
    Net(Net),
    /// `localhost:PORT`: a port of this machine's loopback.
    ThisMachine,
}

impl Rule {
    pub fn matches(&self, to: &Destination) -> bool {
        self.has_port(to.port) && self.matches_host(&to.host)
    }

    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whatever the port.
    pub fn matches_host(&self, host: &Host) -> bool {
        match (&self.pattern, host) {
            (Pattern::All, Host::Name(name)) => !is_this_machine(name),
            (Pattern::All, Host::Addr(addr)) => special(*addr).is_none(),
            (Pattern::Net(net), Host::Addr(addr)) => net.contains(*addr),
            (Pattern::Name(rule), Host::Name(name)) => rule == name,
            (Pattern::One(rule), Host::Name(name)) => {
                before(name, rule).is_some_and(|it| !it.contains('.')) && !is_this_machine(name)
            }
            (Pattern::Below(rule), Host::Name(name)) => {
                before(name, rule).is_some() && !is_this_machine(name)
            }
            (Pattern::ThisMachine, Host::Name(name)) => is_this_machine(name),
            _ => false,
        }
    }

    /// Denied with this rule; a rule for everything is about private addresses too then.
    pub fn denies(&self, host: &Host, port: u16) -> bool {
        self.has_port(port) && (self.pattern == Pattern::All || self.matches_host(host))
    }

    /// It names an address that is not of the open internet: it is about nothing beyond the range that the address is in.
    pub fn names(&self, addr: IpAddr, port: u16) -> bool {
        let Pattern::Net(net) = &self.pattern else { return false };
        let within = special(addr).is_none_or(|it| it.kind != Kind::NoHost && net.is_within(&it.net));
        self.has_port(port) && net.contains(addr) && within
    }

    /// It names this address, and no other.
    pub fn is_for(&self, addr: IpAddr, port: u16) -> bool {
        let width = if addr.is_ipv4() { 32 } else { 128 };
        let Pattern::Net(net) = &self.pattern else { return false };
        self.has_port(port) && Net::around(addr, width).as_ref() == Some(net)
    }

    fn has_port(&self, port: u16) -> bool {
        self.port.is_none_or(|it| it == port)
    }
}

pub fn is_this_machine(name: &Name) -> bool {
    HOST_NAMES.contains(&name.as_str())
}

/// `localhost` and what is below it is the sandbox's own.
pub fn is_localhost(name: &Name) -> bool {
    name.as_str() == "localhost" || name.as_str().ends_with(".localhost")
}

/// What is before `.suffix` in a name.
fn before<'a>(name: &'a Name, suffix: &Name) -> Option<&'a str> {
    name.as_str().strip_suffix(suffix.as_str())?.strip_suffix('.')
}

/// The rules of a list with commas; the error is the one that is wrong, and the rest of a sentence about it.
pub fn parse_list(text: &str) -> Result<Vec<Rule>, (&str, String)> {
    text.split(',').map(|rule| rule.parse().map_err(|error| (rule, error))).collect()
}

impl FromStr for Rule {
    type Err = String;

    /// The error is the rest of a sentence about the text.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |error: &str| Err(error.to_owned());
        if text.is_empty() {
            return bad("is empty; write a host such as example.com");
        }
        if text.len() > RULE_MAX {
            return bad("is longer than any rule");
        }
        if text.contains("://") {
            return bad("is a URL; write its host alone, with :PORT behind it if you want");
        }
        let (host, port) = split_port(text)?;
        let pattern = match host {
            "**" => Pattern::All,
            "*" => return bad("is one label only, which no host has; write ** for every host"),
            _ if host.starts_with('.') => {
                return bad("begins with a dot; write *.NAME for one level below NAME, **.NAME for all");
            }
            _ => pattern(host)?,
        };
        if pattern == Pattern::ThisMachine && port.is_none() {
            return bad("is this machine; name the port that is to be reached, such as localhost:8080");
        }
        Ok(Self { pattern, port })
    }
}

fn pattern(host: &str) -> Result<Pattern, String> {
    let name = |text| Name::parse(text).map_err(|error| error.to_string());
    if let Some(rest) = host.strip_prefix("**.") {
        return name(rest).map(Pattern::Below);
    }
    if let Some(rest) = host.strip_prefix("*.") {
        return name(rest).map(Pattern::One);
    }
    if host.contains('*') {
        return Err("has a * inside; it can only be the first part: *.NAME or **.NAME".into());
    }
    if let Some((addr, bits)) = host.split_once('/') {
        return network(addr, bits).map(Pattern::Net);
    }
    if let Ok(addr) = host.parse::<IpAddr>() {
        return network(host, if addr.is_ipv4() { "32" } else { "128" }).map(Pattern::Net);
    }
    let name = name(host)?;
    Ok(match name {
        name if is_this_machine(&name) || name.as_str() == "localhost" => Pattern::ThisMachine,
        name => Pattern::Name(name),
    })
}

fn network(addr: &str, bits: &str) -> Result<Net, String> {
    let addr: IpAddr = addr.parse().map_err(|_| "has a path, or is not a network such as 10.0.0.0/8")?;
    if addr.to_canonical() != addr {
        return Err("is an IPv4 address in the form of an IPv6 one; write it as an IPv4 address".into());
    }
    let plain = bits == "0" || !bits.starts_with('0') && bits.bytes().all(|byte| byte.is_ascii_digit());
    let bits = plain.then(|| bits.parse::<u8>().ok()).flatten();
    let net =
        bits.and_then(|bits| Net::around(addr, bits)).ok_or("has a wrong number of bits behind its slash")?;
    if !net.is_first(addr) {
        return Err(format!("has bits behind its network; write {net}, or the address alone"));
    }
    match special(addr) {
        Some(it) if it.kind == Kind::NoHost && net.is_within(&it.net) => Err(format!("is {}", it.kind)),
        _ => Ok(net),
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = match &self.pattern {
            Pattern::All => "**".to_owned(),
            Pattern::Name(name) => name.to_string(),
            Pattern::One(name) => format!("*.{name}"),
            Pattern::Below(name) => format!("**.{name}"),
            Pattern::ThisMachine => "localhost".to_owned(),
            Pattern::Net(net) => net.to_string(),
        };
        match self.port {
            None => f.write_str(&host),
            Some(port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Some(port) => write!(f, "{host}:{port}"),
        }
    }
}
