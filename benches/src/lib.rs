//! Benchmarks: the product as a program that is timed, and figures that are held to a budget or a target.
//! `benches/startup.rs` takes real time by criterion; `bin/stopwatch.rs` takes virtual time in the lab, where `virtual`
//! runs it, and `bin/judge.rs` compares its figures with `budget.json`. Workloads on a share beside the guest's own disk are
//! taken alike, by `benches/share.rs` and by `bin/side-by-side.rs`, which `share` runs. Nothing here is part of what users install.

pub mod timer;

pub mod product;

pub mod phases;

pub mod resident;

pub mod figures;

pub mod budget;

pub mod report;

pub mod tree;

pub mod workloads;

pub mod sides;

pub mod compare;
