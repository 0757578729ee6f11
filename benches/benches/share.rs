//! The share's workloads in this machine's time, by criterion: each on the share and on the guest's own disk.
//! Owns how many files and samples that takes. What is run is in `workloads`.

use std::time::Duration;

use anyhow::Result;
use benches::product::Product;
use benches::sides::{self, Side, Sides};
use benches::timer;
use criterion::{BenchmarkId, Criterion, SamplingMode};

/// As many as a JavaScript project has.
const FILES: usize = 20_000;
const SAMPLES: usize = 10;
const MEASURE: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_millis(200);

fn main() -> Result<()> {
    timer::adopt_orphans()?;
    let product = Product::find()?;
    let mut criterion = Criterion::default().configure_from_args();
    let sides = Sides::new(&product, FILES)?;
    for workload in sides::workloads("") {
        let mut group = criterion.benchmark_group(workload.name);
        group.sampling_mode(SamplingMode::Flat).sample_size(SAMPLES);
        group.measurement_time(MEASURE).warm_up_time(WARM_UP);
        for side in [Side::Share, Side::Disk] {
            group.bench_function(BenchmarkId::from_parameter(side.name()), |bencher| {
                bencher.iter_custom(|count| {
                    let total: Result<Duration> = (0..count).map(|_| sides.time(workload, side)).sum();
                    // criterion has no way to give up on one benchmark.
                    total.unwrap_or_else(|error| panic!("{error:#}"))
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
    Ok(())
}
