//! Runs the share's workloads once on both sides, in the lab; a table goes to stderr as it grows, and JSON to stdout.
//! `benches/share` runs it there. What is run is in `workloads`.

use anyhow::Result;
use argh::FromArgs;
use benches::compare::{self, Comparison};
use benches::product::Product;
use benches::sides::{self, Side, Sides};
use benches::timer;

/// Measure the share beside the guest's own disk.
#[derive(FromArgs)]
struct Args {
    /// how many files the tree has
    #[argh(option)]
    files: usize,
    /// only workloads with this in their names
    #[argh(option, default = "String::new()")]
    only: String,
}

fn main() -> Result<()> {
    let args: Args = argh::from_env();
    timer::adopt_orphans()?;
    let product = Product::find()?;
    let sides = Sides::new(&product, args.files)?;
    eprintln!("{}", compare::head());
    let mut comparisons = Vec::new();
    for workload in sides::workloads(&args.only) {
        let (share, disk) = (sides.time(workload, Side::Share)?, sides.time(workload, Side::Disk)?);
        let comparison = Comparison::new(workload, share, disk);
        eprintln!("{}", comparison.line());
        comparisons.push(comparison);
    }
    println!("{}", serde_json::to_string_pretty(&comparisons)?);
    Ok(())
}
