//! `--timings`: the marks of a run as a table or as JSON.
//! It owns only how they look; which marks there are, and who sets them, is in `vmm::marks`.

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs::File;

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use vmm::marks::{self, MARKS, Mark};

use crate::text::quoted;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

impl Format {
    pub fn parse(text: &OsStr) -> Result<Self> {
        match text.to_str() {
            Some("text") => Ok(Self::Text),
            Some("json") => Ok(Self::Json),
            _ => bail!("--timings {} is not a format; write --timings or --timings=json", quoted(text)),
        }
    }
}

/// The points this process passes itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Own {
    pub start_ns: u64,
    pub first_byte_ns: u64,
    pub exit_code_ns: u64,
}

impl Own {
    fn marks(self) -> [(Mark, u64); 3] {
        [
            (Mark::CliStart, self.start_ns),
            (Mark::FirstByte, self.first_byte_ns),
            (Mark::ExitCode, self.exit_code_ns),
        ]
    }

    /// Adds them to those of the sandbox that this process has started.
    pub fn record(self, file: &File) {
        for (mark, at_ns) in self.marks().into_iter().filter(|(_, at_ns)| *at_ns != 0) {
            marks::record(file, mark, at_ns);
        }
    }

    /// All marks: with those in `file` when the sandbox was started by this process.
    pub fn report(self, file: Option<&File>, format: Format) -> String {
        let mut times = file.and_then(|file| marks::read(file).ok()).unwrap_or_default();
        for (mark, at_ns) in self.marks() {
            times[mark as usize] = at_ns;
        }
        show(&times, format)
    }
}

fn show(times: &[u64; MARKS.len()], format: Format) -> String {
    let start = times[Mark::CliStart as usize];
    // The guest cannot write here, but a mark from before the start would still be one of another run.
    let mut passed: Vec<_> = MARKS.iter().map(|(mark, name)| (times[*mark as usize], *name)).collect();
    passed.retain(|(at_ns, _)| *at_ns >= start && *at_ns != 0);
    passed.sort();
    match format {
        Format::Json => {
            let ms = |ns: u64| Value::from(ns as f64 / 1e6);
            let marks: Map<_, _> =
                passed.iter().map(|(at_ns, name)| (name.replace(' ', "_"), ms(at_ns - start))).collect();
            format!("{}\n", json!({ "timings_ms": marks }))
        }
        Format::Text => {
            let mut out = format!("{:<18}{:>9}{:>9}\n", "mark", "ms", "+ms");
            let mut before = start;
            for (at_ns, name) in passed {
                let ms = |ns: u64| ns as f64 / 1e6;
                let _ = writeln!(out, "{name:<18}{:9.3}{:9.3}", ms(at_ns - start), ms(at_ns - before));
                before = at_ns;
            }
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn marks_are_shown_from_the_start_of_the_command() {
        let mut times = [0; MARKS.len()];
        times[Mark::CliStart as usize] = 5_000_000;
        times[Mark::VmmSpawned as usize] = 5_700_000;
        times[Mark::ExitCode as usize] = 25_812_345;
        times[Mark::Ready as usize] = 17;
        expect![[r#"
            mark                     ms      +ms
            cli start             0.000    0.000
            vmm spawned           0.700    0.700
            exit code            20.812   20.112
        "#]]
        .assert_eq(&show(&times, Format::Text));
        expect![[r#"
            {"timings_ms":{"cli_start":0.0,"exit_code":20.812345,"vmm_spawned":0.7}}
        "#]]
        .assert_eq(&show(&times, Format::Json));
    }
}
