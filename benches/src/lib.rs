//! Start-up benchmarks: the product as a program that is timed, and figures that are held to a budget.
//! `benches/startup.rs` takes real time by criterion; `bin/stopwatch.rs` takes virtual time in the lab, where `virtual`
//! runs it, and `bin/judge.rs` compares its figures with `budget.json`. Nothing here is part of what users install.

pub mod timer;

pub mod product;

pub mod phases;

pub mod resident;

pub mod figures;

pub mod budget;

pub mod report;
