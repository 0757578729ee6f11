//! How a stream of the host's to a published port of the guest begins: with the port. An [`crate::Answer`] comes back.
//! It owns these two bytes. What follows them, either way, is the stream's own.

use crate::Error;

/// The guest's vsock port on which init connects the host to services of the guest.
pub const PUBLISH_PORT: u32 = 1026;
/// Bytes of a [`Publish`].
pub const PUBLISH_LEN: usize = 2;

/// What a stream is for: the service at this TCP port, wherever in the guest it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Never 0.
    pub port: u16,
}

impl Publish {
    /// The bytes that say so.
    pub fn encode(self) -> [u8; PUBLISH_LEN] {
        self.port.to_be_bytes()
    }

    /// What the bytes say.
    ///
    /// # Errors
    /// When they name no port.
    pub fn decode(bytes: [u8; PUBLISH_LEN]) -> Result<Self, Error> {
        match u16::from_be_bytes(bytes) {
            0 => Err(Error::Invalid { field: "published port", must: "1 to 65535" }),
            port => Ok(Self { port }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ports_but_0_are_published() {
        Publish::decode([0, 0]).unwrap_err();
        assert_eq!(Publish { port: 8080 }.encode(), [0x1f, 0x90]);
        for port in 1..=u16::MAX {
            let publish = Publish { port };
            assert_eq!(Publish::decode(publish.encode()), Ok(publish));
        }
    }
}
