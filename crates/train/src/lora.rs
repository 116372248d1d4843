//! An adapter for an existing model, from conversations (Hu et al. 2021; over quantised weights as Dettmers et al. 2023).
//!
//! The model's own weights stay as their file has them; beside chosen projections stand two small matrices that learn. Blocks are
//! computed again on the way back, so that a sequence takes the memory of one block.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fathom_core::Grad;
use fathom_core::rng::Rng;
use fathom_model::Model;
use fathom_model::adapter::targets;

use crate::error::{Error, Result};
use crate::optim::Optimiser;
use crate::params::Params;
use crate::trainer::{Example, Trainer};

/// How to learn.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Rank of the matrices.
    pub rank: usize,
    /// The product of the matrices counts alpha / rank.
    pub alpha: f32,
    /// Names of the projections, as [`targets`] lists them; none: all.
    pub modules: Vec<String>,
    /// Highest learning rate.
    pub lr: f32,
    /// Share of the steps in which it rises; then it falls along a cosine to a tenth.
    pub warmup: f64,
    /// Decoupled weight decay.
    pub decay: f32,
    /// How often every example is learned from.
    pub epochs: usize,
    /// Examples per step.
    pub batch: usize,
    /// Rows that go through the model together.
    pub rows: usize,
    /// Of the matrices' beginning and the order of the examples.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            rank: 16,
            alpha: 32.0,
            modules: Vec::new(),
            lr: 2e-4,
            warmup: 0.03,
            decay: 0.0,
            epochs: 3,
            batch: 8,
            rows: 1024,
            seed: 0,
        }
    }
}

/// Where learning is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Steps taken,
    pub step: usize,
    /// of so many.
    pub steps: usize,
    /// Mean cross-entropy of the answers' tokens in this step, in nats.
    pub loss: f64,
    /// Norm of the derivatives before clipping.
    pub norm: f64,
    /// Learning rate.
    pub lr: f32,
    /// Tokens that went through the model until now, prompts included.
    pub tokens: usize,
    /// Time taken until now.
    pub took: Duration,
    /// Time that is left at this pace.
    pub left: Duration,
}

/// The names of a model's projections, each once.
pub fn modules(model: &Model) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (name, _) in targets(&model.spec) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// A model with an adapter that learns.
pub struct Lora {
    trainer: Trainer,
    settings: Settings,
}

impl Lora {
    /// A new adapter beside `model`.
    ///
    /// # Errors
    /// If the settings name a projection that the model does not have.
    pub fn new(mut model: Model, mut settings: Settings, backend: Arc<dyn Grad>) -> Result<Self> {
        let known = modules(&model);
        if settings.modules.is_empty() {
            settings.modules.clone_from(&known);
        }
        if let Some(name) = settings.modules.iter().find(|m| !known.contains(m)) {
            let expected = format!("one of {}", known.join(", "));
            return Err(Error::Setting { key: "modules", found: name.clone(), expected });
        }
        // A prediction block drafts what the model will say; what that is changes here, so its own opinion does not count.
        model.spec.mtp = None;
        let params = Params::lora(model, &settings.modules, settings.rank, settings.alpha, settings.seed);
        let mut optimiser = Optimiser::new(&params, false);
        (optimiser.adamw.beta2, optimiser.adamw.decay) = (0.999, settings.decay);
        let mut trainer = Trainer::new(params, optimiser, backend);
        (trainer.recompute, trainer.step_rows) = (true, settings.rows);
        Ok(Lora { trainer, settings })
    }

    /// Numbers that learn.
    pub fn parameters(&self) -> usize {
        self.trainer.params.all.iter().map(|p| p.values().len()).sum()
    }

    /// Learns from `examples`; `watch` is told of every step and says whether to go on. Returns whether it was learned to the end.
    ///
    /// # Errors
    /// If the backend fails, or the loss is no number any more.
    pub fn learn(&mut self, examples: &[Example], mut watch: impl FnMut(&Progress) -> bool) -> Result<bool> {
        let Settings { batch, epochs, lr, warmup, seed, .. } = self.settings;
        let steps = examples.len().div_ceil(batch) * epochs;
        let start = Instant::now();
        let (mut step, mut tokens) = (0, 0);
        for epoch in 0..epochs {
            let order = shuffled(examples.len(), &mut Rng::new(seed, 1 << 32 | epoch as u64));
            for chosen in order.chunks(batch) {
                step += 1;
                let some: Vec<Example> = chosen.iter().map(|i| examples[*i].clone()).collect();
                let lr = schedule(step, steps, lr, warmup);
                let report = self.trainer.step(&some, lr)?;
                tokens += report.tokens;
                if !report.loss.is_finite() {
                    return Err(Error::Diverged {
                        stage: "lora",
                        step: step as u64,
                        loss: report.loss,
                        checkpoint: "none: nothing was saved".to_owned(),
                    });
                }
                let took = start.elapsed();
                let left = took.mul_f64((steps - step) as f64 / step as f64);
                let (loss, norm) = (report.loss, report.norm);
                if !watch(&Progress { step, steps, loss, norm, lr, tokens, took, left }) {
                    return Ok(step == steps);
                }
            }
        }
        Ok(true)
    }

    /// Writes the adapter in PEFT's layout; `base` names the model.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub fn save(&self, dir: &Path, base: &str) -> Result<()> {
        let adapter = self.trainer.params.adapter().expect("invariant: these parameters are an adapter");
        Ok(adapter.save(dir, &self.trainer.params.spec, base, &[("made_by", "fathom train lora")])?)
    }
}

/// The learning rate of a step, from 1.
fn schedule(step: usize, steps: usize, peak: f32, warmup: f64) -> f32 {
    let rising = ((steps as f64 * warmup) as usize).max(1);
    let factor = if step <= rising {
        step as f64 / rising as f64
    } else {
        let along = (step - rising) as f64 / (steps - rising).max(1) as f64;
        0.1 + 0.9 * 0.5 * (1.0 + (std::f64::consts::PI * along).cos())
    };
    (f64::from(peak) * factor) as f32
}

/// Numbers below `n` in random order (Fisher and Yates).
fn shuffled(n: usize, rng: &mut Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.below(i as u32 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls() {
        let rates: Vec<f32> = (1..=100).map(|s| schedule(s, 100, 1.0, 0.1)).collect();
        assert!(rates[..10].is_sorted() && (rates[9] - 1.0).abs() < 1e-6);
        assert!(rates[9..].iter().rev().is_sorted() && (rates[99] - 0.1).abs() < 1e-6, "{}", rates[99]);
        assert_eq!(schedule(1, 1, 0.5, 0.03), 0.5);
    }

    #[test]
    fn an_order_has_every_number_once() {
        let order = shuffled(50, &mut Rng::new(1, 1));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted == (0..50).collect::<Vec<_>>() && order != sorted);
    }
}
