#![no_main]
//! A `tokenizer.json` from anywhere: what is accepted must encode and decode without a panic.
use fathom_text::{Specials, Tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &str| {
    let Ok(tokenizer) = Tokenizer::new(&fathom_fuzz::source(data, None)) else { return };
    if let Ok(ids) = tokenizer.encode("Où est 12345 的 <|User|>\n\t x\u{1f600}", Specials::Parse) {
        std::hint::black_box(tokenizer.decode(&ids));
    }
});
