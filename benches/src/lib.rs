//! Start-up benchmarks: the product as a program that is timed.
//! `benches/startup.rs` takes real time by criterion. Nothing here is part of what users install.

pub mod timer;

pub mod product;

pub mod phases;
