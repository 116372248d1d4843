#![no_main]
//! A chat template from anywhere: it compiles or not, renders within its budget or not, and ends.
use fathom_text::{ChatMessage, ChatTemplate, RenderOptions, Role};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &str| {
    let source = fathom_fuzz::source(fathom_fuzz::TOKENIZER_JSON, Some(data));
    let Ok(template) = ChatTemplate::new(&source, fathom_fuzz::tokenizer()) else { return };
    let messages = [
        ChatMessage::new(Role::System, "Be brief."),
        ChatMessage::new(Role::User, "Why?"),
        ChatMessage::new(Role::Assistant, "<think>hm</think>Because."),
        ChatMessage::new(Role::User, "And?"),
    ];
    std::hint::black_box(template.render(&messages, &RenderOptions::default()).is_ok());
});
