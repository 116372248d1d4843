//! One step of policy optimisation: answers that were drawn, what they were worth, and the derivative of GRPO's objective.

use fathom_model::{Decoder, NoProbe, Result};

use crate::params::Param;
use crate::trainer::{Load, Targets, Trainer, Work, fresh_batch, logprob, parts};

/// An answer drawn from the model, to learn from by reward.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    /// Prompt and answer.
    pub tokens: Vec<u32>,
    /// The first token of the answer.
    pub from: usize,
    /// How much better it was than its group.
    pub advantage: f32,
    /// Log-probabilities of the answer's tokens when they were drawn.
    pub old: Vec<f32>,
    /// The same under the model that must not be left behind too far; empty: there is none.
    pub reference: Vec<f32>,
}

/// How far a policy may move (DeepSeekMath, equations 3 and 4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// How far the ratio of probabilities may leave 1 (ε).
    pub ratio: f32,
    /// Weight of the divergence from the reference (β).
    pub kl: f32,
}

/// What a step of policy optimisation did; means over the answers' tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PolicyReport {
    /// The objective's negative.
    pub loss: f64,
    /// Divergence from the reference by the estimator `r − ln r − 1`.
    pub kl: f64,
    /// Share of tokens whose ratio was clipped.
    pub clipped: f64,
    /// Absolute difference of the log-probabilities from those of the rollout.
    pub gap: f64,
    /// The largest one.
    pub gap_max: f64,
    /// Norm of all derivatives before clipping.
    pub norm: f64,
    /// Rows computed.
    pub tokens: usize,
}

impl PolicyReport {
    /// Takes in a token with log-probability `logp` that weighs `weight`; returns the derivative of the loss by `logp`.
    fn token(&mut self, logp: f32, old: f32, reference: Option<f32>, advantage: f32, weight: f64, b: Bounds) -> f64 {
        let ratio = f64::from(logp - old).exp();
        let (a, eps) = (f64::from(advantage), f64::from(b.ratio));
        let clipped = ratio.clamp(1.0 - eps, 1.0 + eps);
        // The smaller of the two; where it is the clipped one, nothing flows back.
        let free = ratio * a <= clipped * a;
        let mut slope = if free { -ratio * a } else { 0.0 };
        self.loss -= weight * (ratio * a).min(clipped * a);
        self.clipped += weight * f64::from(u8::from(!free));
        if let Some(reference) = reference {
            let apart = f64::from(reference - logp);
            let kl = apart.exp() - apart - 1.0;
            self.kl += weight * kl;
            self.loss += weight * f64::from(b.kl) * kl;
            slope += f64::from(b.kl) * (1.0 - apart.exp());
        }
        let gap = f64::from((logp - old).abs());
        self.gap += weight * gap;
        self.gap_max = self.gap_max.max(gap);
        weight * slope
    }
}

/// Log-probabilities of the answers in `rollouts` under `decoder`, without learning.
///
/// # Errors
/// If the backend fails.
pub fn logprobs(decoder: &Decoder, rollouts: &[Rollout], step_rows: usize) -> Result<Vec<Vec<f32>>> {
    let b = &*decoder.backend;
    let mut all = Vec::with_capacity(rollouts.len());
    for part in parts(rollouts, step_rows, |r| r.tokens.len()) {
        let batch = fresh_batch(part.iter().map(|r| &r.tokens[..r.tokens.len() - 1]));
        let h = decoder.trunk_fresh(decoder.embed(&batch.tokens)?, &batch, &mut NoProbe)?;
        let mut start = 0;
        for r in part {
            let rows: Vec<u32> = (r.from - 1..r.tokens.len() - 1).map(|i| (start + i) as u32).collect();
            start += r.tokens.len() - 1;
            let logits = decoder.head(&b.select_rows(&h, &rows)?)?;
            let mut z = vec![0.0; logits.shape.numel()];
            b.read(&logits, &mut z)?;
            let each = z.chunks_exact(logits.cols()).zip(&r.tokens[r.from..]);
            all.push(each.map(|(z, t)| logprob(z, *t)).collect());
        }
    }
    Ok(all)
}

impl Trainer {
    /// One step of group relative policy optimisation at learning rate `lr`: the mean over answers of the mean over their
    /// tokens (DeepSeekMath, equation 3). The prediction block and the routers' bias stay as they are.
    ///
    /// # Errors
    /// If the backend fails.
    ///
    /// # Panics
    /// If an answer is empty or stands at the start.
    pub fn policy_step(&mut self, rollouts: &[Rollout], lr: f32, bounds: Bounds) -> Result<PolicyReport> {
        let b = self.backend.clone();
        let mut grads = self.zeros()?;
        let mut report = PolicyReport::default();
        for part in parts(rollouts, self.step_rows, |r| r.tokens.len()) {
            let mut targets = Targets::default();
            // For every row its answer, and which token of it.
            let mut places = Vec::new();
            for (i, r) in part.iter().enumerate() {
                let n = r.tokens.len() - r.from;
                assert!(r.from > 0 && n > 0 && r.old.len() == n, "invariant: an answer follows a prompt");
                targets.tokens.extend(&r.tokens[1..]);
                let weight = |t: usize| if t + 1 >= r.from { 1.0 / (rollouts.len() * n) as f32 } else { 0.0 };
                targets.weights.extend((0..r.tokens.len() - 1).map(weight));
                places.extend((0..r.tokens.len() - 1).map(|t| (i, (t + 1).wrapping_sub(r.from))));
            }
            let batch = fresh_batch(part.iter().map(|r| &r.tokens[..r.tokens.len() - 1]));
            report.tokens += batch.rows();
            let weights = targets.weights.clone();
            let mut slope = |row: usize, logp: f32| {
                let (i, t) = places[row];
                let r = &part[i];
                let weight = f64::from(weights[row]);
                report.token(logp, r.old[t], r.reference.get(t).copied(), r.advantage, weight, bounds)
            };
            let work = Work { batch, next: targets, after: None, slope: Some(&mut slope) };
            self.derivatives(work, &mut grads, &mut Load::default())?;
        }
        // A block that took no part has no derivative, not one of zero: its momentum must not move it.
        let idle = |p: &Param| p.demand.id.layer.is_some_and(|l| l >= self.params.spec.layers.len());
        for (p, g) in self.params.all.iter().zip(&mut grads) {
            if idle(p) {
                *g = None;
            }
        }
        report.norm = self.optimiser.step(&*b, lr, &mut self.params, &grads)?;
        Ok(report)
    }
}
