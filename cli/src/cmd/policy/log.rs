//! `coracle policy log`: what sandboxes have reached and what they were refused, as their gateways have written it down. It asks no
//! gateway anything, so it cannot hang.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Write};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use argh::{ArgsInfo, FromArgs};
use gateway::log::{Entry, NAME, Record};
use serde_json::{Value, json};

use super::look::one;
use crate::output::{ago, note, now_s, print, rfc3339, table};
use crate::store::{Sandbox, Store};
use crate::text::{Raw, plain};
use crate::units::show_bytes;

/// How often --follow looks.
const PERIOD: Duration = Duration::from_millis(300);

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "log",
    help_triggers("-h", "--help"),
    usage = "[--denied] [--follow] [--json] [SANDBOX]",
    note = "One line for each host, rule and reason, the newest last; COUNT is how often. Without a port it is a name that was asked for.
BYTES are those from the sandbox and to it. The 500 newest lines of what was allowed are kept, and as many of what was denied.",
    note = "With --follow and --json each line is an object of its own."
)]
/// Show what sandboxes have reached, and what they were refused and why.
pub struct Args {
    /// only what was denied
    #[argh(switch)]
    pub denied: bool,
    /// go on with what happens from now on, until interrupted
    #[argh(switch, short = 'f')]
    pub follow: bool,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// the same as SANDBOX
    #[argh(option, arg_name = "NAME")]
    pub sandbox: Option<Raw>,
    /// a sandbox's name, or the beginning of its id; the default is all
    #[argh(positional, arg_name = "SANDBOX")]
    pub name: Option<Raw>,
}

/// A line of the log, and whose it is.
struct Line {
    sandbox: String,
    entry: Entry,
}

impl Args {
    pub fn run(self) -> Result<u8> {
        let name = one(self.name.as_ref(), self.sandbox.as_ref())?;
        let chosen = name.map(|name| Store::existing(&name.0)?.find(&name.0)).transpose()?;
        let (lines, forgotten) = self.lines(chosen.as_ref())?;
        if self.follow {
            return self.follow(chosen.as_ref(), &lines);
        }
        print(&if self.json {
            format!("{:#}\n", lines.iter().map(Line::json).collect::<Value>())
        } else {
            let head = ["SANDBOX", "HOST", "RULE", "VERDICT", "REASON", "LAST", "COUNT", "BYTES"];
            let rows = lines.iter().map(|line| line.cells(now_s()));
            table(&std::iter::once(head.map(String::from).to_vec()).chain(rows).collect::<Vec<_>>())
        })?;
        if forgotten > 0 {
            note(&format!("coracle: {forgotten} older lines are forgotten\n"));
        }
        Ok(0)
    }

    /// All lines, and how many are forgotten. A log that cannot be read hides no other.
    fn lines(&self, chosen: Option<&Sandbox>) -> Result<(Vec<Line>, u64)> {
        let mut lines = Vec::new();
        let mut forgotten = 0;
        let mut read = |sandbox: &Sandbox| match Record::read(&sandbox.path.join(NAME)) {
            Ok(record) => {
                forgotten += record.forgotten;
                let wanted = record.entries.into_iter().filter(|it| !self.denied || !it.allowed);
                lines.extend(wanted.map(|entry| Line { sandbox: sandbox.name.clone(), entry }));
            }
            Err(error) => note(&format!("coracle: the log of {} is damaged: {error}\n", sandbox.name)),
        };
        match chosen {
            Some(sandbox) => read(sandbox),
            None => Store::open()?.map_or(Ok(Vec::new()), |store| store.sandboxes())?.iter().for_each(read),
        }
        lines.sort_by_key(|line| line.entry.last_s);
        Ok((lines, forgotten))
    }

    /// Prints what counts more than it did.
    fn follow(&self, chosen: Option<&Sandbox>, before: &[Line]) -> Result<u8> {
        let mut counts: HashMap<_, _> = before.iter().map(|line| (line.key(), line.entry.count)).collect();
        loop {
            thread::sleep(PERIOD);
            for line in self.lines(chosen)?.0 {
                let seen = counts.insert(line.key(), line.entry.count);
                if seen == Some(line.entry.count) {
                    continue;
                }
                let text = if self.json { format!("{}\n", line.json()) } else { line.sentence() };
                match io::stdout().write_all(text.as_bytes()) {
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(0),
                    other => other.context("write to standard output")?,
                }
            }
            if let Some(sandbox) = chosen {
                std::fs::metadata(&sandbox.path)
                    .with_context(|| format!("sandbox {} is gone", sandbox.name))?;
            }
        }
    }
}

impl Line {
    fn key(&self) -> (String, String, Option<String>, String, bool) {
        let entry = &self.entry;
        (self.sandbox.clone(), self.host(), entry.rule.clone(), entry.reason.clone(), entry.allowed)
    }

    fn host(&self) -> String {
        let Entry { host, port, .. } = &self.entry;
        match port {
            0 => plain(host),
            port if host.contains(':') => format!("[{}]:{port}", plain(host)),
            port => format!("{}:{port}", plain(host)),
        }
    }

    fn verdict(&self) -> &'static str {
        if self.entry.allowed { "allowed" } else { "denied" }
    }

    fn cells(&self, now_s: u64) -> Vec<String> {
        let entry = &self.entry;
        let bytes = entry.sent.saturating_add(entry.received);
        vec![
            self.sandbox.clone(),
            self.host(),
            plain(entry.rule.as_deref().unwrap_or("-")),
            self.verdict().into(),
            plain(&entry.reason),
            ago(entry.last_s, now_s),
            entry.count.to_string(),
            show_bytes(bytes),
        ]
    }

    fn sentence(&self) -> String {
        let entry = &self.entry;
        let rule = entry.rule.as_ref().map(|rule| format!("{}, ", plain(rule))).unwrap_or_default();
        let (when, verdict, host) = (rfc3339(entry.last_s), self.verdict(), self.host());
        format!("{when} {} {verdict} {host} ({rule}{})\n", self.sandbox, plain(&entry.reason))
    }

    fn json(&self) -> Value {
        let entry = &self.entry;
        json!({
            "sandbox": self.sandbox,
            "host": entry.host,
            "port": (entry.port > 0).then_some(entry.port),
            "rule": entry.rule,
            "verdict": self.verdict(),
            "reason": entry.reason,
            "first": rfc3339(entry.first_s),
            "last": rfc3339(entry.last_s),
            "count": entry.count,
            "sent": entry.sent,
            "received": entry.received,
        })
    }
}
