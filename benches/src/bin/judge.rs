//! Compares two runs of the stopwatch with each other and with the budget, and prints what it finds.
//! The exit code is 1 when a figure fails. It measures nothing.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use argh::FromArgs;
use benches::budget::{Budget, Verdict};
use benches::figures::Run;
use benches::report;

/// Hold the figures of two runs to the budget.
#[derive(FromArgs)]
struct Args {
    /// the committed budget
    #[argh(option)]
    budget: PathBuf,
    /// where the result goes as JSON
    #[argh(option)]
    json: PathBuf,
    /// make the budget what was measured; promises stay
    #[argh(switch)]
    update: bool,
    /// what the stopwatch printed the first time; this one is judged
    #[argh(positional)]
    first: PathBuf,
    /// what it printed the second time
    #[argh(positional)]
    second: PathBuf,
}

fn main() -> Result<ExitCode> {
    let args: Args = argh::from_env();
    let (run, again) = (Run::read(&args.first)?, Run::read(&args.second)?);
    let before = Budget::read(&args.budget)?;
    let rows = before.compare(&run);
    let differences = run.differences(&again);
    print!("{}\n{}", report::table(&before, &rows, &run), report::remarks(&rows, &differences));
    let text = format!("{:#}\n", report::json(&rows, &run, &differences));
    fs::write(&args.json, text).with_context(|| format!("write {}", args.json.display()))?;
    println!("As JSON: {}", args.json.display());
    if !args.update {
        return Ok(exit_code(rows.iter().any(|row| row.verdict.fails())));
    }
    before.updated(&run).write(&args.budget)?;
    println!("Updated {}", args.budget.display());
    Ok(exit_code(rows.iter().any(|row| row.verdict == Verdict::PromiseBroken)))
}

fn exit_code(failed: bool) -> ExitCode {
    ExitCode::from(u8::from(failed))
}
