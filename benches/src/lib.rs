//! Start-up benchmarks.
