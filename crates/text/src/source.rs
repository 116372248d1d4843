//! What a tokenizer is built from: plain data that the caller took from a GGUF header or a Hugging Face directory.
//!
//! This crate opens no files. `VocabSource::from_hugging_face` reads the *texts* of the JSON files;
//! for GGUF, and for anything else, the caller fills the fields.

use crate::error::{Result, TextError};
use serde::Deserialize;

/// Everything about a model's text side: vocabulary, special tokens, chat templates.
#[derive(Debug, Clone)]
pub struct VocabSource {
    /// Name of the file or directory, for error messages.
    pub name: String,
    /// The vocabulary.
    pub vocabulary: Vocabulary,
    /// The token that begins a sequence.
    pub bos: Option<TokenRef>,
    /// The token that ends a sequence.
    pub eos: Option<TokenRef>,
    /// The padding token.
    pub pad: Option<TokenRef>,
    /// Further tokens that end an answer (GGUF's `eot_token_id`, more ids of `generation_config.json`).
    pub also_end: Vec<TokenRef>,
    /// Whether a prompt gets the BOS token. `None` when the files do not say: then the tokenizer's own convention holds.
    pub add_bos: Option<bool>,
    /// Chat templates, best known name first; a lone one is called `default`.
    pub templates: Vec<NamedTemplate>,
}

/// A token named by its id or by its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenRef {
    /// By id, as GGUF does.
    Id(u32),
    /// By text, as `tokenizer_config.json` does.
    Text(String),
}

/// A chat template and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTemplate {
    /// `default`, `tool_use`, ...
    pub name: String,
    /// Jinja source.
    pub source: String,
}

/// Where the tokens come from.
#[derive(Debug, Clone)]
pub enum Vocabulary {
    /// The text of a `tokenizer.json`.
    TokenizerJson(String),
    /// Token lists as GGUF metadata holds them.
    Lists(VocabLists),
}

/// A byte-level BPE vocabulary as lists. Token id = position.
#[derive(Debug, Clone, Default)]
pub struct VocabLists {
    /// GGUF's `tokenizer.ggml.model`; only `gpt2` (byte-level BPE) is accepted.
    pub model: String,
    /// GGUF's `tokenizer.ggml.pre`, the name of the pre-tokenizer; see [`known_pre_tokenizers`](crate::known_pre_tokenizers).
    pub pre: String,
    /// Byte-level strings ("Ġthe"); control and user-defined tokens as literal text.
    pub tokens: Vec<String>,
    /// GGUF's `tokenizer.ggml.token_type`, one per token; empty = all [`NORMAL`](VocabLists::NORMAL).
    pub kinds: Vec<u32>,
    /// Merge rules "left right", best first.
    pub merges: Vec<String>,
}

impl VocabLists {
    /// Token type: made by merges from bytes.
    pub const NORMAL: u32 = 1;
    /// Token type: the unknown token; treated as control.
    pub const UNKNOWN: u32 = 2;
    /// Token type: control token, not shown in text.
    pub const CONTROL: u32 = 3;
    /// Token type: added token that is text (`<think>`).
    pub const USER: u32 = 4;
    /// Token type: filler without meaning; decodes to nothing.
    pub const UNUSED: u32 = 5;
}

/// The texts of the files of a Hugging Face directory that concern text; only the first must exist.
#[derive(Debug, Clone, Copy, Default)]
pub struct HuggingFaceTexts<'a> {
    /// `tokenizer.json`
    pub tokenizer: &'a str,
    /// `tokenizer_config.json`
    pub config: Option<&'a str>,
    /// `special_tokens_map.json`, consulted for what the config leaves out
    pub special_tokens: Option<&'a str>,
    /// `chat_template.jinja`; goes before a template in the config, as in transformers
    pub chat_template: Option<&'a str>,
}

#[derive(Deserialize, Default)]
struct ConfigJson {
    bos_token: Option<TokenJson>,
    eos_token: Option<TokenJson>,
    pad_token: Option<TokenJson>,
    add_bos_token: Option<bool>,
    chat_template: Option<TemplateJson>,
}

/// A special token: its text, or an `AddedToken` object.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenJson {
    Text(String),
    Object { content: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TemplateJson {
    One(String),
    Named(Vec<NamedTemplateJson>),
}

#[derive(Deserialize)]
struct NamedTemplateJson {
    name: String,
    template: String,
}

impl VocabSource {
    /// A source without special tokens or templates, to be filled further.
    pub fn new(name: impl Into<String>, vocabulary: Vocabulary) -> Self {
        Self {
            name: name.into(),
            vocabulary,
            bos: None,
            eos: None,
            pad: None,
            also_end: Vec::new(),
            add_bos: None,
            templates: Vec::new(),
        }
    }

    /// Reads the texts of a Hugging Face directory. `tokenizer.json` itself is read by [`Tokenizer::new`](crate::Tokenizer::new).
    ///
    /// # Errors
    /// [`TextError::Json`] for a config that is no JSON or has fields of another shape.
    pub fn from_hugging_face(name: &str, texts: HuggingFaceTexts<'_>) -> Result<Self> {
        let config: ConfigJson = parse(name, "tokenizer_config.json", texts.config)?;
        let specials: ConfigJson = parse(name, "special_tokens_map.json", texts.special_tokens)?;
        let token = |first: Option<TokenJson>, second: Option<TokenJson>| {
            first.or(second).map(|token| match token {
                TokenJson::Text(text) | TokenJson::Object { content: text } => TokenRef::Text(text),
            })
        };
        let default_template = |source: String| NamedTemplate { name: "default".into(), source };
        let templates = match (texts.chat_template, config.chat_template) {
            (Some(file), _) => vec![default_template(file.to_owned())],
            (None, Some(TemplateJson::One(source))) => vec![default_template(source)],
            (None, Some(TemplateJson::Named(list))) => {
                list.into_iter().map(|t| NamedTemplate { name: t.name, source: t.template }).collect()
            }
            (None, None) => Vec::new(),
        };
        Ok(Self {
            name: name.to_owned(),
            vocabulary: Vocabulary::TokenizerJson(texts.tokenizer.to_owned()),
            bos: token(config.bos_token, specials.bos_token),
            eos: token(config.eos_token, specials.eos_token),
            pad: token(config.pad_token, specials.pad_token),
            also_end: Vec::new(),
            add_bos: config.add_bos_token,
            templates,
        })
    }
}

fn parse<T: Default + for<'de> Deserialize<'de>>(name: &str, file: &str, text: Option<&str>) -> Result<T> {
    let Some(text) = text else {
        return Ok(T::default());
    };
    serde_json::from_str(text)
        .map_err(|error| TextError::Json { file: format!("{name}/{file}"), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(config: &str, special: Option<&str>, jinja: Option<&str>) -> VocabSource {
        let texts =
            HuggingFaceTexts { tokenizer: "{}", config: Some(config), special_tokens: special, chat_template: jinja };
        VocabSource::from_hugging_face("dir", texts).unwrap()
    }

    #[test]
    fn tokens_are_strings_or_objects_and_the_map_fills_gaps() {
        let got = source(
            r#"{"bos_token": {"content": "<b>", "lstrip": false}, "eos_token": "<e>", "pad_token": null, "add_bos_token": true}"#,
            Some(r#"{"bos_token": "<other>", "pad_token": {"content": "<p>"}}"#),
            None,
        );
        assert_eq!(got.bos, Some(TokenRef::Text("<b>".into())));
        assert_eq!(got.eos, Some(TokenRef::Text("<e>".into())));
        assert_eq!(got.pad, Some(TokenRef::Text("<p>".into())));
        assert_eq!(got.add_bos, Some(true));
        assert!(got.templates.is_empty());
    }

    #[test]
    fn templates_come_as_text_as_list_or_as_file() {
        let one = |name: &str, source: &str| NamedTemplate { name: name.into(), source: source.into() };
        assert_eq!(source(r#"{"chat_template": "x"}"#, None, None).templates, [one("default", "x")]);
        let list =
            r#"{"chat_template": [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "y"}]}"#;
        assert_eq!(source(list, None, None).templates, [one("default", "x"), one("tool_use", "y")]);
        assert_eq!(source(list, None, Some("z")).templates, [one("default", "z")]);
    }
}
