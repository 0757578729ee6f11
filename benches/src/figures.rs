//! What one run of the stopwatch hands to the judge: figures with their names, as JSON.
//! It owns the form only. Units are the last part of a name.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Figure {
    pub name: String,
    pub value: f64,
}

/// Milliseconds have nanoseconds as their last digits; what is behind those is only the way in which numbers are stored.
const DIGITS: f64 = 1e6;

impl Figure {
    #[must_use]
    pub fn new(name: &str, value: f64) -> Self {
        Self { name: name.to_owned(), value: (value * DIGITS).round() / DIGITS }
    }
}

/// All that was measured in one boot of the lab.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Held to the budget.
    pub figures: Vec<Figure>,
    /// Where the time of a cold run goes, in milliseconds. They explain the figures: one may grow when another shrinks.
    pub phases: Vec<Figure>,
    /// Other programs, measured alike.
    pub baseline: Vec<Figure>,
}

impl Run {
    /// # Errors
    /// When the file cannot be read or is not a run.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} holds no figures", path.display()))
    }

    pub fn all(&self) -> impl Iterator<Item = &Figure> {
        self.figures.iter().chain(&self.phases).chain(&self.baseline)
    }

    /// The names of what is not the same to the last digit in both runs.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let missing_in = |here: &Self, figure: &&Figure| !here.all().any(|it| it == *figure);
        let mut names: Vec<_> =
            self.all().filter(|it| missing_in(other, it)).map(|it| it.name.clone()).collect();
        names.extend(
            other.all().filter(|it| !self.all().any(|mine| mine.name == it.name)).map(|it| it.name.clone()),
        );
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(values: &[(&str, f64)]) -> Run {
        Run {
            figures: values.iter().map(|(name, value)| Figure::new(name, *value)).collect(),
            ..Run::default()
        }
    }

    #[test]
    fn the_last_digit_counts() {
        let one = run(&[("run_ms", 100.000_001), ("ls_ms", 2.0)]);
        assert_eq!(one.differences(&one), [""; 0]);
        assert_eq!(one.differences(&run(&[("run_ms", 100.000_002), ("ls_ms", 2.0)])), ["run_ms"]);
        assert_eq!(one.differences(&run(&[("run_ms", 100.000_001)])), ["ls_ms"]);
        assert_eq!(run(&[]).differences(&one), ["run_ms", "ls_ms"]);
    }

    #[test]
    fn a_run_survives_the_way_to_the_judge() {
        let one = run(&[("run_ms", 123.456_789)]);
        let text = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<Run>(&text).unwrap(), one);
    }
}
