#![no_main]
//! OpenAI's stateless responses: read or refused, never a panic.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = fathom_server::check_request("/v1/responses", data);
});
