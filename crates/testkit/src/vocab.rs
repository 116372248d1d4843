//! The real V3/R1 tokenizer out of its published rank list, so that tests of real text need no model download.

use fathom_text::{TextError, TokenRef, VocabLists, VocabSource, Vocabulary, merges_from_ranks};

/// Ids of the rank list; the special tokens follow.
const RANKS: usize = 128_000;
/// The special tokens from id 128,798 on, in order (DeepSeek-V3, `tokenizer.json`); before them lie 798 placeholders.
const SPECIALS: [&str; 17] = [
    "<think>",
    "</think>",
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<|EOT|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
];

/// Builds the V3/R1 vocabulary from the text of `deepseek_v3.tiktoken`: one line per token, base64 of the byte-level
/// string and the rank.
///
/// # Errors
/// As [`merges_from_ranks`].
///
/// # Panics
/// If the text is not that list.
pub fn deepseek_v3(tiktoken: &str) -> Result<VocabSource, TextError> {
    let mut tokens: Vec<String> = Vec::with_capacity(RANKS + 815);
    for (rank, line) in tiktoken.lines().enumerate() {
        let (encoded, number) = line.split_once(' ').expect("a line holds a token and a rank");
        assert_eq!(number.parse(), Ok(rank), "ranks are in order");
        tokens.push(String::from_utf8(base64(encoded)).expect("a token is a byte-level string"));
    }
    assert_eq!(tokens.len(), RANKS, "the list has {RANKS} ranks");
    let merges = merges_from_ranks("deepseek_v3.tiktoken", &tokens)?;
    tokens.extend((0..798).map(|n| format!("<｜place▁holder▁no▁{n}｜>")));
    tokens.extend(SPECIALS.map(String::from));
    let kind = |id: usize| match id {
        0..=2 => VocabLists::CONTROL,
        3..RANKS => VocabLists::NORMAL,
        _ => VocabLists::USER,
    };
    let kinds = (0..tokens.len()).map(kind).collect();
    let lists = VocabLists { model: "gpt2".into(), pre: "deepseek-v3".into(), tokens, kinds, merges };
    Ok(VocabSource {
        bos: Some(TokenRef::Id(0)),
        eos: Some(TokenRef::Id(1)),
        pad: Some(TokenRef::Id(2)),
        ..VocabSource::new("deepseek_v3.tiktoken", Vocabulary::Lists(lists))
    })
}

/// Decodes padded base64 (RFC 4648).
fn base64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => panic!("`{}` is not base64", c as char),
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}
