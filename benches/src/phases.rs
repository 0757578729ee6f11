//! From the marks that `coracle run --timings=json` prints to phases: the time between one mark and the next.
//! It knows no mark by name, so that a new one in the product is a new phase here.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// A point of a start and the milliseconds from the start of the command to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    pub name: String,
    pub at_ms: f64,
}

#[derive(Deserialize)]
struct Timings {
    timings_ms: BTreeMap<String, f64>,
}

/// The marks in `stderr`, in the order in which they were passed. What else is there is not JSON, and not looked at.
///
/// # Errors
/// When there are no timings, or fewer than two marks.
pub fn parse(stderr: &str) -> Result<Vec<Mark>> {
    let line = stderr.lines().find(|line| line.starts_with("{\"timings_ms\":"));
    let line = line.with_context(|| format!("there are no timings in {stderr:?}"))?;
    let timings: Timings = serde_json::from_str(line).context("parse the timings")?;
    let mut marks: Vec<_> =
        timings.timings_ms.into_iter().map(|(name, at_ms)| Mark { name, at_ms }).collect();
    marks.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
    ensure!(marks.len() >= 2, "the timings have {} marks", marks.len());
    Ok(marks)
}

/// The time up to each mark since the one before it. A phase has the name of the mark that ends it.
pub fn phases(marks: &[Mark]) -> impl Iterator<Item = (&str, f64)> {
    marks.windows(2).map(|pair| (pair[1].name.as_str(), pair[1].at_ms - pair[0].at_ms))
}

/// The phase that `name` ends.
#[must_use]
pub fn phase(marks: &[Mark], name: &str) -> Option<Duration> {
    let (_, ms) = phases(marks).find(|(mark, _)| *mark == name)?;
    Some(Duration::from_secs_f64(ms / 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str =
        "a warning\n{\"timings_ms\":{\"cli_start\":0.0,\"exit_code\":20.5,\"vmm_start\":0.75}}\n";

    #[test]
    fn phases_are_the_time_between_marks() {
        let marks = parse(PRINTED).unwrap();
        assert_eq!(phases(&marks).collect::<Vec<_>>(), [("vmm_start", 0.75), ("exit_code", 19.75)]);
        assert_eq!(phase(&marks, "vmm_start"), Some(Duration::from_micros(750)));
        assert_eq!(phase(&marks, "cli_start"), None);
    }

    #[test]
    fn what_is_not_timings_is_said() {
        assert!(parse("coracle: no such thing\n").unwrap_err().to_string().contains("no such thing"));
        assert!(parse("{\"timings_ms\":{\"cli_start\":0.0}}\n").is_err());
        assert!(parse("{\"timings_ms\":\n").is_err());
    }
}
