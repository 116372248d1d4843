//! What a caller asks for. Everything is checked before it is queued, so the engine thread never meets a bad request.

use std::sync::Arc;

use fathom_picture::Picture;

use crate::guide::Shaped;
use crate::{Error, Result, RunnerInfo, Sampling};

/// Name of a submitted request, unique in its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub u64);

/// Who goes first. Within a priority, first come, first served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Somebody is waiting for it.
    #[default]
    Interactive,
    /// Yields its place and its cache blocks to interactive work.
    Batch,
}

/// How the model marks its reasoning, in tokens, and how much of it is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reasoning {
    /// Token that opens reasoning.
    pub open: u32,
    /// Token that closes it.
    pub close: u32,
    /// Whether the prompt ends inside reasoning already.
    pub inside: bool,
    /// Whether the answer may open it by its first token, even if its shape has no room for it.
    pub may_open: bool,
    /// Reasoning tokens after which `closing` is forced; none = as many as the model likes.
    pub budget: Option<usize>,
    /// Tokens that end the reasoning when the budget is spent: `close`, and what the model writes after it.
    pub closing: Vec<u32>,
}

/// A picture in a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Position of the first of its rows, where the prompt holds placeholders.
    pub at: usize,
    /// The picture, as large as it came.
    pub picture: Arc<Picture>,
}

/// A request for pictures instead of text.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    /// The prompt with its words taken out: what the guidance leads away from. As long as the prompt.
    pub unconditional: Vec<u32>,
    /// Pictures to draw.
    pub pictures: usize,
    /// How far the guidance leads: logits are `u + guidance · (c − u)` (Ho & Salimans 2022).
    pub guidance: f32,
    /// Steps between previews; none = no previews.
    pub preview: Option<usize>,
}

/// Pictures of one request at most.
pub const MOST_PICTURES: usize = 64;

/// One answer to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Tokens to continue; at least one.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most; none = until the context ends. 0 only computes the prompt.
    pub max_tokens: Option<usize>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Seed of the random stream; none = another one every time.
    pub seed: Option<u64>,
    /// Tokens that end the answer.
    pub stop_tokens: Vec<u32>,
    /// Log-probability of every generated token, and of this many best-ranked ones beside it.
    pub logprobs: Option<usize>,
    /// The same for every token of the prompt but the first. Reads nothing from the prefix cache.
    pub prompt_logprobs: Option<usize>,
    /// Reasoning marks, if the model has them.
    pub reasoning: Option<Reasoning>,
    /// What the answer must look like, from the end of its reasoning on.
    pub shape: Option<Shaped>,
    /// Give the last prompt token's hidden state instead of an answer; needs `max_tokens` 0.
    pub embed: bool,
    /// Who goes first.
    pub priority: Priority,
    /// Pictures in the prompt, in order.
    pub seen: Vec<Seen>,
    /// Pictures to draw instead of text.
    pub drawing: Option<Drawing>,
    /// Sequences share cached prefixes only if their salts are equal: tenant, adapter.
    pub salt: Vec<u8>,
}

impl Request {
    /// A greedy request that continues `prompt`.
    pub fn new(prompt: Vec<u32>) -> Self {
        Request {
            prompt,
            max_tokens: None,
            sampling: Sampling::default(),
            seed: None,
            stop_tokens: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            reasoning: None,
            shape: None,
            embed: false,
            priority: Priority::default(),
            seen: Vec::new(),
            drawing: None,
            salt: Vec::new(),
        }
    }

    /// Checks the request against what a runner can do.
    ///
    /// # Errors
    /// Naming the first thing that cannot be done, with both numbers where one is too large.
    pub fn check(&self, info: &RunnerInfo) -> Result<()> {
        let (prompt_tokens, vocab) = (self.prompt.len(), info.vocab);
        if prompt_tokens == 0 {
            return Err(Error::EmptyPrompt);
        }
        let room = usize::from(self.max_tokens != Some(0));
        if prompt_tokens + room > info.context {
            return Err(Error::ContextTooLong { prompt_tokens, context_tokens: info.context });
        }
        if prompt_tokens + room > info.cache_tokens() {
            return Err(Error::CacheTooSmall { prompt_tokens, cache_tokens: info.cache_tokens() });
        }
        let inside = |place, token: u32| {
            if (token as usize) < vocab { Ok(()) } else { Err(Error::TokenOutOfRange { place, token, vocab }) }
        };
        self.prompt.iter().try_for_each(|&token| inside("prompt", token))?;
        self.stop_tokens.iter().try_for_each(|&token| inside("stop tokens", token))?;
        if let Some(reasoning) = &self.reasoning {
            let marks = [reasoning.open, reasoning.close];
            reasoning.closing.iter().chain(&marks).try_for_each(|&token| inside("reasoning marks", token))?;
        }
        if self.embed && self.max_tokens != Some(0) {
            let found = "more than 0, beside an embedding".to_owned();
            return Err(Error::Option { name: "max_tokens", found, expected: "0: an embedding has no answer" });
        }
        for (name, n) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            if let Some(n) = n.filter(|&n| n > vocab) {
                return Err(Error::Option { name, found: n.to_string(), expected: "at most the vocabulary" });
            }
        }
        let mut from = 0;
        for seen in &self.seen {
            let Some(pictures) = info.pictures else {
                let found = "a picture".to_owned();
                return Err(Error::Option { name: "prompt", found, expected: "only text: this model does not see" });
            };
            let end = seen.at.checked_add(pictures.seen_rows);
            if seen.at < from || end.is_none_or(|end| end >= prompt_tokens) {
                let found = format!("at {} in a prompt of {prompt_tokens} tokens", seen.at);
                return Err(Error::Option { name: "picture", found, expected: "rows of its own before the last" });
            }
            from = seen.at + pictures.seen_rows;
        }
        if let Some(drawing) = &self.drawing {
            return self.check_drawing(drawing, info);
        }
        self.sampling.check(vocab)
    }

    fn check_drawing(&self, drawing: &Drawing, info: &RunnerInfo) -> Result<()> {
        let option = |name, found: String, expected| Err(Error::Option { name, found, expected });
        let Some(pictures) = info.pictures else {
            return option("pictures", "asked for".to_owned(), "a model that draws");
        };
        if !(1..=MOST_PICTURES).contains(&drawing.pictures) {
            return option("pictures", drawing.pictures.to_string(), "1 to 64");
        }
        if !drawing.guidance.is_finite() || drawing.guidance < 0.0 {
            return option("guidance", drawing.guidance.to_string(), "a number of at least 0");
        }
        if drawing.preview == Some(0) {
            return option("preview", "0 steps".to_owned(), "at least 1");
        }
        let (prompt, other) = (self.prompt.len(), drawing.unconditional.len());
        if prompt != other {
            return option("unconditional prompt", format!("{other} tokens"), "as many as the prompt");
        }
        for &token in &drawing.unconditional {
            if token as usize >= info.vocab {
                return Err(Error::TokenOutOfRange { place: "unconditional prompt", token, vocab: info.vocab });
            }
        }
        let all = prompt + pictures.steps();
        if all > info.context {
            return Err(Error::ContextTooLong { prompt_tokens: all, context_tokens: info.context });
        }
        let lanes = 2 * drawing.pictures * all.div_ceil(info.block_tokens);
        if lanes > info.blocks {
            let tokens = lanes * info.block_tokens;
            return Err(Error::CacheTooSmall { prompt_tokens: tokens, cache_tokens: info.cache_tokens() });
        }
        self.sampling.check(pictures.codes)
    }
}
