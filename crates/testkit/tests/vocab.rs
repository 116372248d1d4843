//! Real vocabularies: R1's golden ids through its rank list, and the cases that come with vocabulary-only GGUF files.
//!
//! The vocabularies are too large for the repository; without `../shared/data/vocab` these tests report `skipped`.
//! Every tokenizer style is tested from `testdata` in any case (crate `fathom-text`, `tests/golden.rs`).

use fathom_files::Archive;
use fathom_text::{Specials, Tokenizer, VocabLists, VocabSource, Vocabulary};
use std::path::PathBuf;

fn vocab_dir() -> Option<PathBuf> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/vocab");
    if !dir.exists() {
        println!("skipped: {} is not here", dir.display());
    }
    dir.exists().then_some(dir)
}

fn ids(line: &str) -> Vec<u32> {
    line.split([',', ' ']).filter(|id| !id.is_empty()).map(|id| id.trim().parse().unwrap()).collect()
}

#[test]
fn r1_golden_ids_through_the_rank_list() {
    let Some(dir) = vocab_dir() else { return };
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
    let source = fathom_testkit::vocab::deepseek_v3(&read("deepseek_v3.tiktoken")).unwrap();
    let tokenizer = Tokenizer::new(&source).unwrap();

    let mut cases: Vec<(String, Vec<u32>)> = vec![(read("r1_utf8_input.txt"), ids(&read("r1_utf8_tokens.txt")))];
    for name in ["small", "mixed"] {
        let (input, tokens) = (read(&format!("r1_{name}_input.txt")), read(&format!("r1_{name}_tokens.txt")));
        assert_eq!(input.lines().count(), tokens.lines().count());
        // These files write a line break inside a text as `\n`, and a space at its end as `\s`.
        cases.extend(
            input.lines().map(|line| line.replace("\\n", "\n").replace("\\s", " ")).zip(tokens.lines().map(ids)),
        );
    }
    assert_eq!(cases.len(), 1 + 20 + 120);
    for (text, want) in &cases {
        assert_eq!(&tokenizer.encode(text, Specials::Parse).unwrap(), want, "{text:?}");
        assert_eq!(&tokenizer.decode(want), text);
        assert_eq!(tokenizer.encode_prompt(text).unwrap(), [&[0], want.as_slice()].concat());
    }

    assert_eq!(tokenizer.vocab_size(), 128_815);
    for (token, id) in [("<think>", 128_798), ("<｜User｜>", 128_803), ("<｜tool▁sep｜>", 128_814)] {
        assert_eq!(tokenizer.encode(token, Specials::Parse).unwrap(), [id]);
    }
}

#[test]
fn gguf_vocabularies_and_their_cases() {
    let Some(dir) = vocab_dir() else { return };
    for name in ["deepseek-llm", "deepseek-coder", "llama-bpe", "qwen2"] {
        let path = dir.join(format!("ggml-vocab-{name}.gguf"));
        let archive = Archive::open(&path).unwrap();
        let meta = archive.metadata().unwrap();
        let owned = |key| meta.need::<Vec<&str>>(key).unwrap().into_iter().map(str::to_owned).collect();
        let lists = VocabLists {
            model: meta.need::<&str>("tokenizer.ggml.model").unwrap().into(),
            pre: meta.need::<&str>("tokenizer.ggml.pre").unwrap().into(),
            tokens: owned("tokenizer.ggml.tokens"),
            kinds: meta.need("tokenizer.ggml.token_type").unwrap(),
            merges: owned("tokenizer.ggml.merges"),
        };
        let tokenizer = Tokenizer::new(&VocabSource::new(name, Vocabulary::Lists(lists))).unwrap();

        let read = |end: &str| std::fs::read_to_string(format!("{}{end}", path.display())).unwrap();
        let (input, output) = (read(".inp"), read(".out"));
        let texts: Vec<&str> = input.split("\n__ggml_vocab_test__\n").collect();
        let wanted: Vec<Vec<u32>> = output.lines().map(ids).collect();
        assert_eq!((texts.len(), wanted.len()), (47, 46), "a separator ends every text");
        for (text, want) in texts.iter().zip(&wanted) {
            assert_eq!(&tokenizer.encode(text, Specials::Parse).unwrap(), want, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(want), *text, "{name}");
        }
    }
}
