//! What a client wants and what it gets, in no dialect's shape. Dialects parse into [`Ask`] and encode [`Piece`]s.

use fathom_engine::{ChatModel, Ending, Priority, Sampling, TextOptions, Usage};
use fathom_model::Defaults;
use fathom_text::{ChatMessage, Thinking, ToolCall};
use serde_json::Value;

use crate::Refusal;

/// A request for one or several answers.
#[derive(Debug)]
pub(crate) struct Ask {
    /// Name of the model, or an alias.
    pub(crate) model: String,
    /// What to continue. Answers are numbered input by input.
    pub(crate) inputs: Vec<Input>,
    pub(crate) wish: Wish,
    /// Answers to each input.
    pub(crate) n: usize,
    pub(crate) stream: bool,
    /// Paths of the fields that have no effect.
    pub(crate) inert: Vec<String>,
}

/// What is to be continued.
#[derive(Debug)]
pub(crate) enum Input {
    Chat(Chat),
    Text(String),
    Tokens(Vec<u32>),
    /// The gap between two texts.
    Gap {
        before: String,
        after: String,
    },
}

/// A conversation.
#[derive(Debug, Default)]
pub(crate) struct Chat {
    pub(crate) messages: Vec<ChatMessage>,
    /// Definitions, in OpenAI's form, which is what templates expect.
    pub(crate) tools: Vec<Value>,
    pub(crate) choice: ToolChoice,
    /// Whether several calls may be made at once.
    pub(crate) parallel: bool,
    /// Whether a tool was promised valid arguments.
    pub(crate) strict: bool,
    pub(crate) thinking: Thinking,
    /// Pictures, one for each mark in the messages.
    pub(crate) pictures: Vec<Sent>,
}

/// A picture as it was sent.
#[derive(Debug, PartialEq)]
pub(crate) struct Sent {
    /// The field that held it.
    pub(crate) place: String,
    /// A file of some kind.
    pub(crate) file: Vec<u8>,
}

/// Whether tools are called.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum ToolChoice {
    #[default]
    Auto,
    None,
    Required,
    Named(String),
}

/// What the answer must look like.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Format {
    #[default]
    Free,
    /// Any JSON object.
    Json,
    Schema(Value),
    Regex(String),
    Lark(String),
}

/// How answers are generated; what is left out is the model's default.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish {
    pub(crate) max_tokens: Option<usize>,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<usize>,
    pub(crate) min_p: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) logit_bias: Vec<(u32, f32)>,
    pub(crate) seed: Option<u64>,
    pub(crate) stop: Vec<String>,
    pub(crate) thinking_budget: Option<usize>,
    /// Log-probabilities, of this many best-ranked tokens beside each.
    pub(crate) logprobs: Option<usize>,
    pub(crate) prompt_logprobs: Option<usize>,
    pub(crate) ignore_end: bool,
    /// Context that the client counts on.
    pub(crate) least_context: Option<usize>,
    /// The prompt's hidden state instead of an answer.
    pub(crate) embed: bool,
    pub(crate) format: Format,
    pub(crate) priority: Priority,
    /// Separates prefix caches.
    pub(crate) tenant: String,
    /// Text that the answer begins with.
    pub(crate) lead: String,
}

impl Wish {
    /// The engine's options for the `choice`-th answer.
    pub(crate) fn options(&self, defaults: &Defaults, choice: usize) -> TextOptions {
        let plain = Sampling::default();
        TextOptions {
            pictures: Vec::new(),
            max_tokens: self.max_tokens,
            sampling: Sampling {
                temperature: self.temperature.unwrap_or(defaults.temperature),
                top_k: self.top_k.unwrap_or(defaults.top_k as usize),
                top_p: self.top_p.unwrap_or(defaults.top_p),
                min_p: self.min_p.unwrap_or(plain.min_p),
                repetition_penalty: self.repetition_penalty.unwrap_or(plain.repetition_penalty),
                presence_penalty: self.presence_penalty.unwrap_or(plain.presence_penalty),
                frequency_penalty: self.frequency_penalty.unwrap_or(plain.frequency_penalty),
                logit_bias: self.logit_bias.clone(),
            },
            // Answers differ, and a seed repeats all of them.
            seed: self.seed.map(|seed| seed.wrapping_add(choice as u64)),
            stop: self.stop.clone(),
            thinking_budget: self.thinking_budget,
            logprobs: self.logprobs,
            ignore_end: self.ignore_end,
            priority: self.priority,
            salt: self.tenant.clone().into_bytes(),
            lead: self.lead.clone(),
            shape: None,
        }
    }
}

/// A token with its log-probability.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scored {
    pub(crate) token: u32,
    pub(crate) logprob: f32,
    /// The best-ranked tokens at its place, best first.
    pub(crate) top: Vec<(u32, f32)>,
}

/// What comes out of an answer, as it comes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Piece {
    /// Its computation begins.
    Accepted {
        prompt: usize,
        cached: usize,
    },
    /// The prompt's tokens, if their log-probabilities were asked for.
    Given(Vec<u32>),
    /// A token of the prompt, from the second on.
    Prompt(Scored),
    /// The prompt's hidden state, if asked for instead of an answer.
    Embedding(Vec<f32>),
    Reasoning(String),
    Text(String),
    /// What came as text was reasoning.
    TextWasReasoning,
    /// A tool call, whose `id` is set.
    Call(ToolCall),
    Token(Scored),
    Done {
        ending: Ending,
        usage: Usage,
    },
    Failed(Refusal),
}

/// One answer, as far as it is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choice {
    pub(crate) reasoning: String,
    pub(crate) text: String,
    pub(crate) calls: Vec<ToolCall>,
    pub(crate) given: Vec<u32>,
    pub(crate) prompt: Vec<Scored>,
    pub(crate) embedding: Vec<f32>,
    /// Scored tokens of the reasoning, and those of the answer.
    pub(crate) tokens: [Vec<Scored>; 2],
    /// Scored tokens whose text has not come yet.
    pending: Vec<Scored>,
    pub(crate) accepted: Option<(usize, usize)>,
    pub(crate) done: Option<(Ending, Usage)>,
    pub(crate) failed: Option<Refusal>,
}

impl Choice {
    /// Takes in a piece.
    pub(crate) fn take(&mut self, piece: &Piece) {
        match piece {
            Piece::Accepted { prompt, cached } => self.accepted = Some((*prompt, *cached)),
            Piece::Given(tokens) => self.given = tokens.clone(),
            Piece::Prompt(scored) => self.prompt.push(scored.clone()),
            Piece::Embedding(state) => self.embedding = state.clone(),
            Piece::Reasoning(text) => {
                self.reasoning.push_str(text);
                self.tokens[0].append(&mut self.pending);
            }
            Piece::Text(text) => {
                self.text.push_str(text);
                self.tokens[1].append(&mut self.pending);
            }
            Piece::TextWasReasoning => {
                self.reasoning = std::mem::take(&mut self.text);
                let mut tokens = std::mem::take(&mut self.tokens[1]);
                self.tokens[0].append(&mut tokens);
            }
            Piece::Call(call) => {
                self.calls.push(call.clone());
                self.tokens[1].append(&mut self.pending);
            }
            Piece::Token(scored) => self.pending.push(scored.clone()),
            Piece::Done { ending, usage } => {
                self.tokens[1].append(&mut self.pending);
                self.done = Some((ending.clone(), *usage));
            }
            Piece::Failed(refusal) => self.failed = Some(refusal.clone()),
        }
    }

    /// What it took.
    pub(crate) fn usage(&self) -> Usage {
        match (&self.done, self.accepted) {
            (Some((_, usage)), _) => *usage,
            (None, Some((prompt, cached))) => Usage { prompt, cached, ..Usage::default() },
            (None, None) => Usage::default(),
        }
    }

    /// Whether it ended for want of room.
    pub(crate) fn cut(&self) -> bool {
        matches!(self.done, Some((Ending::Length, _)))
    }
}

/// What answers took together, `n` to each input: a prompt counts once.
pub(crate) fn total(choices: &[Choice], n: usize) -> Usage {
    let mut sum = Usage::default();
    for (i, usage) in choices.iter().map(Choice::usage).enumerate() {
        if i % n.max(1) == 0 {
            sum.prompt += usage.prompt;
            sum.cached += usage.cached;
        }
        sum.completion += usage.completion;
        sum.reasoning += usage.reasoning;
        sum.queue_s = sum.queue_s.max(usage.queue_s);
        sum.prefill_s = sum.prefill_s.max(usage.prefill_s);
        sum.decode_s = sum.decode_s.max(usage.decode_s);
    }
    sum
}

/// What an encoder says about whose answer this is.
#[derive(Clone)]
pub(crate) struct Heading {
    /// Answers to each input.
    pub(crate) n: usize,
    /// Random part of identifiers.
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// The model that answers.
    pub(crate) model: String,
    pub(crate) chat: ChatModel,
}

impl Heading {
    /// The text of one token; bytes that are no text are replaced.
    pub(crate) fn token_text(&self, token: u32) -> String {
        String::from_utf8_lossy(self.token_bytes(token)).into_owned()
    }

    pub(crate) fn token_bytes(&self, token: u32) -> &[u8] {
        self.chat.tokenizer().token_bytes(token).unwrap_or_default()
    }
}
