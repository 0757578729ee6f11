//! libFuzzer's entry to the target `blk`; what it does is in tests/src/fuzz/.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tests::fuzz::run("blk", input));
