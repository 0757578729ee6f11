//! How a stream from the guest begins, and what it is answered: where to, in a few bytes, then one byte, then what it carries.
//! It owns this form. It decides nothing.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use tokio::io::{AsyncRead, AsyncReadExt};

const TCP: u8 = 0;
const DNS: u8 = 1;

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
#[repr(u8)]
pub enum Answer {
    Connected = 0,
    /// By policy or by the host; the guest's program sees a reset.
    Refused = 1,
    Unreachable = 2,
}

impl Open {
    /// Reads no byte beyond it.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        match from.read_u8().await? {
            TCP => {
                let addr = Ipv4Addr::from_bits(from.read_u32().await?);
                Ok(Self::Tcp(SocketAddrV4::new(addr, from.read_u16().await?)))
            }
            DNS => Ok(Self::Dns),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_two_forms_are_understood() {
        let mut bytes: &[u8] = &[0, 192, 0, 2, 1, 0x01, 0xbb, b'x'];
        let tcp = Open::read(&mut bytes).await.unwrap();
        assert_eq!(tcp, Open::Tcp("192.0.2.1:443".parse().unwrap()));
        assert_eq!(bytes, b"x");
        assert_eq!(Open::read(&mut &[1, 0, 0][..]).await.unwrap(), Open::Dns);
        for bad in [&[][..], &[0], &[0, 1, 2, 3, 4, 5], &[2, 0, 0, 0, 0, 0, 0], &[0xff]] {
            assert!(Open::read(&mut &bad[..]).await.is_err(), "{bad:?}");
        }
    }
}
