//! libFuzzer's entry to the target `client_greeting`; what it does is in tests/src/fuzz/.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tests::fuzz::run("client_greeting", input));
