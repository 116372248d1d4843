//! Which rows of which sequences make up the next step, and in which cache blocks.
//!
//! Continuous batching: every step takes one row (and drafts) of each decoding sequence and fills up with chunks of
//! prompts. Sequences are admitted first come, first served within a priority, as far as cache blocks reach; when blocks run
//! out, the last in rank is preempted and computed again later, to the same tokens. What a row computes depends on
//! neither the chunks nor the neighbours, so nothing here changes any text.

use fathom_core::{LatentForm, Tensor};
use fathom_model::{Batch, Input, Logits};
use fathom_picture::Picture;

use crate::Result;

use crate::blocks::{BlockPool, Copy};
use crate::drawing::Easel;
use crate::prefix::{Cache, Reuse};
use crate::runner::RunnerInfo;
use crate::sequence::Sequence;

/// How steps are made up.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduleOptions {
    /// Rows per step at most. Decoding rows come first; prompts get a block's worth even if these fill it.
    pub step_tokens: usize,
    /// Sequences in a step at most.
    pub sequences: usize,
    /// Use of the prefix cache.
    pub reuse: Reuse,
}

impl Default for ScheduleOptions {
    fn default() -> Self {
        ScheduleOptions { step_tokens: 512, sequences: 64, reuse: Reuse::default() }
    }
}

/// A sequence's part in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Place in [`Scheduler::running`].
    pub sequence: usize,
    /// Position of its first row.
    pub start: usize,
    /// First row in the batch.
    pub row: usize,
    /// Rows of known tokens.
    pub rows: usize,
    /// Rows of drafts behind them.
    pub drafts: usize,
    /// Place of its first row of logits in the output.
    pub first_logits: usize,
    /// Rows of logits.
    pub logits: usize,
}

/// One step.
#[derive(Debug)]
pub struct Step {
    /// Copies to make before it.
    pub copies: Vec<Copy>,
    /// Rows to compute.
    pub batch: Batch,
    /// Whose they are.
    pub segments: Vec<Segment>,
}

/// Sequences that wait and run, and the cache between them.
pub struct Scheduler {
    options: ScheduleOptions,
    cache: Cache,
    /// In rank order.
    waiting: Vec<Sequence>,
    /// In rank order.
    running: Vec<Sequence>,
    step: Step,
    /// Rows that each running sequence gets in the step; scratch.
    shares: Vec<usize>,
    /// Running sequences with prompt left to compute; scratch.
    prefills: Vec<usize>,
}

/// Rows of a prompt's logits per step at most: each is as long as the vocabulary.
const PROMPT_LOGIT_ROWS: usize = 64;

impl Scheduler {
    /// A scheduler over the cache of a runner.
    pub fn new(info: &RunnerInfo, options: ScheduleOptions) -> Self {
        Scheduler {
            cache: Cache::new(info, options.reuse),
            options,
            waiting: Vec::new(),
            running: Vec::new(),
            step: Step { copies: Vec::new(), batch: Batch::new(info.block_tokens), segments: Vec::new() },
            shares: Vec::new(),
            prefills: Vec::new(),
        }
    }

    /// Lets a sequence wait for its turn.
    pub fn add(&mut self, sequence: Sequence) {
        let at = self.waiting.partition_point(|other| other.rank() < sequence.rank());
        self.waiting.insert(at, sequence);
    }

    /// Sequences that wait, in rank order.
    pub fn waiting(&self) -> &[Sequence] {
        &self.waiting
    }

    /// Sequences that have a place in the batch, in rank order.
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// One of them.
    pub fn sequence(&mut self, at: usize) -> &mut Sequence {
        &mut self.running[at]
    }

    /// All sequences, for setting their flags.
    pub fn sequences(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.running.iter_mut().chain(&mut self.waiting)
    }

    /// Cache blocks.
    pub fn pool(&self) -> &BlockPool {
        self.cache.pool()
    }

    /// The same, for what is not a sequence.
    pub fn pool_mut(&mut self) -> &mut BlockPool {
        self.cache.pool_mut()
    }

    /// Puts the rows of pictures into the step that was planned last; `see` makes them where nobody has yet.
    ///
    /// # Errors
    /// If `see` fails.
    pub fn show(&mut self, mut see: impl FnMut(&Picture) -> Result<Tensor>) -> Result<()> {
        for part in &self.step.segments {
            let positions = part.start..part.start + part.rows;
            let sequence = &mut self.running[part.sequence];
            for seen in &mut sequence.seen {
                let (from, to) = (positions.start.max(seen.at.start), positions.end.min(seen.at.end));
                if from < to {
                    let rows = match &seen.rows {
                        Some(rows) => rows,
                        None => seen.rows.insert(see(&seen.picture)?),
                    };
                    let of = from - seen.at.start..to - seen.at.start;
                    let row = part.row + from - part.start;
                    self.step.batch.inputs.push((row..row + of.len(), Input::Rows(rows.clone(), of)));
                }
            }
        }
        Ok(())
    }

    /// Lets drawings add their rows to the step that was planned last. Returns whether there are any to work on.
    pub fn place(&mut self, easel: &mut Easel) -> bool {
        easel.place(self.cache.pool_mut(), &mut self.step.batch)
    }

    /// The step that was planned last.
    pub fn step(&self) -> &Step {
        &self.step
    }

    /// Takes out one sequence for which `test` holds and gives back its cache blocks. Ends the validity of the step's
    /// segments.
    pub fn take_out(&mut self, test: impl Fn(&Sequence) -> bool) -> Option<Sequence> {
        if let Some(at) = self.running.iter().position(&test) {
            let mut sequence = self.running.remove(at);
            self.cache.release(&mut sequence);
            return Some(sequence);
        }
        self.waiting.iter().position(&test).map(|at| self.waiting.remove(at))
    }

    /// Makes up the next step, of about `budget` rows and at most [`ScheduleOptions::step_tokens`].
    /// Newly admitted sequences are told so.
    pub fn plan(&mut self, budget: usize) -> &Step {
        self.step.copies.clear();
        self.step.batch.clear();
        self.step.segments.clear();
        self.admit();
        self.share_out(budget.min(self.options.step_tokens));
        // In rank order, so that whoever is preempted for want of blocks has nothing reserved in this step yet.
        let mut at = 0;
        while at < self.running.len() {
            at = self.reserve(at);
        }
        for at in 0..self.running.len() {
            if self.shares[at] > 0 {
                self.place_share(at);
            }
        }
        &self.step
    }

    /// Notes that a step has computed a segment's known tokens and that `accepted` of its drafts were right.
    pub fn advance(&mut self, segment: usize, accepted: usize) {
        let Segment { sequence, rows, .. } = self.step.segments[segment];
        self.cache.advance(&mut self.running[sequence], rows + accepted);
    }

    fn admit(&mut self) {
        // Who cannot take more events does not hold up the others.
        while let Some(at) = self.waiting.iter().position(|s| !s.paused) {
            let mut sequence = self.waiting.remove(at);
            if self.running.len() < self.options.sequences {
                self.cache.find(&mut sequence);
                if self.running.is_empty() || self.fits(&sequence) {
                    sequence.admit();
                    let at = self.running.partition_point(|other| other.rank() < sequence.rank());
                    self.running.insert(at, sequence);
                    continue;
                }
                self.cache.release(&mut sequence);
            }
            let priority = sequence.request.priority;
            self.waiting.insert(at, sequence);
            // Room is made by the paused and by lower priorities, not by later arrivals.
            let yields = |s: &Sequence| s.paused || s.request.priority > priority;
            match self.running.iter().rposition(yields) {
                Some(victim) => self.preempt(victim),
                None => return,
            }
        }
    }

    /// Whether there are idle blocks for a sequence, beside those that the running ones are going to want soon.
    fn fits(&self, sequence: &Sequence) -> bool {
        let promised: usize = self.running.iter().map(|s| self.cache.wants(s) + 1).sum();
        self.pool().idle() >= promised + self.cache.wants(sequence)
    }

    /// Decides how many rows each running sequence gets.
    fn share_out(&mut self, budget: usize) {
        self.shares.clear();
        self.shares.resize(self.running.len(), 0);
        self.prefills.clear();
        let mut left = budget;
        for at in 0..self.running.len() {
            let (before, rest) = self.running.split_at_mut(at);
            let sequence = &mut rest[0];
            if sequence.paused {
                continue;
            }
            if sequence.decoding() {
                self.shares[at] = 1 + sequence.drafts();
                left = left.saturating_sub(self.shares[at]);
                continue;
            }
            // What another sequence has computed meanwhile, or is computing in this step, is not computed twice.
            self.cache.find(sequence);
            if !self.prefills.iter().any(|&other| self.cache.same_next_block(sequence, &mut before[other])) {
                self.prefills.push(at);
            }
        }
        left = left.max(self.pool().block_tokens());
        // The first in rank gets half at once, then the shortest come first: long prompts neither starve nor obstruct.
        let mut prefills = std::mem::take(&mut self.prefills);
        let first = prefills.first().map(|&at| (at, left.div_ceil(2)));
        prefills.sort_by_key(|&at| self.running[at].remaining());
        for (at, most) in first.into_iter().chain(prefills.iter().map(|&at| (at, usize::MAX))) {
            let share = self.chunk(at, (self.shares[at] + left).min(most));
            left -= share.saturating_sub(self.shares[at]);
            self.shares[at] = self.shares[at].max(share);
        }
        self.prefills = prefills;
    }

    /// How many of `most` rows a sequence can use.
    fn chunk(&self, at: usize, most: usize) -> usize {
        let sequence = &self.running[at];
        let (from, prompt) = (sequence.computed, sequence.prompt());
        // A chunk never mixes prompt and answer: they are computed in different forms.
        let (end, most) = match from < prompt {
            true if sequence.request.prompt_logprobs.is_some() => (prompt, most.min(PROMPT_LOGIT_ROWS)),
            true => (prompt, most),
            false => (sequence.tokens().len(), most),
        };
        if from + most >= end {
            return end - from;
        }
        // Full blocks, if it gets that far: they can be shared at once.
        let tokens = self.pool().block_tokens();
        ((from + most) / tokens * tokens).checked_sub(from).filter(|&rows| rows > 0).unwrap_or(most)
    }

    /// Gets the blocks for the share of one sequence. Returns the place of the next.
    fn reserve(&mut self, mut at: usize) -> usize {
        while self.shares[at] > 0 {
            let sequence = &mut self.running[at];
            match self.cache.reserve(sequence, self.shares[at]) {
                Ok(copy) => {
                    self.step.copies.extend(copy);
                    break;
                }
                Err(_) if sequence.drafts() > 0 => {
                    sequence.set_drafts(&[]);
                    self.shares[at] = 1;
                }
                Err(_) => {
                    let paused = self.running.iter().rposition(|s| s.paused && !s.table.blocks().is_empty());
                    let victim = paused.unwrap_or(self.running.len() - 1);
                    self.preempt(victim);
                    self.shares.remove(victim);
                    match victim.cmp(&at) {
                        std::cmp::Ordering::Less => at -= 1,
                        std::cmp::Ordering::Equal => return at,
                        std::cmp::Ordering::Greater => {}
                    }
                }
            }
        }
        at + 1
    }

    /// Sends a running sequence back to wait. Nothing is lost but time.
    fn preempt(&mut self, at: usize) {
        let mut sequence = self.running.remove(at);
        self.cache.release(&mut sequence);
        sequence.set_drafts(&[]);
        sequence.usage.preempted += 1;
        self.add(sequence);
    }

    /// Writes the share of one sequence into the batch.
    fn place_share(&mut self, at: usize) {
        let (sequence, share) = (&self.running[at], self.shares[at]);
        let (start, drafts) = (sequence.computed, if sequence.decoding() { sequence.drafts() } else { 0 });
        let rows = share - drafts;
        let in_prompt = start < sequence.prompt();
        let form = if in_prompt { LatentForm::Plain } else { LatentForm::Absorbed };
        let (which, logits) = match () {
            () if in_prompt && sequence.request.prompt_logprobs.is_some() => (Logits::All, share),
            () if drafts > 0 => (Logits::All, share),
            () if start + rows == sequence.tokens().len() => (Logits::Last, 1),
            () => (Logits::None, 0),
        };
        let batch = &mut self.step.batch;
        let (row, first_logits) = (batch.rows(), batch.logit_rows.len());
        let tokens = &sequence.tokens_and_drafts()[start..start + share];
        batch.push(tokens, start, sequence.table.blocks(), form, which);
        self.step.segments.push(Segment { sequence: at, start, row, rows, drafts, first_logits, logits });
    }
}
