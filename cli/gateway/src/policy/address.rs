//! Addresses that are not the open internet: which ranges there are, and what they are called. It owns the table (IANA's special
//! purpose registries, and the clouds' metadata services). It does not know rules.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses with the same first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    first: IpAddr,
    bits: u8,
}

/// What a range is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Loopback,
    Private,
    LinkLocal,
    Metadata,
    /// Of a provider's own network (RFC 6598).
    Shared,
    /// An IPv4 address in the form of an IPv6 one: NAT64, 6to4, Teredo, "compatible".
    Translated,
    Reserved,
    /// Never the address of a host: connecting to it means something else, or several. No rule can open it.
    NoHost,
}

/// A range with a meaning of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Special {
    pub net: Net,
    pub kind: Kind,
}

impl Net {
    /// The network of that many bits that an address is in.
    pub fn around(addr: IpAddr, bits: u8) -> Option<Self> {
        let number = Self { first: addr, bits }.masked(addr)?;
        let first = match addr {
            IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(number >> 96).ok()?).into(),
            IpAddr::V6(_) => Ipv6Addr::from(number).into(),
        };
        Some(Self { first, bits })
    }

    pub fn is_first(&self, addr: IpAddr) -> bool {
        self.first == addr
    }

    pub fn contains(&self, addr: IpAddr) -> bool {
        self.first.is_ipv4() == addr.is_ipv4() && self.masked(addr) == Some(number(self.first))
    }

    /// Nothing of it is outside of `other`.
    pub fn is_within(&self, other: &Self) -> bool {
        self.bits >= other.bits && other.contains(self.first)
    }

    fn masked(&self, addr: IpAddr) -> Option<u128> {
        let mask = match self.bits {
            0 => 0,
            bits if bits <= width(addr) => u128::MAX << (128 - u32::from(bits)),
            _ => return None,
        };
        Some(number(addr) & mask)
    }
}

/// As bits of a u128, from its top.
fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u128::from(addr.to_bits()) << 96,
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

fn width(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bits == width(self.first) {
            true => self.first.fmt(f),
            false => write!(f, "{}/{}", self.first, self.bits),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "this machine's loopback",
            Self::Private => "a private address",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "a cloud's metadata service",
            Self::Shared => "an address of the provider's own network",
            Self::Translated => "an IPv4 address in disguise",
            Self::Reserved => "a reserved address",
            Self::NoHost => "not the address of a host",
        })
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u8, kind: Kind) -> Special {
    Special { net: Net { first: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), bits }, kind }
}

const fn v6(first: u128, bits: u8, kind: Kind) -> Special {
    Special { net: Net { first: IpAddr::V6(Ipv6Addr::from_bits(first)), bits }, kind }
}

/// The narrowest comes first: a rule must lie within the first that holds an address.
const SPECIAL: [Special; 41] = [
    v4(169, 254, 169, 254, 32, Kind::Metadata),
    v4(169, 254, 170, 2, 32, Kind::Metadata),
    v4(169, 254, 170, 23, 32, Kind::Metadata),
    v4(100, 100, 100, 200, 32, Kind::Metadata),
    v4(168, 63, 129, 16, 32, Kind::Metadata),
    v4(192, 0, 0, 192, 32, Kind::Metadata),
    v4(255, 255, 255, 255, 32, Kind::NoHost),
    v4(0, 0, 0, 0, 8, Kind::NoHost),
    v4(224, 0, 0, 0, 4, Kind::NoHost),
    v4(127, 0, 0, 0, 8, Kind::Loopback),
    v4(10, 0, 0, 0, 8, Kind::Private),
    v4(172, 16, 0, 0, 12, Kind::Private),
    v4(192, 168, 0, 0, 16, Kind::Private),
    v4(169, 254, 0, 0, 16, Kind::LinkLocal),
    v4(100, 64, 0, 0, 10, Kind::Shared),
    v4(192, 0, 0, 0, 24, Kind::Reserved),
    v4(192, 0, 2, 0, 24, Kind::Reserved),
    v4(192, 88, 99, 0, 24, Kind::Reserved),
    // Also where the sandbox's names have their addresses.
    v4(198, 18, 0, 0, 15, Kind::Reserved),
    v4(198, 51, 100, 0, 24, Kind::Reserved),
    v4(203, 0, 113, 0, 24, Kind::Reserved),
    v4(240, 0, 0, 0, 4, Kind::Reserved),
    v6(0xfd00_0ec2_0000_0000_0000_0000_0000_0254, 128, Kind::Metadata),
    v6(0xfd20_00ce_0000_0000_0000_0000_0000_0254, 128, Kind::Metadata),
    v6(0, 128, Kind::NoHost),
    v6(1, 128, Kind::Loopback),
    v6(0xff << 120, 8, Kind::NoHost),
    // IPv4-mapped ones are IPv4 addresses before they get here; what is not is no host.
    v6(0xffff << 32, 96, Kind::NoHost),
    v6(0, 96, Kind::Translated),
    v6(0x0064_ff9b << 96, 96, Kind::Translated),
    v6(0x0064_ff9b_0001 << 80, 48, Kind::Translated),
    v6(0x2002 << 112, 16, Kind::Translated),
    v6(0x2001 << 112, 32, Kind::Translated),
    v6(0x2001 << 112, 23, Kind::Reserved),
    v6(0x2001_0db8 << 96, 32, Kind::Reserved),
    v6(0x3fff << 112, 20, Kind::Reserved),
    v6(0xfc << 120, 7, Kind::Private),
    v6(0xfe80 << 112, 10, Kind::LinkLocal),
    // Site-local, which RFC 3879 took out of use.
    v6(0xfec0 << 112, 10, Kind::Private),
    // IPv6 has handed out 2000::/3 only.
    v6(0, 3, Kind::Reserved),
    v6(0x4000 << 112, 2, Kind::Reserved),
];

/// The range of an address that is not the open internet.
pub fn special(addr: IpAddr) -> Option<Special> {
    let found = SPECIAL.iter().find(|special| special.net.contains(addr)).copied();
    // The rest of what IPv6 has not handed out.
    let beyond = matches!(addr, IpAddr::V6(addr) if addr.segments()[0] >= 0x8000);
    found.or_else(|| beyond.then(|| v6(0x8000 << 112, 1, Kind::Reserved)))
}
