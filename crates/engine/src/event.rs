//! What the engine tells a caller, and what the caller answers.

use fathom_picture::Picture;

use crate::Error;
use crate::meter::Energy;

/// What happens to a request, in this order: `Accepted`, `Prompt`s if asked for, `Token`s, and last `Finished` or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// Its computation begins.
    Accepted {
        /// Tokens of the prompt.
        prompt: usize,
        /// How many of them the prefix cache holds; more may be found on the way (see [`Usage::cached`]).
        cached: usize,
    },
    /// Log-probability of a token of the prompt.
    Prompt {
        /// Its position, from 1: nothing predicts the first.
        position: usize,
        /// The token.
        token: u32,
        /// Log-probability.
        logprob: f32,
        /// The best-ranked tokens at its place, best first.
        top: &'a [(u32, f32)],
    },
    /// The hidden state of the prompt's last token behind the final norm, `[dim]`, if asked for instead of an answer.
    Embedding(&'a [f32]),
    /// A token of the answer.
    Token {
        /// The token.
        token: u32,
        /// Whether it is one of the request's stop tokens, and so the last and not part of the text.
        stop: bool,
        /// Log-probability under the unmodified logits, if asked for.
        logprob: Option<f32>,
        /// The best-ranked tokens at its place, best first.
        top: &'a [(u32, f32)],
    },
    /// Pictures have come so far.
    Drawn {
        /// Ids drawn of each.
        step: usize,
        /// Ids that each takes.
        steps: usize,
    },
    /// A picture.
    Picture {
        /// Which of the request's.
        index: usize,
        /// Ids that it was painted from, whole rows.
        ids: &'a [u32],
        /// Pixels of these rows; all of them unless it is a preview.
        picture: &'a Picture,
        /// Whether more of it is to come.
        preview: bool,
    },
    /// The end.
    Finished {
        /// Why.
        reason: Finish,
        /// What it took.
        usage: Usage,
    },
    /// The end, because something broke.
    Failed(Error),
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token.
    Stop,
    /// As many tokens as asked for, or the end of the context.
    Length,
    /// Its caller cancelled it, or the sink answered [`Flow::Stop`].
    Cancelled,
}

/// What a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Of these, taken from the prefix cache.
    pub cached: usize,
    /// Tokens generated, stop token included.
    pub completion: usize,
    /// Of these, inside reasoning.
    pub reasoning: usize,
    /// Tokens guessed ahead and verified.
    pub drafted: usize,
    /// Of these, right.
    pub accepted: usize,
    /// Times that it lost its cache blocks to another sequence and was computed again.
    pub preempted: usize,
    /// Seconds from submission until its computation began.
    pub queue_s: f64,
    /// Seconds from then to the first token.
    pub prefill_s: f64,
    /// Seconds from the first token to the last.
    pub decode_s: f64,
    /// Its share of the energy of the steps that it took part in.
    pub energy: Option<Energy>,
}

impl Usage {
    /// Seconds from submission to the first token (TTFT).
    pub fn first_token_s(&self) -> f64 {
        self.queue_s + self.prefill_s
    }

    /// Prompt tokens computed per second of prefill.
    pub fn prefill_tokens_per_s(&self) -> Option<f64> {
        let computed = self.prompt - self.cached;
        (self.prefill_s > 0.0 && computed > 0).then(|| computed as f64 / self.prefill_s)
    }

    /// Tokens per second after the first.
    pub fn decode_tokens_per_s(&self) -> Option<f64> {
        (self.decode_s > 0.0 && self.completion > 1).then(|| (self.completion - 1) as f64 / self.decode_s)
    }
}

/// A sink's answer to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Took this one; no more until [`Engine::resume`](crate::Engine::resume). The sequence keeps its place, not its
    /// cache blocks if others need them.
    Pause,
    /// The caller has what it wants or is gone: end the sequence.
    Stop,
}

/// Where events go. Called on the engine's thread: it must not block and must not panic.
pub trait Sink: Send {
    /// Takes one event. After [`Flow::Stop`] only the closing event follows.
    fn event(&mut self, event: Event<'_>) -> Flow;
}

impl<F: FnMut(Event<'_>) -> Flow + Send> Sink for F {
    fn event(&mut self, event: Event<'_>) -> Flow {
        self(event)
    }
}
