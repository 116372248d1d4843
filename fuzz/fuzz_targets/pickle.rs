#![no_main]
//! A PyTorch checkpoint from anywhere. What must hold is in `fathom_testkit::hostile`.
libfuzzer_sys::fuzz_target!(|data: &[u8]| fathom_testkit::hostile::pickle(data));
