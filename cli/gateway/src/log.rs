//! What a sandbox has reached, and what it was refused: one line for each host, rule and reason, with counts. It owns the file
//! `network.json` in the sandbox's folder: bounded, replaced whole, and read back by the gateway that comes after.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::policy::{Decision, Destination, Host, Name};

/// The log's file in a sandbox's folder.
pub const NAME: &str = "network.json";
const NEW: &str = "network.json.new";
/// Of what was allowed, and of what was denied: a guest that asks for much drives out only what is of the same kind.
const ENTRIES_MAX: usize = 500;
const REASON_MAX: usize = 300;
const SIZE_MAX: u64 = 4 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub host: String,
    /// 0 is a name that was asked for.
    pub port: u16,
    pub allowed: bool,
    pub rule: Option<String>,
    pub reason: String,
    /// Seconds since the epoch.
    pub first_s: u64,
    pub last_s: u64,
    pub count: u64,
    /// From the sandbox, and to it.
    pub sent: u64,
    pub received: u64,
}

/// The file, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    pub entries: Vec<Entry>,
    /// Lines that there was no room for any more.
    pub forgotten: u64,
}

#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    record: Record,
    dirty: bool,
}

impl Log {
    /// The log of the sandbox whose folder that is, with what earlier gateways have seen. One that is damaged begins anew.
    pub fn open(folder: &Path) -> Self {
        let path = folder.join(NAME);
        let mut record = Record::read(&path).unwrap_or_default();
        record.trim();
        Self { path, record, dirty: false }
    }

    /// A connection, and what was decided about it.
    pub fn record(&mut self, to: &Destination, decision: &Decision) {
        self.add(&to.host, to.port, decision);
    }

    /// A name that was asked for, and what was decided about it.
    pub fn record_name(&mut self, name: &Name, decision: &Decision) {
        self.add(&Host::Name(name.clone()), 0, decision);
    }

    /// What a connection has carried since it was last counted.
    pub fn bytes(&mut self, to: &Destination, sent: u64, received: u64) {
        let host = to.host.to_string();
        let mut of_it = self.record.entries.iter_mut().rev();
        let Some(entry) = of_it.find(|it| it.allowed && it.port == to.port && it.host == host) else {
            return;
        };
        entry.sent = entry.sent.saturating_add(sent);
        entry.received = entry.received.saturating_add(received);
        self.dirty = true;
    }

    /// Writes the file, if there is something new. To be called now and then, and at the end.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.dirty {
            return Ok(());
        }
        let new = self.path.with_file_name(NEW);
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        // Not synced: what a power cut may take is no more than the log of the last moments.
        options.open(&new)?.write_all(&serde_json::to_vec(&self.record)?)?;
        fs::rename(&new, &self.path)?;
        self.dirty = false;
        Ok(())
    }

    /// The newest lines are the last.
    fn add(&mut self, host: &Host, port: u16, decision: &Decision) {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let (host, reason) = (host.to_string(), cut(decision.reason.to_string()));
        let entries = &mut self.record.entries;
        let same = |it: &Entry| {
            let what = (&it.host, it.port, it.allowed) == (&host, port, decision.allowed);
            what && it.rule == decision.rule && it.reason == reason
        };
        let mut entry = match entries.iter().rposition(same) {
            Some(at) => entries.remove(at),
            None => Entry {
                host,
                port,
                allowed: decision.allowed,
                rule: decision.rule.clone(),
                reason,
                first_s: now_s,
                last_s: now_s,
                count: 0,
                sent: 0,
                received: 0,
            },
        };
        entry.count = entry.count.saturating_add(1);
        entry.last_s = now_s;
        entries.push(entry);
        self.record.trim();
        self.dirty = true;
    }
}

fn cut(mut text: String) -> String {
    let end = (0..=REASON_MAX.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    text.truncate(end.unwrap_or(0));
    text
}

impl Record {
    /// The record in a file; empty when there is none.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut options = fs::OpenOptions::new();
        let file: File = match options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
        {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            file => file?,
        };
        let mut json = Vec::new();
        file.take(SIZE_MAX).read_to_end(&mut json)?;
        Ok(serde_json::from_slice(&json)?)
    }

    /// Forgets the oldest of a kind that has too many.
    fn trim(&mut self) {
        for allowed in [true, false] {
            let count = self.entries.iter().filter(|it| it.allowed == allowed).count();
            let mut excess = count.saturating_sub(ENTRIES_MAX);
            self.forgotten = self.forgotten.saturating_add(excess as u64);
            self.entries.retain(|it| {
                let forget = it.allowed == allowed && excess > 0;
                excess -= usize::from(forget);
                !forget
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Policy, Rules};

    fn to(host: &str) -> Destination {
        Destination::parse(host, 443).unwrap()
    }

    #[test]
    fn a_gateway_that_starts_again_counts_on() {
        let folder = tempfile::tempdir().unwrap();
        let rules = Rules { allow: vec!["a.example".parse().unwrap()], ..Rules::default() };
        let policy = Policy::new(&rules, &Rules::default());
        for round in 1..=2 {
            let mut log = Log::open(folder.path());
            for host in ["a.example", "b.example", "a.example:80"] {
                log.record(&to(host), &policy.decide(&to(host)));
            }
            log.bytes(&to("a.example"), 10, 1000);
            log.bytes(&to("b.example"), 10, 1000);
            log.flush().unwrap();
            let read = Record::read(&folder.path().join(NAME)).unwrap();
            let seen = read.entries.iter().map(|it| (&*it.host, it.port, it.allowed, it.count, it.received));
            let seen: Vec<_> = seen.collect();
            let carried = 1000 * round;
            let expected = [
                ("a.example", 443, true, round, carried),
                ("b.example", 443, false, round, 0),
                ("a.example", 80, true, round, 0),
            ];
            assert_eq!(seen, expected);
            assert_eq!(read.entries[1].reason, "no rule allows it");
        }
        fs::write(folder.path().join(NAME), "{").unwrap();
        assert_eq!(Log::open(folder.path()).record, Record::default());
    }

    #[test]
    fn a_flood_of_names_drives_out_no_connection() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::open(folder.path());
        let policy = Policy::new(&Rules::default(), &Rules::default());
        log.record(&to("github.com"), &policy.decide(&to("github.com")));
        for number in 0..2 * ENTRIES_MAX {
            let name = Name::parse(&format!("x{number}.evil.example")).unwrap();
            log.record_name(&name, &policy.decide_name(&name));
        }
        assert_eq!(log.record.entries.len(), ENTRIES_MAX + 1);
        assert_eq!(log.record.forgotten, ENTRIES_MAX as u64);
        assert_eq!((&*log.record.entries[0].host, log.record.entries[0].count), ("github.com", 1));
        log.flush().unwrap();
        assert!(fs::metadata(folder.path().join(NAME)).unwrap().len() < SIZE_MAX / 4);
    }
}
