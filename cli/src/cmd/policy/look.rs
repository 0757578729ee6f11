//! `coracle policy ls` and `check`: which rules there are, and what they come to. They change nothing.

use anyhow::{Context, Result, anyhow, ensure};
use argh::{ArgsInfo, FromArgs};
use gateway::policy::{Destination, Policy, Preset, Rule};
use serde_json::{Value, json};

use super::Place;
use crate::output::{print, table};
use crate::text::{Raw, quoted};

/// What a URL without a port means today.
const PORT: u16 = 443;

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "ls",
    help_triggers("-h", "--help"),
    usage = "[--all] [--json] [SANDBOX]",
    note = "Those for all sandboxes, or those that a sandbox is under. coracle policy preset prints a preset's list with comments."
)]
/// List the rules.
pub struct Ls {
    /// with each rule of the preset
    #[argh(switch, short = 'a')]
    pub all: bool,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// the same as SANDBOX
    #[argh(option, arg_name = "NAME")]
    pub sandbox: Option<Raw>,
    /// a sandbox's name, or the beginning of its id
    #[argh(positional, arg_name = "SANDBOX")]
    pub name: Option<Raw>,
}

impl Ls {
    pub fn run(self) -> Result<u8> {
        let place = Place::find(one(self.name.as_ref(), self.sandbox.as_ref())?)?;
        let (global, own) = place.rules()?;
        let preset = own.preset.or(global.preset).unwrap_or_default();
        let owner = place.sandbox.as_ref().map(|it| it.name.as_str());
        let mut rows = Vec::new();
        for (rules, whose) in [(&own, owner.unwrap_or_default()), (&global, "all")] {
            rows.extend(rules.deny.iter().map(|rule| row("deny", rule, whose)));
            rows.extend(rules.allow.iter().map(|rule| row("allow", rule, whose)));
        }
        if self.all {
            let whose = format!("preset {}", preset.name());
            rows.extend(preset.rules().iter().map(|rule| row("allow", rule, &whose)));
        }
        print(&if self.json { as_json(preset, &rows) } else { as_table(preset, rows, self.all) })?;
        Ok(0)
    }
}

fn row(verdict: &str, rule: &Rule, whose: &str) -> Vec<String> {
    vec![verdict.into(), rule.to_string(), whose.into()]
}

fn as_table(preset: Preset, mut rows: Vec<Vec<String>>, all: bool) -> String {
    if !all {
        let count = preset.rules().len();
        let what = format!("{count} rule{}", if count == 1 { "" } else { "s" });
        rows.push(vec!["allow".into(), what, format!("preset {}", preset.name())]);
    }
    let head = ["VERDICT", "RULE", "OF"].map(String::from).to_vec();
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn as_json(preset: Preset, rows: &[Vec<String>]) -> String {
    let rules = rows.iter().map(|row| json!({ "verdict": row[0], "rule": row[1], "of": row[2] }));
    format!("{:#}\n", json!({ "preset": preset.name(), "rules": rules.collect::<Value>() }))
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "check",
    help_triggers("-h", "--help"),
    usage = "[--sandbox NAME] [--json] HOST[:PORT]...",
    note = "The port is 443 where none is given. The exit code is 0 when all may be reached, else 1. No name is resolved: one that leads to a
private address is refused all the same, if no rule names that."
)]
/// Say whether hosts may be reached, and why.
pub struct Check {
    /// from this sandbox; the default is one without rules of its own
    #[argh(option, arg_name = "NAME")]
    pub sandbox: Option<Raw>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// names or addresses
    #[argh(positional, arg_name = "HOST")]
    pub hosts: Vec<Raw>,
}

impl Check {
    pub fn run(self) -> Result<u8> {
        let hosts = match self.hosts.as_slice() {
            [first, rest @ ..] if first.0 == "network" && !rest.is_empty() => rest,
            all => all,
        };
        ensure!(!hosts.is_empty(), "check needs a host, such as example.com:443");
        let hosts = hosts.iter().map(destination).collect::<Result<Vec<_>>>()?;
        let policy = Policy::load(&Place::find(self.sandbox.as_ref())?.files()?)?;
        let decided: Vec<_> = hosts.iter().map(|to| (to, policy.decide(to))).collect();
        print(&if self.json {
            let all = decided.iter().map(|(to, it)| {
                let (host, port, reason) = (to.host.to_string(), to.port, it.reason.to_string());
                json!({ "host": host, "port": port, "allowed": it.allowed, "rule": it.rule, "reason": reason })
            });
            format!("{:#}\n", all.collect::<Value>())
        } else {
            let line = |to: &Destination, verdict, rule: &Option<String>, reason: String| match rule {
                Some(rule) => format!("{verdict}: {to} ({rule}, {reason})\n"),
                None => format!("{verdict}: {to} ({reason})\n"),
            };
            let verdict = |allowed| if allowed { "Allowed" } else { "Denied" };
            let lines =
                decided.iter().map(|(to, it)| line(to, verdict(it.allowed), &it.rule, it.reason.to_string()));
            lines.collect()
        })?;
        Ok(u8::from(decided.iter().any(|(_, it)| !it.allowed)))
    }
}

fn destination(typed: &Raw) -> Result<Destination> {
    let text = typed.0.to_str().with_context(|| format!("{} is not a host", quoted(&typed.0)))?;
    Destination::parse(text, PORT).map_err(|error| anyhow!("{} {error}", quoted(&typed.0)))
}

/// A sandbox that can be given in two ways.
pub fn one<'a>(name: Option<&'a Raw>, flag: Option<&'a Raw>) -> Result<Option<&'a Raw>> {
    ensure!(name.is_none() || flag.is_none(), "--sandbox and SANDBOX are the same; give one");
    Ok(name.or(flag))
}
