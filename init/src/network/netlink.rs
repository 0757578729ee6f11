//! Requests to the kernel by netlink: messages with attributes in them, sent at once.
//! It owns the encoding, and that an error of the kernel's is heard. It knows no message.
//! Source: Linux Documentation/userspace-api/netlink/intro.rst.

use anyhow::{Context, Result, bail};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

const HEADER_LEN: usize = 16;
const REQUEST: u16 = 1;
const CREATE: u16 = 0x400;
/// An attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// The kernel's message about one that failed.
const ERROR: u16 = 2;
const ANSWER_MAX: usize = 8 << 10;

/// Messages that are sent together.
#[derive(Default)]
pub struct Batch(Vec<u8>);

impl Batch {
    /// Adds a message; `fill` writes what follows its header.
    pub fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 4]);
        self.0.extend(kind.to_ne_bytes());
        self.0.extend((REQUEST | CREATE | flags).to_ne_bytes());
        self.0.extend([0; 8]);
        fill(self);
        let length = u32::try_from(self.0.len() - start).unwrap_or(0);
        self.0[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// An attribute, padded.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nest_as(kind, |it| it.raw(value));
    }

    /// An attribute that is text.
    pub fn text(&mut self, kind: u16, value: &str) {
        self.nest_as(kind, |it| {
            it.raw(value.as_bytes());
            it.raw(&[0]);
        });
    }

    /// A number in network order, as nf_tables has them.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute of attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.nest_as(kind | NESTED, fill);
    }

    fn nest_as(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.0.len() - start).unwrap_or(0);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Has the kernel do all of it. Only what failed is answered.
    ///
    /// # Errors
    /// The first that the kernel reports.
    pub fn send(&self, protocol: Option<Protocol>) -> Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        sendto(&socket, &self.0, SendFlags::empty(), &SocketAddrNetlink::new(0, 0)).context("send")?;
        answers(&socket)
    }
}

/// The kernel has done its work when `send` returns, so what it has to say is there.
fn answers(socket: &OwnedFd) -> Result<()> {
    let mut bytes = [0; ANSWER_MAX];
    loop {
        let (length, _) = match recv(socket, &mut bytes[..], RecvFlags::empty()) {
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => continue,
            other => other.context("receive")?,
        };
        let Some((header, rest)) = bytes[..length].split_at_checked(HEADER_LEN) else {
            bail!("an answer of {length} bytes");
        };
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if let (ERROR, Some(code)) = (kind, rest.first_chunk::<4>())
            && let code @ ..0 = i32::from_ne_bytes(*code)
        {
            return Err(Errno::from_raw_os_error(-code).into());
        }
    }
}
