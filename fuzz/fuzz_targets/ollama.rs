#![no_main]
//! Ollama's conversations: read or refused, never a panic.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = fathom_server::check_request("/api/chat", data);
    let _ = fathom_server::check_request("/api/generate", data);
});
