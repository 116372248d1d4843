#![no_main]
//! OpenAI's and DeepSeek's text requests: read or refused, never a panic.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = fathom_server::check_request("/v1/completions", data);
});
