//! The line between the engine and a model: batches in, logits out.
//!
//! The scheduler decides which rows of which sequences are computed and in which cache blocks; a runner computes them
//! and knows nothing of requests. Two implementations: [`ModelRunner`](crate::ModelRunner) over real weights,
//! [`ScriptedRunner`](crate::ScriptedRunner) without any, for tests.

use fathom_core::Tensor;
use fathom_model::Batch;
use fathom_picture::Picture;

use crate::Result;

/// What a runner is, fixed for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerInfo {
    /// Number of logits per row.
    pub vocab: usize,
    /// Positions that a sequence may have.
    pub context: usize,
    /// Tokens per cache block.
    pub block_tokens: usize,
    /// Cache blocks.
    pub blocks: usize,
    /// Whether attention has two forms whose results differ by rounding. A prompt's rows are always computed in the
    /// plain form and generated rows in the absorbed one, so a cached block holds what its rows were computed with.
    pub latent: bool,
    /// Whether [`Runner::draft`] works: the model has a head that predicts the token after the next.
    pub drafts: bool,
    /// What it can do with pictures, if anything.
    pub pictures: Option<PictureInfo>,
}

/// What a model that draws is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureInfo {
    /// Number of picture logits per row.
    pub codes: usize,
    /// Ids of a side; a picture takes the square of it in steps.
    pub grid: usize,
    /// Pixels of a side.
    pub side: usize,
    /// Rows that a seen picture takes in a prompt.
    pub seen_rows: usize,
}

impl PictureInfo {
    /// Ids of a picture.
    pub fn steps(&self) -> usize {
        self.grid * self.grid
    }
}

impl RunnerInfo {
    /// Tokens that all cache blocks together hold.
    pub fn cache_tokens(&self) -> usize {
        self.blocks * self.block_tokens
    }

    /// Longest sequence that this runner can hold at all.
    pub fn longest(&self) -> usize {
        self.context.min(self.cache_tokens())
    }
}

/// Logits of the rows that a step was asked for. Reused from step to step.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    logits: Vec<f32>,
    vocab: usize,
    pictures: Vec<f32>,
    codes: usize,
}

impl StepOutput {
    /// Room for `rows` rows of `vocab` logits, whose contents are unspecified. Keeps its memory.
    pub fn reset(&mut self, rows: usize, vocab: usize) -> &mut [f32] {
        self.vocab = vocab;
        self.logits.resize(rows * vocab, 0.0);
        &mut self.logits
    }

    /// The same for `rows` rows of `codes` picture logits.
    pub fn reset_pictures(&mut self, rows: usize, codes: usize) -> &mut [f32] {
        self.codes = codes;
        self.pictures.resize(rows * codes, 0.0);
        &mut self.pictures
    }

    /// Picture logits of the `i`-th row that was asked for, `[codes]`.
    pub fn picture_row(&self, i: usize) -> &[f32] {
        &self.pictures[i * self.codes..][..self.codes]
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.logits.len().checked_div(self.vocab).unwrap_or(0)
    }

    /// Logits of the `i`-th row that was asked for, `[vocab]`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.logits[i * self.vocab..][..self.vocab]
    }

    /// The same for writing: the sampler works in place.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.logits[i * self.vocab..][..self.vocab]
    }
}

/// Computes batches.
///
/// Law: a row's result depends on the tokens before it and on the forms that they were computed in, and on nothing else:
/// not on its neighbours, on how its sequence was cut into steps or on which blocks it lies in.
pub trait Runner: Send {
    /// What it is.
    fn info(&self) -> &RunnerInfo;

    /// Computes all rows of `batch`, writes their cache slots and gives the logits of `batch.logit_rows`,
    /// `[logit_rows, vocab]`.
    ///
    /// # Errors
    /// If the device fails. The contents of the cache are then lost.
    fn step(&mut self, batch: &Batch, out: &mut StepOutput) -> Result<()>;

    /// The hidden state of a row of the last step behind the final norm, `[dim]`, in place of what `out` held.
    ///
    /// # Errors
    /// If the device fails.
    fn hidden(&mut self, row: u32, out: &mut Vec<f32>) -> Result<()>;

    /// Copies the first `tokens` tokens of cache block `from` to block `to`.
    ///
    /// # Errors
    /// If the device fails.
    fn copy_block(&mut self, from: u32, to: u32, tokens: usize) -> Result<()>;

    /// Predicts one token further (V3 paper, section 2.2). Row i of `batch` holds the token *after* row `rows[i]` of the
    /// last step, at that row's position and slot; the hidden state of that row goes in beside it. Every computed row
    /// must pass through here once for the drafting layer's cache to be complete; a gap costs acceptance, never
    /// correctness.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If [`RunnerInfo::drafts`] is false.
    fn draft(&mut self, batch: &Batch, rows: &[u32], out: &mut StepOutput) -> Result<()>;

    /// A picture's rows as they enter the decoder, `[seen_rows, dim]`.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If the model sees no pictures.
    fn see(&mut self, picture: &Picture) -> Result<Tensor> {
        panic!("invariant: only a model that sees is shown {picture:?}")
    }

    /// The picture of `ids`, whole rows of [`PictureInfo::grid`] ids.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If the model draws no pictures.
    fn paint(&mut self, ids: &[u32]) -> Result<Picture> {
        panic!("invariant: only a model that draws is asked to paint {} ids", ids.len())
    }
}
