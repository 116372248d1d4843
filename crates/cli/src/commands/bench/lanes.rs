//! Sequences of random tokens on a model, stepped as the engine steps them.

use anyhow::Result;
use fathom_core::rng::Rng;
use fathom_core::{DType, LatentForm};
use fathom_engine::{ModelRunner, Runner as _, RunnerOptions, ScheduleOptions, StepOutput};
use fathom_model::{BLOCK, Batch, Logits};

/// What the cache must hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Size {
    /// Tokens of each sequence before anything is measured, at most.
    pub(super) depth: usize,
    /// Tokens of a prompt behind them, of which only the first sequence has one.
    pub(super) prompt: usize,
    /// Tokens that each sequence generates.
    pub(super) generate: usize,
    pub(super) sequences: usize,
}

impl Size {
    /// Tokens of the longest sequence.
    pub(super) fn longest(&self) -> usize {
        self.depth.saturating_add(self.prompt.max(self.generate))
    }

    /// Tokens of sequence `i`, in whole blocks.
    fn room(&self, i: usize) -> usize {
        let tokens = if i == 0 { self.longest() } else { self.depth.saturating_add(self.generate) };
        tokens.div_ceil(BLOCK).saturating_mul(BLOCK)
    }

    /// Tokens that the cache holds, all sequences together.
    pub(super) fn cache_tokens(&self) -> usize {
        self.room(0).saturating_add(self.room(1).saturating_mul(self.sequences - 1))
    }

    /// How a model is run for it.
    pub(super) fn options(&self, context: usize, kv: DType) -> RunnerOptions {
        let cache_tokens = Some(self.cache_tokens().max(context));
        RunnerOptions { context: Some(context), cache_tokens, kv, drafts: false }
    }
}

/// One sequence.
struct Lane {
    tokens: Vec<u32>,
    /// Blocks of the cache, its own.
    table: Vec<u32>,
}

pub(super) struct Lanes {
    runner: ModelRunner,
    /// The form in which prompts are computed.
    form: LatentForm,
    lanes: Vec<Lane>,
    batch: Batch,
    out: StepOutput,
}

impl Lanes {
    /// Over a runner that was made with [`Size::options`].
    pub(super) fn new(runner: ModelRunner, form: LatentForm, size: Size) -> Self {
        let (vocab, mut rng, mut block) = (runner.info().vocab as u32, Rng::new(1, 0), 0);
        let lanes = (0..size.sequences).map(|i| {
            let first = block;
            block += (size.room(i) / BLOCK) as u32;
            Lane { tokens: (0..size.room(i)).map(|_| rng.below(vocab)).collect(), table: (first..block).collect() }
        });
        let lanes = lanes.collect();
        Lanes { runner, form, lanes, batch: Batch::new(BLOCK), out: StepOutput::default() }
    }

    fn chunk(&mut self, from: usize, to: usize, logits: Logits) -> Result<()> {
        let lane = &self.lanes[0];
        self.batch.clear();
        self.batch.push(&lane.tokens[from..to], from, &lane.table, self.form, logits);
        Ok(self.runner.step(&self.batch, &mut self.out)?)
    }

    /// Tokens `0..depth` into the cache of every sequence: computed once, as a prompt in the engine's chunks, and copied to
    /// the others, since how long a step takes does not depend on what was said. `progress` is told how many are in.
    pub(super) fn fill(&mut self, depth: usize, mut progress: impl FnMut(usize)) -> Result<()> {
        let step = ScheduleOptions::default().step_tokens;
        for from in (0..depth).step_by(step) {
            progress(from);
            self.chunk(from, depth.min(from + step), Logits::None)?;
        }
        let (first, others) = self.lanes.split_first().expect("invariant: there is a sequence");
        for lane in others {
            for (i, at) in (0..depth).step_by(BLOCK).enumerate() {
                self.runner.copy_block(first.table[i], lane.table[i], BLOCK.min(depth - at))?;
            }
        }
        Ok(())
    }

    /// A prompt of `n` tokens behind `depth`, in the engine's chunks, up to its last logits.
    pub(super) fn prefill(&mut self, depth: usize, n: usize) -> Result<()> {
        let (step, end) = (ScheduleOptions::default().step_tokens, depth + n);
        for from in (depth..end).step_by(step) {
            let to = end.min(from + step);
            self.chunk(from, to, if to == end { Logits::Last } else { Logits::None })?;
        }
        Ok(())
    }

    /// `n` tokens behind `depth` for each of the first `sequences`, one by one, all sequences in one step.
    pub(super) fn decode(&mut self, depth: usize, n: usize, sequences: usize) -> Result<()> {
        for at in depth..depth + n {
            self.batch.clear();
            for lane in &self.lanes[..sequences] {
                self.batch.push(&lane.tokens[at..=at], at, &lane.table, LatentForm::Absorbed, Logits::Last);
            }
            self.runner.step(&self.batch, &mut self.out)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_holds_every_sequence_in_blocks_of_its_own() {
        let size = Size { depth: 2 * BLOCK, prompt: BLOCK + 1, generate: 3, sequences: 3 };
        assert_eq!(size.longest(), 3 * BLOCK + 1);
        assert_eq!(size.cache_tokens(), (4 + 2 * 3) * BLOCK);
        let one = Size { sequences: 1, ..size };
        assert_eq!(one.cache_tokens(), 4 * BLOCK);
        // Nonsense on the command line is refused by whoever compares this with the memory.
        assert!(Size { depth: usize::MAX, ..one }.longest() == usize::MAX);
    }
}
