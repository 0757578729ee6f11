//! Bytes as text: a reversible form for argh and JSON, and a harmless one for messages.
//! Unix paths and arguments are bytes; argh and JSON know only Unicode. It does not judge what the bytes mean.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::str::FromStr;

/// The last code points of a private use plane stand for bytes that are not UTF-8: this one plus the byte.
/// An input that holds such a code point itself has each of its bytes escaped, so the mapping is one to one.
const ESCAPE: u32 = 0x10_FF00;
/// Characters of a value that a message shows.
const SHOWN_MAX: usize = 160;

/// An argument of the command line: any bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw(pub OsString);

impl FromStr for Raw {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(decode(text)))
    }
}

/// The reversible form of any bytes.
pub fn encode(bytes: &OsStr) -> String {
    if let Some(text) = bytes.to_str()
        && !text.chars().any(is_escape)
    {
        return text.to_owned();
    }
    let mut out = String::new();
    for chunk in bytes.as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_escape(c) {
                c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| out.push(escape(byte)));
            } else {
                out.push(c);
            }
        }
        chunk.invalid().iter().for_each(|&byte| out.push(escape(byte)));
    }
    out
}

/// The bytes whose reversible form `text` is.
pub fn decode(text: &str) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        if is_escape(c) {
            bytes.push(c as u8);
        } else {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    OsString::from_vec(bytes)
}

fn is_escape(c: char) -> bool {
    u32::from(c) >= ESCAPE
}

fn escape(byte: u8) -> char {
    char::from_u32(ESCAPE + u32::from(byte)).expect("the plane has 256 code points there")
}

/// A value for a message: in quotes, nothing in it that a terminal obeys, and not too long.
pub fn quoted(value: impl AsRef<OsStr>) -> String {
    let bytes = value.as_ref().as_bytes();
    let mut out = String::from("\"");
    escape_into(&mut out, bytes, true);
    out.push('"');
    out
}

/// A value for a table or a line of its own: as `quoted`, without the quotes and the limit.
pub fn plain(value: impl AsRef<OsStr>) -> String {
    let mut out = String::new();
    escape_into(&mut out, value.as_ref().as_bytes(), false);
    out
}

fn escape_into(out: &mut String, bytes: &[u8], quote: bool) {
    let limit = if quote { SHOWN_MAX } else { usize::MAX };
    let mut shown = 0;
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            shown += 1;
            if shown > limit {
                let _ = write!(out, "… ({} bytes)", bytes.len());
                return;
            }
            match c {
                '"' | '\\' if quote => out.extend(['\\', c]),
                // The sandbox's output must not be able to reorder or hide what a message says.
                _ if c.is_control() || is_bidi(c) => out.extend(c.escape_default()),
                _ => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
}

/// Characters that change the direction of what follows, or have no width.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The one of `known` that `typed` was probably meant to be.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LONGEST: usize = 40;
    if typed.is_empty() || typed.len() > LONGEST {
        return None;
    }
    let (distance, word) = known.into_iter().map(|word| (distance(typed, word), word)).min()?;
    (distance <= 1 + typed.len() / 5).then_some(word)
}

/// Edits that make `a` into `b`: insertions, deletions, replacements, and swaps of neighbours count one each.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut next = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = row[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            next[j] = replaced.min(row[j] + 1).min(next[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                next[j] = next[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_survive_the_text_form() {
        let cases: [&[u8]; 6] = [
            b"",
            b"plain",
            "é\u{10ffff}\u{10ff80}".as_bytes(),
            b"\xff\xfe",
            b"a\xc3",
            b"\x80/\n\xf4\x8f\xbf\xbf",
        ];
        for case in cases {
            let os = OsStr::from_bytes(case);
            assert_eq!(decode(&encode(os)), os, "{case:?}");
        }
        assert_eq!(encode(OsStr::new("~/é")), "~/é");
    }

    #[test]
    fn messages_hold_no_control_bytes() {
        assert_eq!(quoted("a\x1b[31m\"\n"), r#""a\u{1b}[31m\"\n""#);
        assert_eq!(quoted(OsStr::from_bytes(b"\xff\x07")), r#""\xff\u{7}""#);
        assert_eq!(quoted("\u{202e}txt"), r#""\u{202e}txt""#);
        assert_eq!(quoted("x".repeat(1 << 20)).len(), 2 + SHOWN_MAX + "… (1048576 bytes)".len());
    }

    #[test]
    fn a_typing_error_finds_its_word() {
        let words = ["run", "exec", "ls", "stop", "rm", "doctor", "version"];
        for (typed, meant) in [("rnu", "run"), ("exce", "exec"), ("stpo", "stop"), ("docter", "doctor")] {
            assert_eq!(nearest(typed, words), Some(meant));
        }
        assert_eq!(nearest("frobnicate", words), None);
        assert_eq!(nearest("", words), None);
    }
}
