//! Golden data: what a model must compute, recorded from another implementation.
//!
//! A golden directory is either a Hugging Face directory with `golden.json` and `golden.safetensors` beside the weights, or holds
//! GGUF files with a `NAME.golden.safetensors` each (and their greedy continuations in `golden_gguf.json`).
//! [`find`] reads them, [`Replay`] runs a model over prompts, [`verify`] compares and gives a [`Report`]. `fathom
//! verify` and the golden tests are this module.

mod compare;
mod read;
mod replay;

use std::path::PathBuf;

use fathom_model::Options;

pub use compare::{Difference, Greedy, Limits, Report, verify};
pub use read::find;
pub use replay::{Recorder, Replay, Rows, Table};

/// One model file with what it must compute.
#[derive(Clone, Debug)]
pub struct Golden {
    /// Where it lies below the directory that was searched.
    pub name: String,
    /// What to open.
    pub model: PathBuf,
    /// How to open it, so that what releases leave open is read as the recorder read it.
    pub options: Options,
    /// The prompts.
    pub prompts: Vec<Prompt>,
    /// Gap between the two best logits below which a greedy continuation need not be followed further (0: never).
    pub greedy_gap: f32,
}

/// One prompt with what was recorded for it; what was not recorded is empty or `None`.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    /// Its name: `one`, `short`, `mid`, `long`, `batch0` and so on.
    pub name: String,
    /// Tokens.
    pub ids: Vec<u32>,
    /// `[tokens, vocab]`.
    pub logits: Vec<f32>,
    /// Intermediates: name, and the block it comes from.
    pub hidden: Vec<Hidden>,
    /// Routing of blocks with experts.
    pub routes: Vec<Route>,
    /// Greedy continuation, not stopped by an end token.
    pub greedy: Option<Vec<u32>>,
    /// Logits `[tokens − 1, vocab]` of the prediction block: row i, for the token after the next, from the trunk's output for token
    /// i and the embedding of token i + 1.
    pub drafts: Option<Vec<f32>>,
    /// The prediction block's logits `[vocab]` after the prompt and the main model's greedy token.
    pub first_draft: Option<Vec<f32>>,
}

/// A recorded intermediate `[tokens, dim]`, named as [`fathom_model::Probe`] names it.
#[derive(Clone, Debug)]
pub struct Hidden {
    /// Block; `None`: outside of blocks.
    pub layer: Option<usize>,
    /// `embed`, `out`, `final_norm`.
    pub name: &'static str,
    /// Values.
    pub values: Vec<f32>,
}

/// A recorded choice of experts, `[tokens, top_k]` each.
#[derive(Clone, Debug)]
pub struct Route {
    /// Block.
    pub layer: usize,
    /// Expert ids; ascending within a row in recordings, as chosen in a [`Recorder`].
    pub experts: Vec<u32>,
    /// Their weights, after normalising and scaling.
    pub weights: Vec<f32>,
}
