//! Reading `tokenizer.json`: byte-level BPE only, every setting honoured or refused.
//!
//! The tokenizer library accepts more than this crate can stand for (dropout, truncation, other models), logs what it
//! doubts, and panics on some broken vocabularies. So the file is read here, checked, and built from parts.

use crate::error::{Result, TextError};
use crate::tokenizer::{Added, Parts};
use serde::Deserialize;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde_json::Value;
use std::collections::HashMap;
use std::fmt;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<AddedJson>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: ModelJson,
}

#[derive(Deserialize)]
struct AddedJson {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct ModelJson {
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// The model's type alone, so that another type gives a clear error and not a complaint about its fields.
#[derive(Deserialize)]
struct Head {
    model: HeadModel,
}

#[derive(Deserialize)]
struct HeadModel {
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// A merge rule: `"left right"` in older files, `["left", "right"]` in newer ones.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Rule;
        impl<'de> Visitor<'de> for Rule {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge rule, \"left right\" or [\"left\", \"right\"]")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Merge, E> {
                let pair = split_merge(text);
                pair.map(|(l, r)| Merge(l, r)).ok_or_else(|| E::custom(format!("merge rule `{text}` is no pair")))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Merge, A::Error> {
                match (seq.next_element()?, seq.next_element()?, seq.next_element::<String>()?) {
                    (Some(left), Some(right), None) => Ok(Merge(left, right)),
                    _ => Err(A::Error::custom("a merge rule has two parts")),
                }
            }
        }
        from.deserialize_any(Rule)
    }
}

/// Splits `"left right"` at its only space.
pub(crate) fn split_merge(rule: &str) -> Option<(String, String)> {
    let (left, right) = rule.split_once(' ')?;
    let good = !left.is_empty() && !right.is_empty() && !right.contains(' ');
    good.then(|| (left.to_owned(), right.to_owned()))
}

/// Reads the text of a `tokenizer.json`. `name` is used in errors.
pub(crate) fn read(name: &str, text: &str) -> Result<Parts> {
    let file = format!("{name}/tokenizer.json");
    let json_error = |error: serde_json::Error| TextError::Json { file: file.clone(), reason: error.to_string() };
    let field_error = |field: &str, expected: &str, found: String| TextError::Field {
        file: file.clone(),
        field: field.to_owned(),
        expected: expected.to_owned(),
        found,
    };

    let head: Head = serde_json::from_str(text).map_err(json_error)?;
    if let Some(kind) = head.model.kind.filter(|kind| kind != "BPE") {
        return Err(field_error("model.type", "BPE (byte-level)", kind));
    }
    let json: TokenizerJson = serde_json::from_str(text).map_err(json_error)?;
    let model = json.model;
    if let Some(dropout) = model.dropout.filter(|&p| p != 0.0) {
        return Err(field_error("model.dropout", "none (encoding must be deterministic)", dropout.to_string()));
    }
    for (field, value) in [
        ("model.continuing_subword_prefix", &model.continuing_subword_prefix),
        ("model.end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            return Err(field_error(field, "none (byte-level BPE has no affixes)", format!("`{value}`")));
        }
    }
    if model.byte_fallback {
        return Err(field_error("model.byte_fallback", "false (byte-level BPE needs none)", "true".into()));
    }
    if !steps(&json.decoder, "decoders").iter().all(|step| kind(step) == "ByteLevel") {
        return Err(field_error("decoder", "ByteLevel", kind_list(&json.decoder, "decoders")));
    }

    const PRE: &[&str] = &["Sequence", "Split", "Digits", "Punctuation", "ByteLevel"];
    let cuts = steps(&json.pre_tokenizer, "pretokenizers");
    if let Some(unknown) = cuts.iter().map(|step| kind(step)).find(|kind| !PRE.contains(kind)) {
        let found = unknown.to_owned();
        return Err(TextError::UnknownPreTokenizer { file, found, known: PRE.to_vec() });
    }
    if cuts.last().map(|step| kind(step)) != Some("ByteLevel") {
        let found = kind_list(&json.pre_tokenizer, "pretokenizers");
        return Err(field_error("pre_tokenizer", "a chain that ends in ByteLevel", found));
    }
    let pre_tokenizer: PreTokenizerWrapper = PreTokenizerWrapper::deserialize(&json.pre_tokenizer)
        .map_err(|error| field_error("pre_tokenizer", "a chain that builds", error.to_string()))?;

    const NORM: &[&str] = &["Sequence", "NFC", "NFD", "NFKC", "NFKD"];
    let norms = steps(&json.normalizer, "normalizers");
    if let Some(unknown) = norms.iter().map(|step| kind(step)).find(|kind| !NORM.contains(kind)) {
        return Err(field_error("normalizer", "none or Unicode NFC, NFD, NFKC, NFKD", unknown.to_owned()));
    }
    let normalizer: Option<NormalizerWrapper> = match norms.is_empty() {
        true => None,
        false => Some(
            NormalizerWrapper::deserialize(&json.normalizer)
                .map_err(|error| field_error("normalizer", "a chain that builds", error.to_string()))?,
        ),
    };

    Ok(Parts {
        file,
        vocab: model.vocab.into_iter().collect(),
        unused: Vec::new(),
        merges: model.merges.into_iter().map(|Merge(left, right)| (left, right)).collect(),
        added: json
            .added_tokens
            .into_iter()
            .map(|added| Added {
                id: added.id,
                token: tokenizers::AddedToken {
                    content: added.content,
                    single_word: added.single_word,
                    lstrip: added.lstrip,
                    rstrip: added.rstrip,
                    normalized: added.normalized,
                    special: added.special,
                },
            })
            .collect(),
        normalizer,
        pre_tokenizer,
        ignore_merges: model.ignore_merges,
        leading_token: leading_token(&json.post_processor),
        add_bos: false,
    })
}

/// The steps of a component: those of a (nested) `Sequence` flattened, a lone one as itself, none for null.
fn steps<'v>(value: &'v Value, list: &str) -> Vec<&'v Value> {
    match value {
        Value::Null => Vec::new(),
        _ if kind(value) == "Sequence" => {
            let inner = value[list].as_array().map(Vec::as_slice).unwrap_or_default();
            inner.iter().flat_map(|step| steps(step, list)).collect()
        }
        _ => vec![value],
    }
}

fn kind(value: &Value) -> &str {
    value["type"].as_str().unwrap_or("(no type)")
}

fn kind_list(value: &Value, list: &str) -> String {
    let kinds: Vec<&str> = steps(value, list).iter().map(|step| kind(step)).collect();
    if kinds.is_empty() { "nothing".to_owned() } else { kinds.join(", ") }
}

/// The token that the post-processor puts before every text (Llama-3's way of adding BOS).
fn leading_token(post_processor: &Value) -> Option<String> {
    let template = steps(post_processor, "processors").into_iter().find(|step| kind(step) == "TemplateProcessing")?;
    Some(template["single"][0]["SpecialToken"]["id"].as_str()?.to_owned())
}
