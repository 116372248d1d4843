//! The tokenizer of a model that starts from nothing: bytes, DeepSeek's special tokens, and whole words of the problems.
//!
//! There are no merges. A word of the list is one token, any other word is its bytes, so that a model that is to count
//! or reverse letters sees them; digits stand alone. The pre-tokenizer is Llama 3's, which takes a known word whole.

use fathom_engine::ChatModel;
use fathom_tasks::word_list;
use fathom_text::{NamedTemplate, THINK_CLOSE, THINK_OPEN, TokenRef, VocabLists, VocabSource, Vocabulary, byte_level};

use crate::error::Result;

/// Begins a sequence.
pub const BOS: &str = "<｜begin▁of▁sentence｜>";
/// Ends an answer.
pub const EOS: &str = "<｜end▁of▁sentence｜>";
/// Fills up.
pub const PAD: &str = "<｜▁pad▁｜>";
/// Stands before what the user says.
pub const USER: &str = "<｜User｜>";
/// Stands before what the assistant says.
pub const ASSISTANT: &str = "<｜Assistant｜>";

/// The conversation as R1 has it: earlier reasoning dropped, the answer beginning inside the think tag.
pub const TEMPLATE: &str = "{{- bos_token -}}
{%- for m in messages if m.role == 'system' -%}{{ m.content }}{%- endfor -%}
{%- for m in messages -%}
  {%- if m.role == 'user' -%}{{ '<｜User｜>' + m.content }}
  {%- elif m.role == 'assistant' -%}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1].strip() + eos_token }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<｜Assistant｜><think>\\n' }}{%- endif -%}";

/// The vocabulary with at most `words` words.
///
/// # Errors
/// If the problems' own data is broken.
pub fn lists(words: usize) -> Result<VocabLists> {
    let mut tokens: Vec<String> = [BOS, EOS, PAD, USER, ASSISTANT].map(str::to_owned).into();
    let mut kinds = vec![VocabLists::CONTROL; tokens.len()];
    tokens.extend([THINK_OPEN, THINK_CLOSE].map(str::to_owned));
    kinds.extend([VocabLists::USER; 2]);
    let mut seen = std::collections::BTreeSet::new();
    let bytes = (0..=255u8).map(|b| byte_level(&[b]));
    let words = word_list(words)?.into_iter().map(|w| byte_level(w.as_bytes()));
    for token in bytes.chain(words) {
        if seen.insert(token.clone()) {
            tokens.push(token);
            kinds.push(VocabLists::NORMAL);
        }
    }
    // Whole vectors of lanes.
    while !tokens.len().is_multiple_of(32) {
        tokens.push(format!("<|unused_{}|>", tokens.len()));
        kinds.push(VocabLists::UNUSED);
    }
    Ok(with_tokens(tokens, kinds))
}

/// The vocabulary of given tokens.
pub fn with_tokens(tokens: Vec<String>, kinds: Vec<u32>) -> VocabLists {
    VocabLists { model: "gpt2".into(), pre: "llama-bpe".into(), tokens, kinds, merges: Vec::new() }
}

/// What a tokenizer and a template are built from.
pub fn source(lists: &VocabLists) -> VocabSource {
    let text = |t: &str| Some(TokenRef::Text(t.to_owned()));
    let mut source = VocabSource::new("the recipe's vocabulary", Vocabulary::Lists(lists.clone()));
    (source.bos, source.eos, source.pad) = (text(BOS), text(EOS), text(PAD));
    source.add_bos = Some(true);
    source.templates = vec![NamedTemplate { name: "default".into(), source: TEMPLATE.into() }];
    source
}

/// The text side of the model.
///
/// # Errors
/// If the lists are broken.
pub fn chat(lists: &VocabLists) -> Result<ChatModel> {
    Ok(ChatModel::new(&source(lists))?)
}
