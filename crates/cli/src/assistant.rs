//! A loaded model that answers: the engine with the model's text side, asked from the main thread.
//!
//! The engine's thread hands its events over by a channel; the main thread prints, and between events looks whether
//! Ctrl-C was pressed.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use fathom_core::Precision;
use fathom_engine::{
    ChatEvent, ChatModel, Ending, Engine, EngineOptions, Error, Flow, ModelRunner, Request, RunnerOptions, Sampling,
    Speculation, TextOptions, Transcriber, Usage, WorkerOptions,
};
use fathom_model::load::Defaults;
use fathom_text::{ChatMessage, Clock, RenderOptions, Thinking};
use serde_json::{Value, json};

use crate::args::{ChatArgs, Draft, LoadArgs, SamplingArgs, Switch};
use crate::load::{Loaded, Room, load_beside};
use crate::term;
use crate::units::{duration, rate};

/// How often the main thread looks up from waiting.
const TICK: Duration = Duration::from_millis(50);

/// See the module.
pub(crate) struct Assistant {
    /// As the person named it.
    pub(crate) name: String,
    pub(crate) chat: ChatModel,
    /// How its makers say it should be sampled.
    pub(crate) defaults: Defaults,
    /// Tokens that prompt and answer may have together.
    pub(crate) context: usize,
    /// Time that loading took.
    pub(crate) load: Duration,
    /// What computes, in words.
    pub(crate) device: String,
    engine: Engine,
}

/// A stretch of an answer, as it comes.
pub(crate) enum Piece<'a> {
    Reasoning(&'a str),
    Text(&'a str),
    /// What was handed over as text so far was reasoning.
    TextWasReasoning,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) reasoning: String,
    pub(crate) text: String,
    pub(crate) ending: Ending,
    pub(crate) usage: Usage,
}

/// An event that has left the engine's thread.
enum Told {
    Reasoning(String),
    Text(String),
    TextWasReasoning,
    Done(Ending, Usage),
    Failed(Error),
}

/// Starts the engine of a loaded model, with a cache for so many tokens (none = one full context).
pub(crate) fn start_engine(loaded: Loaded, draft: Draft, cache_tokens: Option<usize>) -> Result<Engine> {
    let speculation = match draft {
        Draft::Off => Speculation::Off,
        Draft::Mtp if loaded.decoder.mtp.is_none() => {
            bail!("--draft mtp: {} has no prediction layer; take --draft lookup or leave it out", loaded.name)
        }
        Draft::Mtp => Speculation::Head,
        Draft::Lookup => Speculation::Lookup { ngram: 3, ahead: 4 },
    };
    let options = RunnerOptions {
        context: Some(loaded.context),
        cache_tokens,
        kv: loaded.kv,
        drafts: speculation == Speculation::Head,
    };
    let runner = ModelRunner::new(loaded.decoder, options)?;
    let worker = WorkerOptions { speculation, ..WorkerOptions::default() };
    Ok(Engine::start(Box::new(runner), EngineOptions { worker, ..EngineOptions::default() })?)
}

impl Assistant {
    /// Loads a model and starts its engine.
    pub(crate) fn start(args: &LoadArgs, name: Option<&str>, draft: Draft) -> Result<Self> {
        let (loaded, device, chat) = load_beside(args, name, Room::Conversation, Precision::Fast, |model| {
            Ok(ChatModel::new(&model.vocab()?)?.seeing(model.spec.pictures.as_ref()))
        })?;
        let defaults = loaded.model.defaults()?;
        let (name, context, load) = (loaded.name.clone(), loaded.context, loaded.took);
        let engine = start_engine(loaded, draft, None)?;
        Ok(Assistant { name, chat, defaults, context, load, device: device.describe(), engine })
    }

    /// The request for the next turn of a conversation.
    pub(crate) fn turn(
        &self,
        messages: &[ChatMessage],
        thinking: Thinking,
        options: &TextOptions,
    ) -> Result<(Request, Transcriber)> {
        let template = self.chat.template()?;
        if thinking != Thinking::Default && !template.reasons() {
            bail!("{} does not reason, so thinking can be switched neither on nor off", self.name);
        }
        let render = RenderOptions { thinking, now: now(), ..RenderOptions::default() };
        Ok(self.chat.chat(messages, &render, options)?)
    }

    /// Has the engine answer. Pieces go to `show` as they come; an error of `show` ends the answer. Ctrl-C ends it too, and
    /// what was said until then is the answer.
    pub(crate) fn ask(
        &self,
        (request, transcriber): (Request, Transcriber),
        show: &mut dyn FnMut(Piece<'_>) -> Result<()>,
    ) -> Result<Answer> {
        let (sender, receiver) = channel();
        let sink = transcriber.sink(move |event| {
            let told = match event {
                ChatEvent::Reasoning(text) => Told::Reasoning(text.to_owned()),
                ChatEvent::Text(text) => Told::Text(text.to_owned()),
                ChatEvent::TextWasReasoning => Told::TextWasReasoning,
                ChatEvent::Done { ending, usage } => Told::Done(ending, usage),
                ChatEvent::Failed(error) => Told::Failed(error),
                // Neither tools nor log-probabilities are asked for here.
                ChatEvent::Accepted { .. }
                | ChatEvent::Token { .. }
                | ChatEvent::ToolCall { .. }
                | ChatEvent::MalformedCall { .. } => return Flow::Continue,
            };
            if sender.send(told).is_ok() { Flow::Continue } else { Flow::Stop }
        });
        let id = self.engine.submit(request, sink)?;
        let (mut reasoning, mut text) = (String::new(), String::new());
        loop {
            if term::interrupted() {
                self.engine.cancel(id);
            }
            match receiver.recv_timeout(TICK) {
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the engine ended without an answer"),
                Ok(Told::Reasoning(piece)) => {
                    show_from_first_word(&mut reasoning, &piece, |p| show(Piece::Reasoning(p)))?;
                }
                Ok(Told::Text(piece)) if reasoning.is_empty() => {
                    text.push_str(&piece);
                    show(Piece::Text(&piece))?;
                }
                // The blank lines between reasoning and answer belong to neither.
                Ok(Told::Text(piece)) => show_from_first_word(&mut text, &piece, |p| show(Piece::Text(p)))?,
                Ok(Told::TextWasReasoning) => {
                    reasoning.push_str(&std::mem::take(&mut text));
                    show(Piece::TextWasReasoning)?;
                }
                Ok(Told::Done(ending, usage)) => return Ok(Answer { reasoning, text, ending, usage }),
                Ok(Told::Failed(error)) => return Err(error).context("the answer broke off"),
            }
        }
    }
}

/// Appends a piece and shows it, without the white space before the first word.
fn show_from_first_word(all: &mut String, piece: &str, show: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let piece = if all.is_empty() { piece.trim_start() } else { piece };
    all.push_str(piece);
    if piece.is_empty() { Ok(()) } else { show(piece) }
}

/// The moment, for templates that print the date. In UTC: the system's time zone is nowhere to be had safely.
fn now() -> Clock {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    Clock { unix_seconds: seconds as i64, utc_offset_seconds: 0 }
}

/// A seed that nobody chose; below 2³² so that every JSON reader keeps it.
pub(crate) fn any_seed() -> u64 {
    RandomState::new().build_hasher().finish() >> 32
}

impl SamplingArgs {
    /// What can be checked before a model is loaded.
    pub(crate) fn check(&self) -> Result<()> {
        let any = Defaults { temperature: 0.0, top_p: 1.0, top_k: 0 };
        Ok(self.sampling(&any).check(usize::MAX)?)
    }

    fn sampling(&self, defaults: &Defaults) -> Sampling {
        let plain = Sampling::default();
        Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k) as usize,
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(plain.min_p),
            repetition_penalty: self.repeat_penalty.unwrap_or(plain.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(plain.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(plain.frequency_penalty),
            logit_bias: self.logit_bias.clone(),
        }
    }

    /// The options of an answer; the seed is always set, so that it can be told.
    pub(crate) fn options(&self, defaults: &Defaults, budget: Option<u32>) -> TextOptions {
        TextOptions {
            max_tokens: self.max_tokens.map(|n| n as usize),
            sampling: self.sampling(defaults),
            seed: Some(self.seed.unwrap_or_else(any_seed)),
            stop: self.stop.clone(),
            thinking_budget: budget.map(|n| n as usize),
            ..TextOptions::default()
        }
    }
}

impl ChatArgs {
    /// The thinking switch.
    pub(crate) fn thinking(&self) -> Thinking {
        match self.think {
            None => Thinking::Default,
            Some(Switch::On) => Thinking::On,
            Some(Switch::Off) => Thinking::Off,
        }
    }
}

impl Answer {
    /// Why it ended, in one word.
    pub(crate) fn finish_reason(&self) -> &'static str {
        match self.ending {
            Ending::Stop | Ending::StopString(_) => "stop",
            Ending::Length => "length",
            Ending::Cancelled => "cancelled",
        }
    }

    /// What there is to say about an end that the model did not choose.
    pub(crate) fn remark(&self, context: usize, max_tokens: Option<usize>) -> Option<String> {
        match self.ending {
            Ending::Stop | Ending::StopString(_) => None,
            Ending::Cancelled => Some("(stopped)".to_owned()),
            Ending::Length if max_tokens.is_some_and(|most| self.usage.completion >= most) => {
                Some(format!("(stopped at --max-tokens {})", self.usage.completion))
            }
            Ending::Length => {
                Some(format!("(stopped: the context of {context} tokens is full; --context allows more)"))
            }
        }
    }

    /// Speed and counts in a line.
    pub(crate) fn summary(&self) -> String {
        let u = &self.usage;
        let mut parts = Vec::new();
        if let Some(speed) = u.decode_tokens_per_s() {
            parts.push(format!("{} tokens/s", rate(speed)));
        }
        parts.push(format!("first token {}", duration(Duration::from_secs_f64(u.first_token_s()))));
        let cached = if u.cached > 0 { format!(" ({} cached)", u.cached) } else { String::new() };
        parts.push(format!("prompt {}{cached}", u.prompt));
        let reasoning = if u.reasoning > 0 { format!(" ({} reasoning)", u.reasoning) } else { String::new() };
        parts.push(format!("answer {}{reasoning}", u.completion));
        if u.drafted > 0 {
            parts.push(format!("{} of {} drafts right", u.accepted, u.drafted));
        }
        parts.join(" · ")
    }

    /// Counts and times for `--json`.
    pub(crate) fn usage_json(&self, load: Duration) -> (Value, Value) {
        let u = &self.usage;
        let usage = json!({
            "prompt_tokens": u.prompt,
            "cached_tokens": u.cached,
            "completion_tokens": u.completion,
            "reasoning_tokens": u.reasoning,
            "drafted_tokens": u.drafted,
            "accepted_tokens": u.accepted,
        });
        let timings = json!({
            "load_s": load.as_secs_f64(),
            "first_token_s": u.first_token_s(),
            "prefill_s": u.prefill_s,
            "decode_s": u.decode_s,
            "prefill_tokens_per_s": u.prefill_tokens_per_s(),
            "decode_tokens_per_s": u.decode_tokens_per_s(),
        });
        (usage, timings)
    }
}
