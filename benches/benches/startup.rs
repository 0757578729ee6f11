//! Start-up in this machine's time, by criterion: cold runs and their phases, sessions in a running sandbox, and
//! commands that need none. Owns which benchmarks there are; the product as a program is in `product`.
//!
//! Whatever a run leaves behind has ended before the next begins, outside of the time that is taken.

use std::time::Duration;

use anyhow::{Context, Result};
use benches::phases;
use benches::product::Product;
use benches::timer;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};

const MEMORY: &str = "512m";
/// Each sample is one start or more; criterion takes at least ten.
const SAMPLES: usize = 10;
const MEASURE: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_millis(200);

fn main() -> Result<()> {
    timer::adopt_orphans()?;
    let product = Product::find()?;
    let mut criterion = Criterion::default().configure_from_args();
    cold(&mut criterion, &product)?;
    cold_phases(&mut criterion, &product)?;
    sessions(&mut criterion, &product)?;
    criterion.final_summary();
    Ok(())
}

fn cold(criterion: &mut Criterion, product: &Product) -> Result<()> {
    product.cold_run(MEMORY).context("start a sandbox")?;
    let mut group = group(criterion, "run");
    bench(&mut group, "true", || product.cold_run(MEMORY));
    group.finish();
    Ok(())
}

/// A benchmark for each phase that a first run shows.
fn cold_phases(criterion: &mut Criterion, product: &Product) -> Result<()> {
    let marks = product.cold_marks(MEMORY)?;
    let mut group = group(criterion, "phase");
    for (name, _) in phases::phases(&marks) {
        bench(&mut group, name, || {
            let marks = product.cold_marks(MEMORY)?;
            phases::phase(&marks, name).with_context(|| format!("this run has no mark {name}"))
        });
    }
    group.finish();
    Ok(())
}

fn sessions(criterion: &mut Criterion, product: &Product) -> Result<()> {
    let running = product.running(MEMORY)?;
    let mut group = group(criterion, "command");
    bench(&mut group, "exec true", || running.session());
    bench(&mut group, "ls", || product.plain(&["ls"]));
    bench(&mut group, "help", || product.plain(&["help"]));
    group.finish();
    Ok(())
}

fn group<'c>(criterion: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(SAMPLES)
        .measurement_time(MEASURE)
        .warm_up_time(WARM_UP);
    group
}

fn bench(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, once: impl Fn() -> Result<Duration>) {
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|count| {
            let total: Result<Duration> = (0..count).map(|_| once()).sum::<Result<_>>();
            // criterion has no way to give up on one benchmark.
            total.unwrap_or_else(|error| panic!("{name}: {error:#}"))
        });
    });
}
