//! What the targets share: a place on disk for parsers that map files, and a small tokenizer.
//!
//! Files go to memory-backed storage where the system has it, one directory per process, so that
//! parallel runs do not meet.

use fathom_text::{HuggingFaceTexts, Tokenizer, VocabSource};
use std::path::PathBuf;
use std::sync::LazyLock;

/// Writes `files` into this process's scratch directory and returns it.
pub fn scratch(files: &[(&str, &[u8])]) -> PathBuf {
    static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
        let memory = PathBuf::from("/dev/shm");
        let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let dir = base.join(format!("fathom-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a scratch directory");
        dir
    });
    for (name, bytes) in files {
        std::fs::write(DIR.join(name), bytes).expect("room for the input");
    }
    DIR.clone()
}

/// The texts of a model whose chat template is `template`.
pub fn source(tokenizer: &str, template: Option<&str>) -> VocabSource {
    let texts = HuggingFaceTexts { tokenizer, chat_template: template, ..HuggingFaceTexts::default() };
    VocabSource::from_hugging_face("fuzz", texts).expect("no config to be wrong")
}

/// A small tokenizer of the V3 kind.
pub fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: LazyLock<Tokenizer> =
        LazyLock::new(|| Tokenizer::new(&source(TOKENIZER_JSON, None)).expect("the fixture is sound"));
    &TOKENIZER
}

/// Its `tokenizer.json`.
pub const TOKENIZER_JSON: &str = include_str!("../../testdata/tokenizers/deepseek_v3/tokenizer.json");
