//! Figures as people read them: a table, and the same as JSON for programs.
//! It owns how they look, and decides nothing.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::budget::{Budget, Row, Verdict};
use crate::figures::{Figure, Run};

/// The table of a run beside its budget.
#[must_use]
pub fn table(budget: &Budget, rows: &[Row], run: &Run) -> String {
    let mut out = line("figure", "now", "budget", "change", "promise");
    for row in rows {
        let promise = row.promise.map_or(String::new(), |promise| format!("<= {promise}"));
        let change = change(row.measured, row.budget);
        out += &line(&row.name, &shown(row.measured), &shown(row.budget), &change, &promise);
    }
    out += &line("phase of run_true_512, ms", "", "", "", "");
    for phase in &run.phases {
        let budget = budget.phases.iter().find(|it| it.name == phase.name).map(|it| it.value);
        let change = change(Some(phase.value), budget);
        out += &line(&format!("  {}", phase.name), &shown(Some(phase.value)), &shown(budget), &change, "");
    }
    for figure in &run.baseline {
        out += &line(&figure.name, &shown(Some(figure.value)), "", "", "");
    }
    out
}

/// One sentence for each figure that is not as it was, and for whether the two runs agree.
#[must_use]
pub fn remarks(rows: &[Row], differences: &[String]) -> String {
    let mut out = String::new();
    match differences {
        [] => out += "Both runs agree to the digit.\n",
        names => drop(writeln!(out, "warning: the two runs differ in {}", names.join(", "))),
    }
    for row in rows {
        let (now, budget) = (shown(row.measured), shown(row.budget));
        let remark = match row.verdict {
            Verdict::Kept => continue,
            Verdict::Better => {
                format!("{} is {now}, better than its budget of {budget}: --update keeps it so", row.name)
            }
            Verdict::Worse => {
                format!("FAIL: {} is {now}, worse than its budget of {budget}", row.name)
            }
            Verdict::PromiseBroken => {
                format!("FAIL: {} is {now}, and promised is {}", row.name, row.promise.unwrap_or_default())
            }
            Verdict::NoBudget => format!("FAIL: {} has no budget; --update gives it one", row.name),
            Verdict::Missing => format!("FAIL: {} has a budget and was not measured", row.name),
        };
        out += &remark;
        out.push('\n');
    }
    out
}

/// The same for programs.
#[must_use]
pub fn json(rows: &[Row], run: &Run, differences: &[String]) -> Value {
    let figures = rows.iter().map(|row| {
        json!({ "name": row.name, "value": row.measured, "budget": row.budget, "promise": row.promise,
                "ok": !row.verdict.fails() })
    });
    let ok = !rows.iter().any(|row| row.verdict.fails());
    json!({ "ok": ok, "figures": Value::from_iter(figures), "phases_ms": pairs(&run.phases),
            "baseline": pairs(&run.baseline), "runs_differ_in": differences })
}

fn pairs(figures: &[Figure]) -> Value {
    figures.iter().map(|figure| json!({ "name": figure.name, "value": figure.value })).collect()
}

fn line(name: &str, now: &str, budget: &str, change: &str, promise: &str) -> String {
    let line = format!("{name:<28}{now:>12}{budget:>12}{change:>9}  {promise}");
    format!("{}\n", line.trim_end())
}

fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

fn change(now: Option<f64>, budget: Option<f64>) -> String {
    match (now, budget) {
        (Some(now), Some(budget)) if budget > 0.0 => format!("{:+.1} %", (now / budget - 1.0) * 100.0),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Entry;

    fn case() -> (Budget, Run) {
        let entry = |name: &str, value, promise| Entry { name: name.into(), value, promise };
        let budget = Budget {
            figures: vec![entry("run_ms", 100.0, Some(200.0)), entry("ls_ms", 1.5, None)],
            phases: vec![Figure::new("init", 4.0)],
        };
        let run = Run {
            figures: vec![Figure::new("run_ms", 150.0), Figure::new("ls_ms", 1.0)],
            phases: vec![Figure::new("init", 5.0)],
            baseline: vec![Figure::new("qemu_ms", 270.5)],
        };
        (budget, run)
    }

    #[test]
    fn the_table_has_all_that_was_measured() {
        let (budget, run) = case();
        let table = table(&budget, &budget.compare(&run), &run);
        let squeezed: Vec<_> =
            table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            squeezed,
            [
                "figure now budget change promise",
                "run_ms 150.000 100.000 +50.0 % <= 200",
                "ls_ms 1.000 1.500 -33.3 %",
                "phase of run_true_512, ms",
                "init 5.000 4.000 +25.0 %",
                "qemu_ms 270.500",
            ]
        );
    }

    #[test]
    fn a_failure_names_the_figure() {
        let (budget, run) = case();
        let said = remarks(&budget.compare(&run), &["ls_ms".into()]);
        assert!(said.contains("FAIL: run_ms is 150.000, worse than its budget of 100.000"), "{said}");
        assert!(said.contains("ls_ms is 1.000, better than its budget"), "{said}");
        assert!(said.contains("the two runs differ in ls_ms"), "{said}");
    }

    #[test]
    fn the_json_says_whether_all_is_kept() {
        let (budget, run) = case();
        let value = json(&budget.compare(&run), &run, &[]);
        assert_eq!(value["ok"], false);
        assert_eq!(value["figures"][1]["ok"], true);
        assert_eq!(value["baseline"][0]["value"], 270.5);
    }
}
