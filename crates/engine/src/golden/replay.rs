//! Running a model over prompts with a small cache of its own.

use fathom_core::{Backend, DType, LatentForm, Routing, Tensor};
use fathom_model::{BLOCK, Batch, Decoder, KvPool, Logits, NoProbe, Probe};

use super::{Hidden, Route};
use crate::{Error, Result};

/// The cache blocks of one sequence.
pub type Table = Vec<u32>;

/// A model with a cache, to be fed rows of sequences in any cut.
pub struct Replay<'a> {
    /// The model.
    pub decoder: &'a Decoder,
    kv: KvPool,
    free: Table,
}

/// One sequence's rows in a step: its blocks, the position of the first row, tokens, and the form of latent attention.
pub type Rows<'a> = (&'a [u32], usize, &'a [u32], LatentForm);

pub(super) fn failed(e: impl ToString) -> Error {
    Error::Model(e.to_string())
}

impl<'a> Replay<'a> {
    /// With cache memory for `sequences` sequences of up to `tokens` tokens.
    ///
    /// # Errors
    /// If the backend has no memory for it.
    pub fn new(decoder: &'a Decoder, sequences: usize, tokens: usize, dtype: DType) -> Result<Self> {
        let blocks = sequences * tokens.div_ceil(BLOCK);
        let kv = decoder.kv_pool(blocks, dtype).map_err(failed)?;
        // Odd blocks first: no sequence lies in one piece.
        let free = (0..blocks as u32).filter(|b| b % 2 == 0).chain((0..blocks as u32).filter(|b| b % 2 == 1));
        Ok(Replay { decoder, kv, free: free.collect() })
    }

    /// Cache blocks for a sequence of `tokens` tokens.
    ///
    /// # Panics
    /// If there are not enough left.
    pub fn table(&mut self, tokens: usize) -> Table {
        let rest = self.free.len().checked_sub(tokens.div_ceil(BLOCK));
        self.free.split_off(rest.expect("invariant: a replay is made with memory for all that it is asked for"))
    }

    fn batch(parts: &[Rows<'_>]) -> Batch {
        let mut batch = Batch::new(BLOCK);
        for &(table, start, tokens, form) in parts {
            batch.push(tokens, start, table, form, Logits::All);
        }
        batch
    }

    /// The trunk's outputs `[rows, dim]` for the rows of one step.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn trunk(&mut self, parts: &[Rows<'_>], probe: &mut dyn Probe) -> Result<Tensor> {
        let batch = Self::batch(parts);
        let h = self.decoder.embed(&batch.tokens).map_err(failed)?;
        self.decoder.trunk(h, &batch, &mut self.kv, probe).map_err(failed)
    }

    /// Logits `[rows, vocab]` for the rows of one step.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn step(&mut self, parts: &[Rows<'_>], probe: &mut dyn Probe) -> Result<Vec<f32>> {
        let h = self.trunk(parts, probe)?;
        self.read(&self.decoder.head(&h).map_err(failed)?)
    }

    /// Logits of the prediction block for rows whose trunk outputs are `hidden` and whose *following* tokens
    /// are given.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn draft(&mut self, hidden: &Tensor, parts: &[Rows<'_>]) -> Result<Vec<f32>> {
        let logits = self.decoder.draft(hidden, &Self::batch(parts), &mut self.kv, &mut NoProbe).map_err(failed)?;
        logits.map_or(Ok(Vec::new()), |logits| self.read(&logits))
    }

    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        let mut out = vec![0.0; x.shape.numel()];
        self.decoder.backend.read(x, &mut out).map_err(failed)?;
        Ok(out)
    }
}

/// Keeps what a forward pass announces, and forces routes if given some.
#[derive(Default)]
pub struct Recorder {
    /// Residual streams, embedding and final norm, in the order of computation.
    pub hidden: Vec<Hidden>,
    /// Choices of experts, in the order of computation.
    pub routes: Vec<Route>,
    /// Choices to make instead of the model's own.
    pub force: Vec<Route>,
}

impl Probe for Recorder {
    fn tap(
        &mut self,
        layer: Option<usize>,
        name: &'static str,
        b: &dyn Backend,
        x: &Tensor,
    ) -> fathom_core::Result<()> {
        if ["embed", "out", "final_norm"].contains(&name) {
            let mut values = vec![0.0; x.shape.numel()];
            b.read(x, &mut values)?;
            self.hidden.push(Hidden { layer, name, values });
        }
        Ok(())
    }

    fn routed(&mut self, layer: usize, b: &dyn Backend, routing: &Routing) -> fathom_core::Result<()> {
        let n = routing.experts.shape.numel();
        let (mut experts, mut weights) = (vec![0; n], vec![0.0; n]);
        b.read_u32(&routing.experts, &mut experts)?;
        b.read(&routing.weights, &mut weights)?;
        self.routes.push(Route { layer, experts, weights });
        Ok(())
    }

    fn forced(&self, layer: usize) -> Option<&[u32]> {
        self.force.iter().find(|r| r.layer == layer).map(|r| &r.experts[..])
    }
}
