//! The guest's serial output: a bounded log file and the last lines for error messages.
//! It owns both limits. It does not answer the serial line's registers, and the guest gets no input.

use std::fs::File;
use std::io::{self, Write};

/// The log never grows beyond this, whatever the guest prints.
pub const CONSOLE_LOG_MAX: usize = 1 << 20;
/// How much of the end is kept for `tail`.
const TAIL_MAX: usize = 8 << 10;
/// Output is written to the log in pieces of about this size, at the end of a line.
const CHUNK: usize = 512;

/// Takes the guest's output byte by byte.
#[derive(Debug)]
pub struct Console {
    log: File,
    logged: usize,
    unwritten: Vec<u8>,
    tail: Vec<u8>,
}

impl Console {
    pub fn new(log: File) -> Self {
        Self { log, logged: 0, unwritten: Vec::new(), tail: Vec::new() }
    }

    /// The last lines, with control characters made harmless for a terminal.
    pub fn tail(&self) -> String {
        String::from_utf8_lossy(&self.tail)
            .chars()
            .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
            .collect()
    }

    fn write_log(&mut self) {
        let room = CONSOLE_LOG_MAX - self.logged;
        let length = self.unwritten.len().min(room);
        // A full disk must not stop the guest: what cannot be logged is lost.
        let _ = self.log.write_all(&self.unwritten[..length]);
        self.logged += length;
        self.unwritten.clear();
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.tail.len() + bytes.len() > 2 * TAIL_MAX {
            self.tail.drain(..self.tail.len() - TAIL_MAX);
        }
        self.tail.extend_from_slice(bytes);
        self.unwritten.extend_from_slice(bytes);
        if self.unwritten.len() >= CHUNK || bytes.ends_with(b"\n") {
            self.write_log();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_log();
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.write_log();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_its_end_is_kept() {
        let log = tempfile::tempfile().unwrap();
        let mut console = Console::new(log.try_clone().unwrap());
        for n in 0..200_000 {
            console.write_all(format!("line {n}\n").as_bytes()).unwrap();
        }
        console.flush().unwrap();
        assert_eq!(log.metadata().unwrap().len(), CONSOLE_LOG_MAX as u64);
        assert!(console.tail().ends_with("line 199999\n"));
        assert!(console.tail().len() <= 2 * TAIL_MAX);
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        let mut console = Console::new(tempfile::tempfile().unwrap());
        console.write_all(b"\x1b]0;title\x07\n").unwrap();
        assert_eq!(console.tail(), " ]0;title \n");
    }
}
