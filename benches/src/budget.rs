//! The budget: what each figure was when it was last agreed on, and what was promised for it.
//! A figure fails when it is more than `tolerance` above its budget, or above its promise. Lower is always better.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::figures::{Figure, Run};

/// How far a figure may be from its budget: virtual time repeats to the digit, but code that merely moved shifts it a little.
const TOLERANCE: f64 = 0.02;
/// The least that is tolerated of a time, in milliseconds: of a short one, a page of the binary more or less is over 2 %.
const SLACK: f64 = 0.05;

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub name: String,
    pub value: f64,
    /// Never to be exceeded, whatever the budget is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promise: Option<f64>,
}

/// The committed file.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    pub figures: Vec<Entry>,
    /// Not held to anything: what the phases were, to see which of them a slower run owes to.
    pub phases: Vec<Figure>,
}

/// How a figure stands to the budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Kept,
    /// By more than the tolerance: the budget should follow.
    Better,
    Worse,
    /// Above its promise; also where it is no worse than its budget.
    PromiseBroken,
    NoBudget,
    /// Has a budget, and was not measured.
    Missing,
}

impl Verdict {
    #[must_use]
    pub fn fails(self) -> bool {
        !matches!(self, Self::Kept | Self::Better)
    }
}

/// One figure beside its budget.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub name: String,
    pub measured: Option<f64>,
    pub budget: Option<f64>,
    pub promise: Option<f64>,
    pub verdict: Verdict,
}

impl Budget {
    /// # Errors
    /// When the file is there and is not a budget.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a budget", path.display()))
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("encode the budget")? + "\n";
        fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Every figure that was measured or should have been, in the order of the run.
    #[must_use]
    pub fn compare(&self, run: &Run) -> Vec<Row> {
        let measured = run.figures.iter().map(|figure| row(figure, self.entry(&figure.name)));
        let missing = self.figures.iter().filter(|entry| !run.figures.iter().any(|it| it.name == entry.name));
        measured.chain(missing.map(missing_row)).collect()
    }

    /// A budget of what was measured, with the promises of this one; what was not measured is no longer in it.
    #[must_use]
    pub fn updated(&self, run: &Run) -> Self {
        let entry = |figure: &Figure| {
            let promise = self.entry(&figure.name).and_then(|entry| entry.promise);
            Entry { name: figure.name.clone(), value: figure.value, promise }
        };
        Self { figures: run.figures.iter().map(entry).collect(), phases: run.phases.clone() }
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.figures.iter().find(|entry| entry.name == name)
    }
}

fn row(figure: &Figure, entry: Option<&Entry>) -> Row {
    let promise = entry.and_then(|entry| entry.promise);
    let verdict = match entry {
        None => Verdict::NoBudget,
        Some(_) if promise.is_some_and(|promise| figure.value > promise) => Verdict::PromiseBroken,
        Some(entry) if figure.value > entry.value + tolerance(entry) => Verdict::Worse,
        Some(entry) if figure.value < entry.value - tolerance(entry) => Verdict::Better,
        Some(_) => Verdict::Kept,
    };
    let budget = entry.map(|entry| entry.value);
    Row { name: figure.name.clone(), measured: Some(figure.value), budget, promise, verdict }
}

fn tolerance(entry: &Entry) -> f64 {
    let slack = if entry.name.ends_with("ms") { SLACK } else { 0.0 };
    (entry.value * TOLERANCE).max(slack)
}

fn missing_row(entry: &Entry) -> Row {
    Row {
        name: entry.name.clone(),
        measured: None,
        budget: Some(entry.value),
        promise: entry.promise,
        verdict: Verdict::Missing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(value: f64, budget: f64, promise: Option<f64>) -> Verdict {
        let budget =
            Budget { figures: vec![Entry { name: "ms".into(), value: budget, promise }], phases: vec![] };
        let run = Run { figures: vec![Figure::new("ms", value)], ..Run::default() };
        budget.compare(&run)[0].verdict
    }

    #[test]
    fn two_percent_either_way_are_kept() {
        assert_eq!(verdict(102.0, 100.0, None), Verdict::Kept);
        assert_eq!(verdict(102.001, 100.0, None), Verdict::Worse);
        assert_eq!(verdict(1.049, 1.0, None), Verdict::Kept, "of so little, 2 % are a page");
        assert_eq!(verdict(1.051, 1.0, None), Verdict::Worse);
        assert_eq!(verdict(98.0, 100.0, None), Verdict::Kept);
        assert_eq!(verdict(97.999, 100.0, None), Verdict::Better);
    }

    #[test]
    fn a_promise_has_no_tolerance() {
        assert_eq!(verdict(200.0, 200.0, Some(200.0)), Verdict::Kept);
        assert_eq!(verdict(200.001, 200.0, Some(200.0)), Verdict::PromiseBroken);
        assert_eq!(
            verdict(201.0, 300.0, Some(200.0)),
            Verdict::PromiseBroken,
            "better than the budget is not enough"
        );
    }

    #[test]
    fn what_is_on_one_side_only_fails() {
        let budget =
            Budget { figures: vec![Entry { name: "old".into(), value: 1.0, promise: None }], phases: vec![] };
        let run = Run { figures: vec![Figure::new("new", 1.0)], ..Run::default() };
        let verdicts: Vec<_> = budget.compare(&run).into_iter().map(|row| (row.name, row.verdict)).collect();
        assert_eq!(verdicts, [("new".into(), Verdict::NoBudget), ("old".into(), Verdict::Missing)]);
        assert!(Verdict::NoBudget.fails() && Verdict::Missing.fails());
    }

    #[test]
    fn a_baseline_and_the_phases_are_held_to_nothing() {
        let budget = Budget { figures: vec![], phases: vec![Figure::new("init", 1.0)] };
        let run = Run {
            phases: vec![Figure::new("init", 9.0)],
            baseline: vec![Figure::new("qemu", 9.0)],
            ..Run::default()
        };
        assert_eq!(budget.compare(&run), []);
    }

    #[test]
    fn an_update_keeps_the_promises() {
        let promised = Entry { name: "ms".into(), value: 100.0, promise: Some(200.0) };
        let gone = Entry { name: "gone".into(), value: 1.0, promise: None };
        let budget = Budget { figures: vec![promised.clone(), gone], phases: vec![] };
        let run = Run { figures: vec![Figure::new("ms", 90.0), Figure::new("new", 5.0)], ..Run::default() };
        let updated = budget.updated(&run);
        let new = Entry { name: "new".into(), value: 5.0, promise: None };
        assert_eq!(updated.figures, [Entry { value: 90.0, ..promised }, new]);
        assert!(updated.compare(&run).iter().all(|row| row.verdict == Verdict::Kept));
    }

    #[test]
    fn the_committed_budget_is_one() {
        let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("budget.json");
        assert!(!Budget::read(&committed).unwrap().figures.is_empty());
    }
}
