//! Encodings, decodings, streams and chat renderings recorded from Hugging Face's tokenizers and transformers.

mod common;

use common::*;
use fathom_text::{ChatTemplate, NamedTemplate, Specials, StreamDecoder, Tokenizer, VocabSource, Vocabulary};
use serde_json::Value;

/// Every style, once from `tokenizer.json` and once from lists as in GGUF.
fn for_every_source(check: impl Fn(&str, &VocabSource, &Tokenizer, &Value)) {
    for (style, pre) in STYLES {
        let dir = style_dir(style);
        let golden = read_json(&dir.join("golden_tokens.json"));
        for (form, source) in [("json", source(&dir)), ("lists", source_as_lists(&dir, pre))] {
            check(&format!("{style} from {form}"), &source, &Tokenizer::new(&source).unwrap(), &golden);
        }
    }
}

/// What a tokenizer writes as `tokenizer.json` gives the same ids.
#[test]
fn written_and_read_again() {
    for_every_source(|name, source, tokenizer, golden| {
        let vocabulary = Vocabulary::TokenizerJson(tokenizer.to_json());
        let again = Tokenizer::new(&VocabSource { vocabulary, ..source.clone() }).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let text = text(&case["text"]);
            let ids = |t: &Tokenizer| t.encode(text, Specials::Parse).unwrap();
            assert_eq!(ids(&again), ids(tokenizer), "{name}: {text:?}");
        }
    });
}

#[test]
fn encodings_and_decodings() {
    for_every_source(|name, _, tokenizer, golden| {
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 200);
        for case in cases {
            let (input, want) = (text(&case["text"]), ids(&case["ids"]));
            assert_eq!(tokenizer.encode(input, Specials::Parse).unwrap(), want, "{name}: {input:?}");
            assert_eq!(tokenizer.decode(&want), text(&case["decoded"]), "{name}: {input:?}");
            let shown = tokenizer.decode_skipping_special(&want);
            assert_eq!(shown, text(&case["decoded_skip_special"]), "{name}: {input:?}");
        }
        assert_eq!(tokenizer.vocab_size() as u64, golden["vocab_size"].as_u64().unwrap(), "{name}");
    });
}

#[test]
fn prompts_get_exactly_one_bos() {
    for_every_source(|name, source, tokenizer, golden| {
        let bos = tokenizer.bos().unwrap();
        assert!(tokenizer.adds_bos(), "{name}");
        // The fixtures' own post-processor adds BOS for Llama-3 only; the configs ask for it everywhere.
        let mut bare = source.clone();
        bare.add_bos = Some(false);
        let bare = Tokenizer::new(&bare).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let (input, ids) = (text(&case["text"]), ids(&case["ids"]));
            let without_leading: Vec<u32> = ids.iter().copied().skip_while(|&id| id == bos).collect();
            let want = [&[bos], without_leading.as_slice()].concat();
            assert_eq!(tokenizer.encode_prompt(input).unwrap(), want, "{name}: {input:?}");
            let want = if ids.first() == Some(&bos) { want } else { without_leading };
            assert_eq!(bare.encode_prompt(input).unwrap(), want, "{name}: {input:?}");
        }
    });
}

#[test]
fn the_post_processor_says_whether_bos_is_added() {
    for (style, _) in STYLES {
        let mut source = source(&style_dir(style));
        source.add_bos = None;
        let tokenizer = Tokenizer::new(&source).unwrap();
        let golden = read_json(&style_dir(style).join("golden_tokens.json"));
        for case in golden["cases"].as_array().unwrap() {
            let want = ids(&case["ids_with_special"]);
            if !want.starts_with(&[tokenizer.bos().unwrap(); 2]) {
                assert_eq!(tokenizer.encode_prompt(text(&case["text"])).unwrap(), want, "{style}");
            }
        }
    }
}

#[test]
fn streams_show_whole_characters_only() {
    for_every_source(|name, _, tokenizer, golden| {
        let cases = golden["stream"].as_array().unwrap();
        assert!(cases.len() >= 20);
        for case in cases {
            let ids = ids(&case["ids"]);
            let (mut decoder, mut shown) = (StreamDecoder::default(), String::new());
            for (k, &id) in ids.iter().enumerate() {
                let bytes = tokenizer.token_bytes(id).unwrap();
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(hex, text(&case["token_bytes_hex"][k]), "{name}");
                decoder.push(bytes, &mut shown);
                assert_eq!(shown, text(&case["emittable"][k]), "{name}");
                assert_eq!(tokenizer.decode(&ids[..=k]), text(&case["prefix_decodes"][k]), "{name}");
            }
            decoder.finish(&mut shown);
            assert_eq!(shown, tokenizer.decode(&ids), "{name}");
        }
    });
}

#[test]
fn conversations() {
    for (style, pre) in STYLES.into_iter().filter(|(style, _)| *style != "janus") {
        let dir = style_dir(style);
        for mut source in [source(&dir), source_as_lists(&dir, pre)] {
            let tokenizer = Tokenizer::new(&source).unwrap();
            let template = ChatTemplate::new(&source, &tokenizer).unwrap();
            assert_eq!(check_chat(&read_json(&dir.join("golden_chat.json")), &tokenizer, &template), 28);

            let published = read_json(&dir.join("golden_chat_published.json"));
            let text = text(&published["chat_template"]).to_owned();
            source.templates = vec![NamedTemplate { name: "default".into(), source: text }];
            let template = ChatTemplate::new(&source, &tokenizer).unwrap();
            assert_eq!(check_chat(&published["cases"], &tokenizer, &template), 28);
        }
    }
}

/// Every checkpoint fixture that has chat goldens, where the shared set is at hand.
#[test]
fn conversations_of_the_shared_checkpoints() {
    let Ok(entries) = std::fs::read_dir(root().join("../shared/fixtures")) else {
        println!("skipped: ../shared/fixtures is not here");
        return;
    };
    let dirs = entries.map(|entry| entry.unwrap().path()).filter(|dir| dir.join("golden_chat.json").exists());
    let mut count = 0;
    for dir in dirs {
        let source = source(&dir);
        let tokenizer = Tokenizer::new(&source).unwrap();
        let template = ChatTemplate::new(&source, &tokenizer).unwrap();
        count += check_chat(&read_json(&dir.join("golden_chat.json")), &tokenizer, &template);
    }
    assert!(count >= 10 * 28);
}

#[test]
fn special_tokens_as_plain_text_steer_nothing() {
    for_every_source(|name, _, tokenizer, golden| {
        let bos = tokenizer.decode(&[tokenizer.bos().unwrap()]);
        let input = format!("a{bos}<think>b</think>");
        let plain = tokenizer.encode(&input, Specials::Plain).unwrap();
        let added = ["<think>", "</think>", bos.as_str()].map(|token| tokenizer.id_of(token));
        assert!(plain.iter().all(|id| !added.contains(&Some(*id))), "{name}");
        assert_eq!(tokenizer.decode(&plain), input, "{name}");
        // Text without special tokens does not depend on the mode.
        for case in golden["cases"].as_array().unwrap() {
            let (input, ids) = (text(&case["text"]), ids(&case["ids"]));
            let added = |&id: &u32| tokenizer.decode(&[id]).starts_with('<') && tokenizer.decode(&[id]).len() > 3;
            if !ids.iter().any(added) {
                assert_eq!(tokenizer.encode(input, Specials::Plain).unwrap(), ids, "{name}: {input:?}");
            }
        }
    });
}
