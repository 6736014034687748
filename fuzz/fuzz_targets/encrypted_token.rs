#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| token_vendor::fuzzing::encrypted_token(data));
