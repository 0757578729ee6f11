//! The header of a vsock packet, as bytes and as a value.
//! It owns the wire format and does no I/O: whatever 44 bytes it is given, the result is a plain value.
//! Source: virtio 1.2, 5.10.6 "Device Operation".

/// The host's context id, and the one our guest is given.
pub const HOST_CID: u64 = 2;
pub const GUEST_CID: u64 = 3;
/// `kind` of a stream socket's packet, the only one there is here.
pub const STREAM: u16 = 1;
/// `flags` of a SHUTDOWN: who sends it will not receive, will not send any more.
pub const SHUT_RECEIVE: u32 = 1;
pub const SHUT_SEND: u32 = 2;
pub const SHUT_BOTH: u32 = SHUT_RECEIVE | SHUT_SEND;

pub const HEADER_SIZE: usize = 44;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Data = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Op {
    /// `None` for a number that means nothing.
    pub fn decode(number: u16) -> Option<Self> {
        use Op::{CreditRequest, CreditUpdate, Data, Request, Reset, Response, Shutdown};
        [Request, Response, Reset, Shutdown, Data, CreditUpdate, CreditRequest]
            .into_iter()
            .find(|op| *op as u16 == number)
    }
}

/// The two ports that make a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    pub host: u32,
    pub guest: u32,
}

/// How much its sender can take: the size of its buffer and how many bytes have left it, ever (5.10.6.3 "Buffer
/// Space Management").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

/// A packet's header with every field as it came; nothing about it is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub credit: Credit,
}

impl Packet {
    /// A packet without payload from the host to the guest.
    pub fn to_guest(ports: Ports, op: Op, credit: Credit) -> Self {
        Self {
            src_cid: HOST_CID,
            dst_cid: GUEST_CID,
            src_port: ports.host,
            dst_port: ports.guest,
            len: 0,
            kind: STREAM,
            op: op as u16,
            flags: 0,
            credit,
        }
    }

    /// The ports of a packet that the guest has sent.
    pub fn ports(&self) -> Ports {
        Ports { host: self.dst_port, guest: self.src_port }
    }

    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.credit.buf_alloc.to_le_bytes());
        put(40, &self.credit.fwd_cnt.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; HEADER_SIZE]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            credit: Credit {
                buf_alloc: u32::from_le_bytes(field(bytes, 36)),
                fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
            },
        }
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER_SIZE], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_header_is_in_one_field() {
        let mut bytes = [0; HEADER_SIZE];
        for (n, byte) in (1..).zip(&mut bytes) {
            *byte = n;
        }
        let packet = Packet::decode(&bytes);
        assert_eq!(packet.encode(), bytes);
        assert_eq!((packet.dst_port, packet.op), (0x1817_1615, 0x201f));
    }

    #[test]
    fn only_seven_numbers_are_operations() {
        let known: Vec<u16> = (0..=u16::MAX).filter(|n| Op::decode(*n).is_some()).collect();
        assert_eq!(known, [1, 2, 3, 4, 5, 6, 7]);
    }
}
