//! The runner over real weights: a decoder and its cache.

use std::sync::Arc;

use fathom_core::{DType, Tensor};
use fathom_model::picture::picture;
use fathom_model::spec::Mixer;
use fathom_model::{BLOCK, Batch, Decoder, KvPool, NoProbe};
use fathom_picture::Picture;

use crate::runner::PictureInfo;
use crate::{Error, Result, Runner, RunnerInfo, StepOutput};

/// How a model is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunnerOptions {
    /// Positions that a sequence may have; none = what the model was configured for.
    pub context: Option<usize>,
    /// Tokens that the cache holds, rounded up to whole blocks; none = one full context.
    pub cache_tokens: Option<usize>,
    /// Element type of the cache.
    pub kv: DType,
    /// Whether to use the drafting head, if the model has one.
    pub drafts: bool,
}

/// See the module.
pub struct ModelRunner {
    decoder: Arc<Decoder>,
    kv: KvPool,
    info: RunnerInfo,
    /// Outputs of the last step's rows, kept for the drafting head and for embeddings.
    hidden: Option<Tensor>,
}

impl ModelRunner {
    /// A runner with an empty cache.
    ///
    /// # Errors
    /// If the context is 0 or longer than the model's, or if the backend has no memory for the cache.
    pub fn new(decoder: impl Into<Arc<Decoder>>, options: RunnerOptions) -> Result<Self> {
        let decoder = decoder.into();
        let spec = &decoder.spec;
        let context = options.context.unwrap_or(spec.context);
        if context == 0 || context > spec.context {
            let (name, found) = ("context", format!("{context} tokens (the model was made for {})", spec.context));
            return Err(Error::Option { name, found, expected: "at least 1 and at most what the model was made for" });
        }
        let blocks = options.cache_tokens.unwrap_or(context).div_ceil(BLOCK).max(1);
        let info = RunnerInfo {
            vocab: spec.vocab,
            context,
            block_tokens: BLOCK,
            blocks,
            latent: spec.layers.iter().any(|layer| matches!(layer.mixer, Mixer::Mla { .. })),
            drafts: options.drafts && decoder.mtp.is_some(),
            pictures: spec.pictures.as_ref().map(|p| PictureInfo {
                codes: p.codec.codes,
                grid: p.grid(),
                side: p.side,
                seen_rows: p.rows(),
            }),
        };
        let kv = decoder.kv_pool(blocks, options.kv)?;
        Ok(ModelRunner { decoder, kv, info, hidden: None })
    }

    /// The model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }
}

impl Runner for ModelRunner {
    fn info(&self) -> &RunnerInfo {
        &self.info
    }

    fn step(&mut self, batch: &Batch, out: &mut StepOutput) -> Result<()> {
        // Its memory serves this step.
        self.hidden = None;
        let b = &*self.decoder.backend;
        let h = self.decoder.inputs(batch)?;
        let h = self.decoder.trunk(h, batch, &mut self.kv, &mut NoProbe)?;
        let logits = out.reset(batch.logit_rows.len(), self.info.vocab);
        if !batch.logit_rows.is_empty() {
            let rows = b.select_rows(&h, &batch.logit_rows)?;
            b.read(&self.decoder.head(&rows)?, logits)?;
        }
        if let Some(info) = self.info.pictures.filter(|_| !batch.picture_rows.is_empty()) {
            let logits = out.reset_pictures(batch.picture_rows.len(), info.codes);
            let rows = b.select_rows(&h, &batch.picture_rows)?;
            b.read(&self.decoder.picture_head(&rows)?, logits)?;
        }
        self.hidden = Some(h);
        Ok(())
    }

    fn hidden(&mut self, row: u32, out: &mut Vec<f32>) -> Result<()> {
        let hidden = self.hidden.as_ref().expect("invariant: hidden states are asked for after a step");
        let b = &*self.decoder.backend;
        let row = b.select_rows(hidden, &[row])?;
        out.clear();
        out.resize(row.shape.numel(), 0.0);
        Ok(b.read(&row, out)?)
    }

    fn copy_block(&mut self, from: u32, to: u32, tokens: usize) -> Result<()> {
        Ok(self.kv.copy_block(&*self.decoder.backend, from, to, tokens)?)
    }

    fn see(&mut self, picture: &Picture) -> Result<Tensor> {
        Ok(self.decoder.see(picture)?)
    }

    fn paint(&mut self, ids: &[u32]) -> Result<Picture> {
        let info = self.info.pictures.expect("invariant: only a model that draws is asked to paint");
        let b = &*self.decoder.backend;
        let rows = ids.len() / info.grid;
        let pixels = self.decoder.pictures().codec.decode(b, ids, rows, info.grid)?;
        let mut values = vec![0.0; pixels.shape.numel()];
        b.read(&pixels, &mut values)?;
        Ok(picture(&values, info.side, values.len() / 3 / info.side))
    }

    fn draft(&mut self, batch: &Batch, rows: &[u32], out: &mut StepOutput) -> Result<()> {
        let hidden = self.hidden.as_ref().expect("invariant: drafts follow a step of a runner that drafts");
        let b = &*self.decoder.backend;
        let hidden = b.select_rows(hidden, rows)?;
        let logits = out.reset(batch.logit_rows.len(), self.info.vocab);
        if let Some(y) = self.decoder.draft(&hidden, batch, &mut self.kv, &mut NoProbe)? {
            b.read(&y, logits)?;
        }
        Ok(())
    }
}
