//! One step of learning: examples in, changed weights out.
//!
//! The loss is the mean cross-entropy of the tokens that count (an answer, not its question), plus the prediction block's
//! loss for the token after the next, times λ (V3 paper, section 2.2). The head runs over chunks of rows, so that logits of a large
//! vocabulary are never all there at once. On request blocks keep only their inputs and are computed again on the way back.

use std::collections::BTreeMap;
use std::sync::Arc;

use fathom_core::{Grad, LatentForm, Proj, Resident, Routing, Shape, Tensor};
use fathom_model::names::{Slot, TensorId};
use fathom_model::{BLOCK, Batch, Decoder, Logits, NoProbe, Probe, Result};

use crate::optim::Optimiser;
use crate::params::{Param, Params};
use crate::tape::Tape;

/// Rows of the head at a time, at most,
const HEAD_ROWS: usize = 1024;
/// and the logits that they have together.
const HEAD_LOGITS: usize = 1 << 25;

/// Rows that go through the model together unless told otherwise: what their tape takes is all there at once. Eight sequences of 256 and
/// their ends; more leave the caches, which cost a trial five in a hundred.
const STEP_ROWS: usize = 2176;

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
    /// Rows that go through the model together; the derivatives of a larger step are added up part by part.
    pub step_rows: usize,
    pub(crate) backend: Arc<dyn Grad>,
    /// A decoder whose own weights do not learn outlives its step.
    held: Option<(Arc<Tape>, Decoder)>,
}

/// Targets of a batch: for every row the token asked for, and how much it counts.
#[derive(Default)]
pub(crate) struct Targets {
    pub(crate) tokens: Vec<u32>,
    pub(crate) weights: Vec<f32>,
}

impl Targets {
    /// Of row i of an example: token `i + ahead`, if there is one and it counts; each counting one weighs 1 / `counted`.
    fn new(examples: &[Example], ahead: usize, counted: usize) -> Self {
        let mut targets = Targets::default();
        let one = 1.0 / counted.max(1) as f32;
        for e in examples {
            for i in 0..e.tokens.len() - 1 {
                let target = e.tokens.get(i + ahead);
                targets.tokens.push(target.copied().unwrap_or(0));
                targets.weights.push(if target.is_some() && i + ahead >= e.from { one } else { 0.0 });
            }
        }
        targets
    }

    /// How many rows of the examples count.
    fn counted(examples: &[Example], ahead: usize) -> usize {
        examples.iter().map(|e| e.tokens.len().saturating_sub(e.from.max(ahead))).sum()
    }
}

/// Derivative of the loss by the log-probability of a row's target, given the row and that log-probability.
pub(crate) type Slope<'a> = &'a mut dyn FnMut(usize, f32) -> f64;

/// What goes through the model together, and what is asked of it.
pub(crate) struct Work<'a> {
    pub(crate) batch: Batch,
    /// The next tokens.
    pub(crate) next: Targets,
    /// Those after them, for the prediction block; none: it takes no part.
    pub(crate) after: Option<Targets>,
    /// The loss, where it is another function of the log-probabilities than their weighted sum; what is returned as loss is
    /// not it then.
    pub(crate) slope: Option<Slope<'a>>,
}

/// Sequences side by side, without a cache.
pub(crate) fn fresh_batch<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Batch {
    let mut batch = Batch::new(BLOCK);
    for tokens in sequences {
        // Without a cache the table is never looked at; it only has to be long enough.
        let table = vec![0; tokens.len().div_ceil(BLOCK)];
        batch.push(tokens, 0, &table, LatentForm::Plain, Logits::None);
    }
    batch
}

/// Cuts sequences of the lengths that `len` gives into parts of at most `rows` rows, but at least one sequence.
pub(crate) fn parts<S>(all: &[S], rows: usize, len: impl Fn(&S) -> usize) -> Vec<&[S]> {
    let (mut parts, mut start, mut sum) = (Vec::new(), 0, 0);
    for (i, s) in all.iter().enumerate() {
        sum += len(s) - 1;
        if sum > rows && i > start {
            parts.push(&all[start..i]);
            (start, sum) = (i, len(s) - 1);
        }
    }
    parts.push(&all[start..]);
    parts
}

/// `log softmax(z)[target]`.
pub(crate) fn logprob(z: &[f32], target: u32) -> f32 {
    let peak = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = z.iter().map(|v| f64::from(v - peak).exp()).sum();
    (f64::from(z[target as usize] - peak) - sum.ln()) as f32
}

/// Counts how many rows each expert gets.
#[derive(Default)]
pub(crate) struct Load {
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
        Trainer { params, optimiser, draft_weight: 0.3, recompute: false, step_rows: STEP_ROWS, backend, held: None }
    }

    /// One step at learning rate `lr`.
    ///
    /// # Errors
    /// If the backend fails.
    ///
    /// # Panics
    /// If an example has fewer than two tokens.
    pub fn step(&mut self, examples: &[Example], lr: f32) -> Result<Report> {
        for e in examples {
            assert!(e.tokens.len() > 1, "invariant: an example has a token and one to predict");
        }
        let mut grads = self.zeros()?;
        let counted = [Targets::counted(examples, 1), Targets::counted(examples, 2)];
        let (mut load, mut loss, mut draft_loss) = (Load::default(), 0.0, None);
        for part in parts(examples, self.step_rows, |e| e.tokens.len()) {
            let work = Work {
                batch: fresh_batch(part.iter().map(|e| &e.tokens[..e.tokens.len() - 1])),
                next: Targets::new(part, 1, counted[0]),
                after: Some(Targets::new(part, 2, counted[1])),
                slope: None,
            };
            let (l, d) = self.derivatives(work, &mut grads, &mut load)?;
            loss += l;
            draft_loss = d.map(|d| draft_loss.unwrap_or(0.0) + d);
        }
        let norm = self.optimiser.step(&*self.backend, lr, &mut self.params, &grads)?;
        let load = self.balance(load);
        let tokens = examples.iter().map(|e| e.tokens.len() - 1).sum();
        Ok(Report { loss, draft_loss, norm, tokens, counted: counted[0], load })
    }

    /// A place for every parameter's derivative.
    pub(crate) fn zeros(&self) -> Result<Vec<Option<Tensor>>> {
        let zeros = |p: &Param| Ok(Some(self.backend.zeros(Shape::matrix(p.demand.rows, p.demand.cols))?));
        self.params.all.iter().map(zeros).collect()
    }

    /// Runs forward and back; adds derivatives to `grads`. Returns the loss, and the prediction block's.
    pub(crate) fn derivatives(
        &mut self,
        work: Work<'_>,
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
        let losses = self.walk(&tape, &decoder, work, grads, load)?;
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
        work: Work<'_>,
        grads: &mut [Option<Tensor>],
        load: &mut Load,
    ) -> Result<(f64, Option<f64>)> {
        let Work { batch, next, after, slope } = work;
        let mut h = decoder.embed(&batch.tokens)?;
        let mut inputs = Vec::new();
        tape.pause(self.recompute);
        for block in 0..decoder.layers.len() {
            if self.recompute {
                inputs.push(tape.open("block", &h)?);
            }
            h = decoder.block_fresh(block, h, &batch, load)?;
        }
        tape.pause(false);
        let top = if self.recompute { tape.leaf(tape.open("block", &h)?) } else { h };
        let h = decoder.final_norm(&top)?;
        let head = decoder.head.as_ref().unwrap_or(&decoder.embed);
        let (loss, dh) = self.head(tape, &h, head, (&next, 1.0), slope, grads)?;
        let mut seeds = vec![(h.clone(), dh)];
        let mut draft_loss = None;
        if let (Some(mtp), Some(after)) = (&decoder.mtp, &after)
            && self.draft_weight > 0.0
        {
            let next = Batch { tokens: next.tokens, ..batch.clone() };
            let drafted = decoder.draft_trunk(&h, &next, None, load)?;
            let head = mtp.head.as_ref().unwrap_or(head);
            let (loss, d) = self.head(tape, &drafted, head, (after, self.draft_weight), None, grads)?;
            seeds.push((drafted, d));
            draft_loss = Some(loss);
        }
        let seeds: Vec<(&Tensor, Tensor)> = seeds.iter().map(|(x, d)| (x, d.clone())).collect();
        let mut d = tape.backward_to(&seeds, grads, Some(&top))?;
        for (block, x) in inputs.into_iter().enumerate().rev() {
            let seed = d.take().expect("invariant: the loss depends on every block");
            let x = if block == 0 { decoder.embed(&batch.tokens)? } else { tape.leaf(x) };
            let y = decoder.block_fresh(block, x.clone(), &batch, &mut NoProbe)?;
            d = tape.backward_to(&[(&y, seed)], grads, Some(&x))?;
        }
        Ok((loss, draft_loss))
    }

    /// Loss of the head over hidden states `h` of the tape for targets times a factor, its derivative by them, and by its own
    /// weight to `grads`.
    fn head(
        &self,
        tape: &Tape,
        h: &Tensor,
        head: &Resident,
        (targets, factor): (&Targets, f32),
        mut slope: Option<Slope<'_>>,
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
            let mut weights: Vec<f32> = rows.iter().map(|r| factor * targets.weights[*r as usize]).collect();
            if let Some(slope) = &mut slope {
                let mut z = vec![0.0; logits.shape.numel()];
                b.read(&logits, &mut z)?;
                let each = rows.iter().zip(&wanted).zip(z.chunks_exact(logits.cols()));
                // Cross-entropy falls with the log-probability by its weight.
                weights = each.map(|((r, t), z)| -slope(*r as usize, logprob(z, *t)) as f32).collect();
            }
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
        let mut counts: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for (layer, chosen) in load.layers {
            let Some(i) = self.params.find(TensorId::layer(Slot::RouterBias, layer)) else { continue };
            let count = counts.entry(layer).or_insert_with(|| vec![0; self.params.all[i].values().len()]);
            chosen.iter().for_each(|&e| count[e as usize] += 1);
        }
        for (layer, count) in &counts {
            if let Some(i) = self.params.find(TensorId::layer(Slot::RouterBias, *layer)) {
                self.optimiser.balance(self.params.all[i].values_mut(), count);
            }
        }
        counts.into_values().collect()
    }

    /// A decoder over the live weights, for rollouts and evaluation. It must be gone before the next step.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn decoder(&self, backend: Arc<dyn fathom_core::Backend>) -> Result<Decoder> {
        self.params.decoder(backend)
    }
}
