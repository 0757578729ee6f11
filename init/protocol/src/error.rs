//! What can be wrong with a message, on either side.
//! It owns the wording. It does not say what to do about it: a peer that sent a broken frame is hung up on.

use std::fmt;

/// Why bytes are not a message, or a value cannot become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The body ends inside a field.
    Truncated {
        /// The field.
        field: &'static str,
    },
    /// A length or count is over its limit, or says more than the body holds.
    TooLong {
        /// The field.
        field: &'static str,
        /// Its length.
        length: usize,
        /// The most it may be.
        limit: usize,
    },
    /// Bytes follow the last field.
    Trailing {
        /// How many.
        count: usize,
    },
    /// A field's value is not one of those allowed.
    Invalid {
        /// The field.
        field: &'static str,
        /// What it must be.
        must: &'static str,
    },
    /// The frame is of a kind that is unknown, or out of place here.
    Kind {
        /// The kind's number.
        kind: u8,
    },
    /// The hello is of another version.
    Version {
        /// The peer's version; ours is [`crate::VERSION`].
        theirs: u16,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated { field } => write!(f, "message ends inside {field}"),
            Self::TooLong { field, length, limit } => write!(f, "{field} is {length} long, at most {limit}"),
            Self::Trailing { count } => write!(f, "{count} bytes after the end of the message"),
            Self::Invalid { field, must } => write!(f, "{field} must be {must}"),
            Self::Kind { kind } => write!(f, "message of unexpected kind {kind:#04x}"),
            Self::Version { theirs } => {
                write!(f, "protocol version {theirs}, this side speaks {}", crate::VERSION)
            }
        }
    }
}

impl std::error::Error for Error {}
