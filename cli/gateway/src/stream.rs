//! How a stream from the guest begins, and what it is answered: where to, in a few bytes, then one byte, then what it carries.
//! It owns this form. It decides nothing.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use tokio::io::{AsyncRead, AsyncReadExt};

const LEN: usize = 8;
const TCP: u8 = 1;
const DNS: u8 = 2;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// A connection to this address, whatever name it stands for.
    Tcp(SocketAddrV4),
    /// Questions, each with its length before it: RFC 7766, 8 "TCP Message Framing".
    Dns,
}

/// The byte that a stream is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Connected = 1,
    /// By policy or by the host; the guest's program sees a reset.
    Refused = 2,
    Unreachable = 3,
}

impl Open {
    /// Reads no byte beyond it.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut bytes = [0; LEN];
        from.read_exact(&mut bytes).await?;
        let [kind, zero, p0, p1, a0, a1, a2, a3] = bytes;
        let to = SocketAddrV4::new(Ipv4Addr::new(a0, a1, a2, a3), u16::from_be_bytes([p0, p1]));
        match kind {
            TCP if zero == 0 => Ok(Self::Tcp(to)),
            DNS if bytes[1..] == [0; LEN - 1] => Ok(Self::Dns),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_two_forms_are_understood() {
        let mut bytes: &[u8] = &[1, 0, 1, 0xbb, 192, 0, 2, 1, b'x'];
        let tcp = Open::read(&mut bytes).await.unwrap();
        assert_eq!(tcp, Open::Tcp("192.0.2.1:443".parse().unwrap()));
        assert_eq!(bytes, b"x");
        assert_eq!(Open::read(&mut &[2, 0, 0, 0, 0, 0, 0, 0, 0][..]).await.unwrap(), Open::Dns);
        let bad = [[0; 8], [3, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0, 1]];
        for bad in bad.iter().map(<[u8; 8]>::as_slice).chain([&[][..], &[1], &[1, 0, 0, 1, 2, 3, 4]]) {
            assert!(Open::read(&mut &*bad).await.is_err(), "{bad:?}");
        }
    }
}
