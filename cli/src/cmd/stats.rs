//! `coracle stats`: what sandboxes take of this machine. It reads /proc and the sandboxes' folders only: no guest is asked, so
//! none can lie or hang it.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use argh::{ArgsInfo, FromArgs};
use rustix::param::clock_ticks_per_second;
use serde_json::{Value, json};

use crate::cmd::Typed;
use crate::output::{print, table};
use crate::store::{Sandbox, Store, Usage};
use crate::text::Raw;
use crate::units::show_bytes;

/// Between two looks at a terminal, and for a single figure of CPU time.
const INTERVAL: Duration = Duration::from_secs(1);
const SHORT: Duration = Duration::from_millis(500);
const HEAD: [&str; 4] = ["SANDBOX", "CPU %", "MEM USED / GIVEN", "DISK REAL / APPARENT"];
/// Home and clear all; home; clear the rest of the line; clear what is below (ECMA-48, CUP, EL and ED).
const CLEAR: &str = "\x1b[H\x1b[2J";
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K\n";
const CLEAR_BELOW: &str = "\x1b[J";

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "stats",
    help_triggers("-h", "--help"),
    usage = "[-a] [--no-stream] [--json] [NAME...]",
    example = "coracle stats                    all that run, each second, until ctrl-C
coracle stats --no-stream box    one sandbox, once
coracle stats -a --json          all there are, for a script",
    note = "CPU % is of one CPU: 200 is two that are busy. MEM USED is what the sandbox takes of this machine now; memory that it
frees comes back within seconds. GIVEN is the most it can take. DISK REAL is what its disk takes, APPARENT the size the sandbox
sees; what it deletes comes back as well. Templates are shared by all sandboxes and not counted.
Without a terminal, and with --json, the figures are printed once. In --json, sizes are in bytes, and what a stopped sandbox
does not have is null."
)]
/// Show what sandboxes take: CPU, memory, disk.
pub struct Args {
    /// stopped sandboxes too
    #[argh(switch, short = 'a')]
    pub all: bool,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// print once, also on a terminal
    #[argh(switch)]
    pub no_stream: bool,
    /// the sandboxes, by name or the beginning of their id; without any, all that run
    #[argh(positional, arg_name = "NAME")]
    pub names: Vec<Raw>,
}

/// One look at one sandbox.
#[derive(Debug)]
struct Reading {
    at: Instant,
    usage: Option<Usage>,
    given: Option<u64>,
    /// Real and apparent size.
    disk: Option<(u64, u64)>,
}

impl Reading {
    fn of(sandbox: &Sandbox) -> Self {
        let given = sandbox.config().ok().map(|config| u64::from(config.memory_mib) << 20);
        Self { at: Instant::now(), usage: sandbox.usage(), given, disk: sandbox.disk_sizes().ok() }
    }

    /// In percent of one CPU, since a look before.
    #[expect(clippy::cast_precision_loss, reason = "ticks of an interval are few")]
    fn cpu(&self, before: Option<&Self>) -> Option<f64> {
        let (now, before) = (self.usage?, before?);
        let ticks = now.cpu_ticks.checked_sub(before.usage?.cpu_ticks)?;
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        Some(ticks as f64 * 100.0 / clock_ticks_per_second() as f64 / seconds.max(f64::EPSILON))
    }
}

type Readings = BTreeMap<String, Reading>;

impl Args {
    pub fn run(self, _typed: Typed) -> Result<u8> {
        let names_and_all = self.all && !self.names.is_empty();
        ensure!(!names_and_all, "-a is for all sandboxes; leave it out, or the names");
        let mut before = self.read()?;
        if self.json || self.no_stream || !std::io::stdout().is_terminal() {
            sleep(SHORT);
            let now = self.read()?;
            print(&if self.json { json(&now, &before) } else { text(&now, &before) })?;
            return Ok(0);
        }
        print(CLEAR)?;
        loop {
            let now = self.read()?;
            let lines = text(&now, &before).replace('\n', CLEAR_LINE);
            print(&format!("{HOME}{lines}{CLEAR_BELOW}"))?;
            before = now;
            sleep(INTERVAL);
        }
    }

    fn read(&self) -> Result<Readings> {
        let sandboxes = match self.names.first() {
            Some(first) => {
                let store = Store::existing(&first.0)?;
                self.names.iter().map(|name| store.find(&name.0)).collect::<Result<_>>()?
            }
            None => Store::open()?.map_or_else(|| Ok(Vec::new()), |store| store.sandboxes())?,
        };
        let shown = |reading: &Reading| self.all || !self.names.is_empty() || reading.usage.is_some();
        let readings = sandboxes.iter().map(|sandbox| (sandbox.name.clone(), Reading::of(sandbox)));
        Ok(readings.filter(|(_, reading)| shown(reading)).collect())
    }
}

fn text(now: &Readings, before: &Readings) -> String {
    let dash = || "-".to_owned();
    let size = |bytes: Option<u64>| bytes.map_or_else(dash, show_bytes);
    let rows = now.iter().map(|(name, reading)| {
        let cpu = reading.cpu(before.get(name)).map_or_else(dash, |cpu| format!("{cpu:.1}"));
        let memory = format!("{} / {}", size(reading.usage.map(|it| it.memory)), size(reading.given));
        let (real, apparent) = (reading.disk.map(|it| it.0), reading.disk.map(|it| it.1));
        vec![name.clone(), cpu, memory, format!("{} / {}", size(real), size(apparent))]
    });
    table(&std::iter::once(HEAD.map(String::from).to_vec()).chain(rows).collect::<Vec<_>>())
}

fn json(now: &Readings, before: &Readings) -> String {
    let rows = now.iter().map(|(name, reading)| {
        json!({
            "name": name,
            "running": reading.usage.is_some(),
            "cpu_percent": reading.cpu(before.get(name)).map(|cpu| (cpu * 10.0).round() / 10.0),
            "memory_used": reading.usage.map(|it| it.memory),
            "memory_given": reading.given,
            "disk_real": reading.disk.map(|it| it.0),
            "disk_apparent": reading.disk.map(|it| it.1),
        })
    });
    format!("{:#}\n", Value::from(rows.collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at: Instant, cpu_ticks: Option<u64>) -> Reading {
        let usage = cpu_ticks.map(|cpu_ticks| Usage { cpu_ticks, memory: 50 << 20 });
        Reading { at, usage, given: Some(4 << 30), disk: Some((3 << 20, 20 << 30)) }
    }

    #[test]
    fn figures_are_those_of_the_time_between_two_looks() {
        let then = Instant::now();
        let later = then + Duration::from_secs(2);
        let ticks = clock_ticks_per_second();
        let before =
            Readings::from([("a".into(), reading(then, Some(7))), ("b".into(), reading(then, None))]);
        let now = Readings::from([
            ("a".into(), reading(later, Some(7 + 3 * ticks))),
            ("b".into(), reading(later, None)),
            ("c".into(), reading(later, Some(5))),
        ]);
        assert_eq!(
            text(&now, &before),
            "SANDBOX   CPU %   MEM USED / GIVEN     DISK REAL / APPARENT\n\
             a         150.0   50.0 MiB / 4.0 GiB   3.0 MiB / 20.0 GiB\n\
             b         -       - / 4.0 GiB          3.0 MiB / 20.0 GiB\n\
             c         -       50.0 MiB / 4.0 GiB   3.0 MiB / 20.0 GiB\n"
        );
        let value: Value = serde_json::from_str(&json(&now, &before)).unwrap();
        assert_eq!((&value[0]["cpu_percent"], &value[0]["memory_used"]), (&json!(150.0), &json!(50 << 20)));
        assert_eq!((&value[1]["running"], &value[1]["memory_used"]), (&json!(false), &Value::Null));
    }

    #[test]
    fn a_vmm_that_was_started_anew_has_no_figure_yet() {
        let then = Instant::now();
        assert_eq!(reading(then, Some(1)).cpu(Some(&reading(then, Some(100)))), None);
    }
}
