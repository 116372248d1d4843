#![no_main]
//! A schema, expression or grammar from a client. What must hold is in `fathom_testkit::hostile`.
libfuzzer_sys::fuzz_target!(|data: &[u8]| fathom_testkit::hostile::grammar(data));
