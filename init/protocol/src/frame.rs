//! Frames: where one message ends and the next begins.
//! It owns the buffering of what has come so far. It reads no socket: bytes are fed to it.

use crate::wire::{HEADER_LEN, LENGTH_LEN, Reader};
use crate::{Error, Message};

/// Turns a stream of bytes, cut anywhere, into messages. It holds at most what it was fed since it last had no
/// complete frame, so feed it bounded reads and take all messages after each.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Bytes already taken, dropped at the next feed: one move for many small frames.
    taken: usize,
}

impl Decoder {
    /// Adds bytes to what has come.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message, `None` when it has not come completely. After an error the stream has no meaning any more.
    pub fn take<M: Message>(&mut self) -> Result<Option<M>, Error> {
        let rest = &self.bytes[self.taken..];
        let Some((kind, length)) = header::<M>(rest)? else { return Ok(None) };
        let Some(body) = rest.get(HEADER_LEN..HEADER_LEN + length) else { return Ok(None) };
        let message = M::decode(kind, body)?;
        self.taken += HEADER_LEN + length;
        Ok(Some(message))
    }

    /// How many bytes have come of a message that is not complete: at the end of a stream, more than none is an error.
    pub fn pending(&self) -> usize {
        self.bytes.len() - self.taken
    }
}

/// The one message that `frame` is, with nothing behind it.
pub fn decode<M: Message>(frame: &[u8]) -> Result<M, Error> {
    let (kind, length) = header::<M>(frame)?.ok_or(Error::Truncated { field: "header" })?;
    let (body, rest) =
        frame[HEADER_LEN..].split_at_checked(length).ok_or(Error::Truncated { field: "message" })?;
    if !rest.is_empty() {
        return Err(Error::Trailing { count: rest.len() });
    }
    M::decode(kind, body)
}

/// Kind and body length of the frame that `bytes` begins with, if that much is there.
fn header<M: Message>(bytes: &[u8]) -> Result<Option<(u8, usize)>, Error> {
    let Some(header) = bytes.first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let length = Reader::new(header).length("message", M::BODY_MAX)?;
    Ok(Some((header[LENGTH_LEN], length)))
}
