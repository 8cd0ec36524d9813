#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::agent_protocol::run(input));
