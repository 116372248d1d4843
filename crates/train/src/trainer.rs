//! One step of learning: examples in, changed weights out.
//!
//! The loss is the mean cross-entropy of the tokens that count (an answer, not its question), plus the prediction block's
//! loss for the token after the next, times λ (V3 paper, section 2.2). The head runs over chunks of rows, so that logits of a large
//! vocabulary are never all there at once. On request blocks keep only their inputs and are computed again on the way back.

use std::sync::Arc;

use fathom_core::{Grad, LatentForm, Proj, Resident, Routing, Shape, Tensor};
use fathom_model::names::{Slot, TensorId};
use fathom_model::{BLOCK, Batch, Decoder, Logits, NoProbe, Probe, Result};

use crate::optim::Optimiser;
use crate::params::Params;
use crate::tape::Tape;

/// Rows of the head at a time, at most,
const HEAD_ROWS: usize = 1024;
/// and the logits that they have together.
const HEAD_LOGITS: usize = 1 << 25;

/// A sequence to learn from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids, at least two.
    pub tokens: Vec<u32>,
    /// The first token that counts: tokens before it are given, not asked for.
    pub from: usize,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Mean cross-entropy of the tokens that counted, in nats.
    pub loss: f64,
    /// The same of the prediction block, if there is one.
    pub draft_loss: Option<f64>,
    /// Norm of all derivatives before clipping.
    pub norm: f64,
    /// Rows computed.
    pub tokens: usize,
    /// Rows that counted.
    pub counted: usize,
    /// Per layer with experts: how many rows each expert got.
    pub load: Vec<Vec<u64>>,
}

/// Weights, optimiser and backend, and how they go together.
pub struct Trainer {
    /// What learns.
    pub params: Params,
    /// How.
    pub optimiser: Optimiser,
    /// Factor on the prediction block's loss (V3: 0.3, later 0.1).
    pub draft_weight: f32,
    /// Whether blocks keep only their inputs and are computed again on the way back: less memory, a third more work
    /// (Chen et al. 2016). The result is the same to the last bit.
    pub recompute: bool,
    backend: Arc<dyn Grad>,
    /// A decoder whose own weights do not learn outlives its step.
    held: Option<(Arc<Tape>, Decoder)>,
}

/// Targets of a batch: for every row the token asked for, and how much it counts.
struct Targets {
    tokens: Vec<u32>,
    weights: Vec<f32>,
}

impl Targets {
    /// Of row i of an example: token `i + ahead`, if there is one and it counts; all weights sum to 1.
    fn new(examples: &[Example], ahead: usize) -> Self {
        let (mut tokens, mut weights) = (Vec::new(), Vec::new());
        for e in examples {
            for i in 0..e.tokens.len() - 1 {
                let target = e.tokens.get(i + ahead);
                tokens.push(target.copied().unwrap_or(0));
                weights.push(if target.is_some() && i + ahead >= e.from { 1.0 } else { 0.0 });
            }
        }
        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum.max(1.0));
        Targets { tokens, weights }
    }
}

/// Counts how many rows each expert gets.
#[derive(Default)]
struct Load {
    layers: Vec<(usize, Vec<u32>)>,
}

impl Probe for Load {
    fn routed(&mut self, layer: usize, b: &dyn fathom_core::Backend, routing: &Routing) -> fathom_core::Result<()> {
        let mut chosen = vec![0; routing.experts.shape.numel()];
        b.read_u32(&routing.experts, &mut chosen)?;
        self.layers.push((layer, chosen));
        Ok(())
    }
}

impl Trainer {
    /// A trainer on `backend`.
    pub fn new(params: Params, optimiser: Optimiser, backend: Arc<dyn Grad>) -> Self {
        Trainer { params, optimiser, draft_weight: 0.3, recompute: false, backend, held: None }
    }

    /// One step at learning rate `lr`.
    ///
    /// # Errors
    /// If the backend fails.
    ///
    /// # Panics
    /// If an example has fewer than two tokens.
    pub fn step(&mut self, examples: &[Example], lr: f32) -> Result<Report> {
        let b = self.backend.clone();
        let mut batch = Batch::new(BLOCK);
        for e in examples {
            assert!(e.tokens.len() > 1, "invariant: an example has a token and one to predict");
            let rows = &e.tokens[..e.tokens.len() - 1];
            // Without a cache the table is never looked at; it only has to be long enough.
            let table = vec![0; rows.len().div_ceil(BLOCK)];
            batch.push(rows, 0, &table, LatentForm::Plain, Logits::None);
        }
        let mut grads: Vec<Option<Tensor>> = Vec::with_capacity(self.params.all.len());
        for p in &self.params.all {
            grads.push(Some(b.zeros(Shape::matrix(p.demand.rows, p.demand.cols))?));
        }
        let mut load = Load::default();
        let (loss, draft_loss) = self.derivatives(&batch, examples, &mut grads, &mut load)?;
        let norm = self.optimiser.step(&*b, lr, &mut self.params, &grads)?;
        let load = self.balance(load);
        let counted = Targets::new(examples, 1).weights.iter().filter(|w| **w > 0.0).count();
        Ok(Report { loss, draft_loss, norm, tokens: batch.rows(), counted, load })
    }

    /// Runs forward and back; adds derivatives to `grads`.
    fn derivatives(
        &mut self,
        batch: &Batch,
        examples: &[Example],
        grads: &mut [Option<Tensor>],
        load: &mut Load,
    ) -> Result<(f64, Option<f64>)> {
        let (tape, mut decoder) = match self.held.take() {
            Some((tape, mut decoder)) => {
                decoder.adapt(self.params.adapter().as_ref())?;
                (tape, decoder)
            }
            None => {
                let tape = Arc::new(Tape::new(self.backend.clone(), self.params.sources()));
                let decoder = self.params.decoder(tape.clone())?;
                (tape, decoder)
            }
        };
        let losses = self.walk(&tape, &decoder, batch, examples, grads, load)?;
        if self.params.adapter().is_some() {
            // The adapter's weights are to change; nobody else may hold them then.
            decoder.adapt(None)?;
            self.held = Some((tape, decoder));
        }
        Ok(losses)
    }

    /// Forward and back through `decoder`, which records on `tape`.
    fn walk(
        &self,
        tape: &Tape,
        decoder: &Decoder,
        batch: &Batch,
        examples: &[Example],
        grads: &mut [Option<Tensor>],
        load: &mut Load,
    ) -> Result<(f64, Option<f64>)> {
        let mut h = decoder.embed(&batch.tokens)?;
        let mut inputs = Vec::new();
        tape.pause(self.recompute);
        for block in 0..decoder.layers.len() {
            if self.recompute {
                inputs.push(tape.open("block", &h)?);
            }
            h = decoder.block_fresh(block, h, batch, load)?;
        }
        tape.pause(false);
        let top = if self.recompute { tape.leaf(tape.open("block", &h)?) } else { h };
        let h = decoder.final_norm(&top)?;
        let head = decoder.head.as_ref().unwrap_or(&decoder.embed);
        let targets = Targets::new(examples, 1);
        let (loss, dh) = self.head(tape, &h, head, &targets, 1.0, grads)?;
        let mut seeds = vec![(h.clone(), dh)];
        let mut draft_loss = None;
        if let Some(mtp) = &decoder.mtp {
            let next = Batch { tokens: targets.tokens, ..batch.clone() };
            let drafted = decoder.draft_trunk(&h, &next, None, load)?;
            let head = mtp.head.as_ref().unwrap_or(head);
            let targets = Targets::new(examples, 2);
            let (loss, d) = self.head(tape, &drafted, head, &targets, self.draft_weight, grads)?;
            seeds.push((drafted, d));
            draft_loss = Some(loss);
        }
        let seeds: Vec<(&Tensor, Tensor)> = seeds.iter().map(|(x, d)| (x, d.clone())).collect();
        let mut d = tape.backward_to(&seeds, grads, Some(&top))?;
        for (block, x) in inputs.into_iter().enumerate().rev() {
            let seed = d.take().expect("invariant: the loss depends on every block");
            let x = if block == 0 { decoder.embed(&batch.tokens)? } else { tape.leaf(x) };
            let y = decoder.block_fresh(block, x.clone(), batch, &mut NoProbe)?;
            d = tape.backward_to(&[(&y, seed)], grads, Some(&x))?;
        }
        Ok((loss, draft_loss))
    }

    /// Loss of the head over hidden states `h` of the tape, its derivative by them, and by its own weight to `grads`.
    fn head(
        &self,
        tape: &Tape,
        h: &Tensor,
        head: &Resident,
        targets: &Targets,
        factor: f32,
        grads: &mut [Option<Tensor>],
    ) -> Result<(f64, Tensor)> {
        let b = &*self.backend;
        let h = tape.open("head", h)?;
        let (weight, param) = tape.frozen(head)?;
        let counted: Vec<u32> = (0..h.rows() as u32).filter(|&r| targets.weights[r as usize] > 0.0).collect();
        let mut sum = 0.0;
        let mut dh = b.zeros(h.shape)?;
        for rows in counted.chunks((HEAD_LOGITS / weight.rows).clamp(1, HEAD_ROWS)) {
            let x = b.select_rows(&h, rows)?;
            let logits = b.linear(&x, &[Proj { weight, bias: None }])?.remove(0);
            let pick = |r: &u32| targets.tokens[*r as usize];
            let wanted: Vec<u32> = rows.iter().map(pick).collect();
            let weights: Vec<f32> = rows.iter().map(|r| factor * targets.weights[*r as usize]).collect();
            let (loss, d) = b.cross_entropy(&logits, &wanted, &weights)?;
            sum += loss / f64::from(factor);
            if let Some(dw) = param.and_then(|p| grads[p].as_mut()) {
                b.linear_dw(&x, &d, dw)?;
            }
            let dx = b.linear_dx(&d, weight)?;
            dh = b.add(dh, &b.select_rows_grad(&dx, rows, h.rows())?)?;
        }
        Ok((sum, dh))
    }

    /// Moves the routers' correction biases by the load that a step put on the experts; returns the load.
    fn balance(&mut self, load: Load) -> Vec<Vec<u64>> {
        let mut counts = Vec::new();
        for (layer, chosen) in load.layers {
            let Some(i) = self.params.find(TensorId::layer(Slot::RouterBias, layer)) else { continue };
            let bias = self.params.all[i].values_mut();
            let mut count = vec![0; bias.len()];
            chosen.iter().for_each(|&e| count[e as usize] += 1);
            self.optimiser.balance(bias, &count);
            counts.push(count);
        }
        counts
    }

    /// A decoder over the live weights, for rollouts and evaluation. It must be gone before the next step.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn decoder(&self, backend: Arc<dyn fathom_core::Backend>) -> Result<Decoder> {
        self.params.decoder(backend)
    }
}
