#![forbid(unsafe_code)]
//! Text: from conversation to token ids, and from generated token ids back to text, reasoning, tool calls.
//!
//! The way in: [`VocabSource`] (plain data from a model's files) makes a [`Tokenizer`] and a [`ChatTemplate`];
//! [`ChatTemplate::render`] turns messages into a [`Prompt`], [`Tokenizer::encode_prompt`] turns that into ids.
//! The way out: [`Tokenizer::token_bytes`] feeds a [`StreamDecoder`], whose text passes [`ReasoningParser`],
//! [`ToolParser`] and [`StopMatcher`]. All of these work on pieces, and their result does not depend on the cuts.
//!
//! What it must not know: files, models' shapes, HTTP dialects, clocks, the environment. It sees no other crate of fathom.
//!
//! Where to start reading: `source.rs`, then `tokenizer.rs` and `template.rs`. Names of pre-tokenizers live in `pre.rs`,
//! names of tool forms in `tools.rs`. `grammar.rs` holds answers to a shape.
//!
//! ```
//! use fathom_text::{Specials, Tokenizer, VocabLists, VocabSource, Vocabulary};
//!
//! // A vocabulary of single bytes, in the order of their stand-in characters, and one merge.
//! let mut tokens: Vec<String> = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('Ā'..='Ń').map(String::from).collect();
//! tokens.push("hi".into());
//! let lists = VocabLists { model: "gpt2".into(), pre: "deepseek-v3".into(), tokens, kinds: vec![], merges: vec!["h i".into()] };
//! let tokenizer = Tokenizer::new(&VocabSource::new("example", Vocabulary::Lists(lists)))?;
//! let ids = tokenizer.encode("hi!", Specials::Parse)?;
//! assert_eq!(ids, [256, 0]);
//! assert_eq!(tokenizer.decode(&ids), "hi!");
//! # Ok::<(), fathom_text::TextError>(())
//! ```

mod bytes;
mod clock;
mod error;
mod grammar;
mod hold;
mod json;
mod pre;
mod python;
mod ranks;
mod reasoning;
mod sandbox;
mod source;
mod stop;
mod template;
mod tokenizer;
mod tools;

pub use bytes::{StreamDecoder, byte_level};
pub use clock::Clock;
pub use error::{Result, TextError};
pub use grammar::{Calls, Grammar, GrammarMaker, Guide, Shape};
pub use pre::known_pre_tokenizers;
pub use ranks::merges_from_ranks;
pub use reasoning::{ReasoningEvent, ReasoningParser, THINK_CLOSE, THINK_OPEN, ends_in_open_think, split_reasoning};
pub use source::{HuggingFaceTexts, NamedTemplate, TokenRef, VocabLists, VocabSource, Vocabulary};
pub use stop::StopMatcher;
pub use template::{ChatMessage, ChatTemplate, DEEPSEEK_LLM_TEMPLATE, Prompt, RenderOptions, Role, Thinking};
pub use tokenizer::{Specials, Tokenizer};
pub use tools::{ToolCall, ToolEvent, ToolForm, ToolParser};
