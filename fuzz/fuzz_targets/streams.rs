#![no_main]
//! Generated text cut into pieces anywhere. What must hold is in `fathom_testkit::hostile`.
libfuzzer_sys::fuzz_target!(|data: &[u8]| fathom_testkit::hostile::streams(data));
