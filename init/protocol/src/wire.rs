//! The fields that messages are made of: integers, strings, lists.
//! It owns their encoding and the check of every length before memory is taken for it. It knows no message.

use crate::{Error, FRAME_MAX};

/// Bytes of a length or count.
pub const LENGTH_LEN: usize = 4;
/// Bytes before a frame's body: its length and its kind.
pub const HEADER_LEN: usize = LENGTH_LEN + 1;

/// Takes fields off the front of a body.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    pub fn u8(&mut self, field: &'static str) -> Result<u8, Error> {
        self.array::<1>(field).map(u8::from_le_bytes)
    }

    pub fn u16(&mut self, field: &'static str) -> Result<u16, Error> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub fn u64(&mut self, field: &'static str) -> Result<u64, Error> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub fn bool(&mut self, field: &'static str) -> Result<bool, Error> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Error::Invalid { field, must: "0 or 1" }),
        }
    }

    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Error> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(Error::Truncated { field })?;
        self.rest = rest;
        Ok(*array)
    }

    pub fn bytes(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], Error> {
        let length = self.length(field, limit)?;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(Error::Truncated { field })?;
        self.rest = rest;
        Ok(bytes)
    }

    pub fn text(&mut self, field: &'static str, limit: usize) -> Result<String, Error> {
        let bytes = self.bytes(field, limit)?;
        let text = std::str::from_utf8(bytes).map_err(|_| Error::Invalid { field, must: "UTF-8" })?;
        Ok(text.to_owned())
    }

    /// `item` must take at least one byte off the reader: that bounds what a count can make us reserve.
    pub fn list<T>(
        &mut self,
        field: &'static str,
        limit: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let count = self.length(field, limit)?;
        if count > self.rest.len() {
            return Err(Error::Truncated { field });
        }
        (0..count).map(|_| item(self)).collect()
    }

    pub fn end(self) -> Result<(), Error> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(Error::Trailing { count }),
        }
    }

    pub fn length(&mut self, field: &'static str, limit: usize) -> Result<usize, Error> {
        let length = u32::from_le_bytes(self.array(field)?) as usize;
        if length > limit { Err(Error::TooLong { field, length, limit }) } else { Ok(length) }
    }
}

/// Builds a frame field by field, under the same limits, so that whoever sends too much is told at once.
pub struct Writer {
    frame: Vec<u8>,
}

impl Writer {
    pub fn new(kind: u8) -> Self {
        Self { frame: vec![0, 0, 0, 0, kind] }
    }

    pub fn u8(&mut self, value: u8) {
        self.frame.push(value);
    }

    pub fn u16(&mut self, value: u16) {
        self.array(&value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.array(&value.to_le_bytes());
    }

    pub fn array(&mut self, bytes: &[u8]) {
        self.frame.extend_from_slice(bytes);
    }

    pub fn bytes(&mut self, field: &'static str, limit: usize, bytes: &[u8]) -> Result<(), Error> {
        self.length(field, limit, bytes.len())?;
        self.array(bytes);
        Ok(())
    }

    pub fn list<T>(
        &mut self,
        field: &'static str,
        limit: usize,
        items: &[T],
        mut item: impl FnMut(&mut Self, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.length(field, limit, items.len())?;
        items.iter().try_for_each(|it| item(self, it))
    }

    pub fn finish(mut self) -> Result<Vec<u8>, Error> {
        let length = encoded("message", FRAME_MAX, self.frame.len() - HEADER_LEN)?;
        self.frame[..LENGTH_LEN].copy_from_slice(&length);
        Ok(self.frame)
    }

    fn length(&mut self, field: &'static str, limit: usize, length: usize) -> Result<(), Error> {
        self.array(&encoded(field, limit, length)?);
        Ok(())
    }
}

fn encoded(field: &'static str, limit: usize, length: usize) -> Result<[u8; LENGTH_LEN], Error> {
    match u32::try_from(length) {
        Ok(encoded) if length <= limit => Ok(encoded.to_le_bytes()),
        _ => Err(Error::TooLong { field, length, limit }),
    }
}
