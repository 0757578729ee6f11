//! How a stream of the guest to the gateway begins: a header that says what it is for, and a byte that answers it.
//! It owns these nine bytes. What follows them, either way, is the stream's own.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::Error;

/// The host's vsock port that leads to the gateway.
pub const GATEWAY_PORT: u32 = 1025;
/// Where a sandbox that may use keys of the user's SSH agent has its socket.
pub const AGENT_SOCKET: &str = "/run/ssh-agent.sock";
/// The address by which the guest reaches the host itself, as far as policy goes: host.coracle.internal.
pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// Bytes of a header.
pub const STREAM_LEN: usize = 8;

const TCP: u8 = 1;
const DNS: u8 = 2;
const CONTAINER: u8 = 3;
const AGENT: u8 = 4;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// A TCP connection that a program of the guest has opened to this address. The guest has no route for others than IPv4.
    Tcp(SocketAddrV4),
    /// The same, by a program in a container of the guest's Docker, which trusts whom its own image trusts: the gateway must not
    /// stand in for the host.
    Container(SocketAddrV4),
    /// Questions and answers as in DNS over TCP (RFC 7766), as many at once as there are ids, answered in any order.
    Dns,
    /// A conversation with the user's SSH agent, as far as the gateway lets it.
    Agent,
}

/// What has become of a stream: one byte, before any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The bytes that follow come from there.
    Connected = 1,
    /// Policy does not allow it.
    Refused = 2,
    /// It is allowed, and cannot be reached.
    Unreachable = 3,
}

impl Stream {
    /// The header that says so.
    pub fn encode(self) -> [u8; STREAM_LEN] {
        let (kind, port, addr) = match self {
            Self::Tcp(to) => (TCP, to.port(), *to.ip()),
            Self::Container(to) => (CONTAINER, to.port(), *to.ip()),
            Self::Dns => (DNS, 0, Ipv4Addr::UNSPECIFIED),
            Self::Agent => (AGENT, 0, Ipv4Addr::UNSPECIFIED),
        };
        let ([p0, p1], [a0, a1, a2, a3]) = (port.to_be_bytes(), addr.octets());
        [kind, 0, p0, p1, a0, a1, a2, a3]
    }

    /// What a header says.
    ///
    /// # Errors
    /// When it is not one that `encode` makes.
    pub fn decode(header: &[u8; STREAM_LEN]) -> Result<Self, Error> {
        let [kind, zero, p0, p1, a0, a1, a2, a3] = *header;
        if zero != 0 {
            return Err(Error::Invalid { field: "stream header", must: "0 in its second byte" });
        }
        let to = SocketAddrV4::new(Ipv4Addr::new(a0, a1, a2, a3), u16::from_be_bytes([p0, p1]));
        match kind {
            TCP => Ok(Self::Tcp(to)),
            CONTAINER => Ok(Self::Container(to)),
            DNS if to.ip().is_unspecified() && to.port() == 0 => Ok(Self::Dns),
            AGENT if to.ip().is_unspecified() && to.port() == 0 => Ok(Self::Agent),
            DNS | AGENT => Err(Error::Invalid { field: "address of a stream without one", must: "0" }),
            _ => Err(Error::Kind { kind }),
        }
    }
}

impl Answer {
    /// What a byte says.
    ///
    /// # Errors
    /// When it means nothing.
    pub fn decode(byte: u8) -> Result<Self, Error> {
        [Self::Connected, Self::Refused, Self::Unreachable]
            .into_iter()
            .find(|answer| *answer as u8 == byte)
            .ok_or(Error::Kind { kind: byte })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_one_form() {
        let to = "198.18.3.4:443".parse().unwrap();
        assert_eq!(Stream::Tcp(to).encode(), [1, 0, 1, 0xbb, 198, 18, 3, 4]);
        for stream in [Stream::Tcp(to), Stream::Container(to), Stream::Dns, Stream::Agent] {
            assert_eq!(Stream::decode(&stream.encode()), Ok(stream));
        }
        for broken in [[0; 8], [5, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0, 1]] {
            Stream::decode(&broken).unwrap_err();
        }
    }

    #[test]
    fn three_bytes_are_answers() {
        let known: Vec<_> = (0..=u8::MAX).filter_map(|byte| Answer::decode(byte).ok()).collect();
        assert_eq!(known, [Answer::Connected, Answer::Refused, Answer::Unreachable]);
    }
}
