//! libFuzzer's entry to the target `publish`; what it does is in tests/src/fuzz/.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tests::fuzz::run("publish", input));
