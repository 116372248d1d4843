//! What must hold of any text: it survives encoding and decoding, whole and streamed, with special tokens and without.

mod common;

use common::*;
use fathom_text::{Specials, StreamDecoder, Tokenizer};
use proptest::prelude::*;
use std::sync::LazyLock;

/// Every style from both forms, with whether it composes characters (NFC) first.
static TOKENIZERS: LazyLock<Vec<(Tokenizer, bool)>> = LazyLock::new(|| {
    let both = |(style, pre): (&str, &str)| [source(&style_dir(style)), source_as_lists(&style_dir(style), pre)];
    let build = |style| both(style).map(|source| (Tokenizer::new(&source).unwrap(), style.0 == "qwen2"));
    STYLES.into_iter().flat_map(build).collect()
});

/// Any characters, and pieces that pre-tokenizers and added tokens care about.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<String>(),
        "[ -~]{0,12}",
        "[ \t\r\n]{1,6}",
        "[\u{4E00}-\u{4E20}あ-んア-ン한글é😀]{1,6}",
        prop_oneof![
            Just("<think>"),
            Just("</think>"),
            Just("<｜User｜>"),
            Just("<｜end▁of▁sentence｜>"),
            Just("<|User|>")
        ]
        .prop_map(String::from),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let (mut decoder, mut text) = (StreamDecoder::default(), String::new());
    for &id in ids {
        decoder.push(tokenizer.token_bytes(id).unwrap_or_default(), &mut text);
    }
    decoder.finish(&mut text);
    text
}

proptest! {
    #[test]
    fn text_survives_encoding(text in any_text()) {
        for (tokenizer, composes) in TOKENIZERS.iter() {
            for specials in [Specials::Parse, Specials::Plain] {
                let ids = tokenizer.encode(&text, specials).unwrap();
                let decoded = tokenizer.decode(&ids);
                prop_assert_eq!(&stream(tokenizer, &ids), &decoded);
                if *composes {
                    // Composing happens once: encoding what came out changes nothing more.
                    prop_assert_eq!(&tokenizer.decode(&tokenizer.encode(&decoded, specials).unwrap()), &decoded);
                    if !text.is_ascii() {
                        continue;
                    }
                }
                prop_assert_eq!(&decoded, &text);
            }
        }
    }

    #[test]
    fn any_ids_decode_alike_whole_and_streamed(ids in proptest::collection::vec(0u32..1100, 0..64)) {
        for (tokenizer, _) in TOKENIZERS.iter() {
            prop_assert_eq!(stream(tokenizer, &ids), tokenizer.decode(&ids));
        }
    }

    #[test]
    fn a_prompt_has_one_bos_in_front(text in any_text()) {
        for (tokenizer, _) in TOKENIZERS.iter() {
            let bos = tokenizer.bos().unwrap();
            let spelled = tokenizer.decode(&[bos]);
            let ids = tokenizer.encode_prompt(&text).unwrap();
            prop_assert_eq!(ids.iter().take_while(|&&id| id == bos).count(), 1);
            prop_assert_eq!(tokenizer.encode_prompt(&format!("{spelled}{text}")).unwrap(), ids);
        }
    }
}
