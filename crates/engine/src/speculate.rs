//! Guessing tokens ahead, to verify several in one step.
//!
//! A draft is accepted only if it equals the token that the sampler draws at its place, from the same logits and with the
//! same random number as without drafts (rejected drafts use up none). So the text is exactly the text without speculation,
//! greedy or sampled; only the number of steps changes. A sequence whose drafts mostly fail stops drafting for a while.

use std::ops::Range;

use fathom_core::LatentForm;
use fathom_model::{Batch, Logits};

use crate::scheduler::Scheduler;
use crate::{Result, Runner, StepOutput};

/// How drafts are made.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Speculation {
    /// Not at all.
    #[default]
    Off,
    /// By the model's own drafting head, one token ahead (V3 paper, section 2.2).
    Head,
    /// By looking up the newest tokens earlier in the sequence and repeating what followed (Saxena 2023).
    Lookup {
        /// Tokens that must match.
        ngram: usize,
        /// Tokens guessed at most.
        ahead: usize,
    },
}

/// When drafting is worth it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DraftPolicy {
    /// Drafting stops while more sequences than this decode: the batch is full without.
    pub sequences: usize,
    /// Share of the last 32 drafts that must have been right.
    pub worth: f32,
    /// Tokens for which a sequence whose drafts were not worth it does not draft.
    pub rest: usize,
}

impl Default for DraftPolicy {
    fn default() -> Self {
        DraftPolicy { sequences: 4, worth: 0.3, rest: 128 }
    }
}

/// How well a sequence's drafts did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    drafted: usize,
    accepted: usize,
    rests_until: usize,
}

impl Record {
    /// Notes a verification; `tokens` is the length of the sequence.
    pub fn note(&mut self, drafted: usize, accepted: usize, tokens: usize, policy: &DraftPolicy) {
        self.drafted += drafted;
        self.accepted += accepted;
        if self.drafted >= 32 {
            if (self.accepted as f32) < policy.worth * self.drafted as f32 {
                self.rests_until = tokens + policy.rest;
            }
            (self.drafted, self.accepted) = (0, 0);
        }
    }

    /// Whether drafting is worth trying.
    pub fn drafts(&self, tokens: usize) -> bool {
        tokens >= self.rests_until
    }
}

/// Gives sequences drafts after a step.
pub trait Proposer: Send {
    /// Sets the drafts of the sequences in `scheduler`'s last step, all of which stand as that step left them. `runner` has just
    /// computed it.
    ///
    /// # Errors
    /// If the runner fails.
    fn propose(&mut self, scheduler: &mut Scheduler, runner: &mut dyn Runner, policy: &DraftPolicy) -> Result<()>;
}

/// Whether the sequence of a segment wants drafts for the next step.
fn wants(scheduler: &Scheduler, sequence: usize) -> bool {
    let sequence = &scheduler.running()[sequence];
    sequence.ended.is_none()
        && sequence.decoding()
        && sequence.room_for_drafts() > 0
        && sequence.record.drafts(sequence.tokens().len())
}

fn too_many(scheduler: &Scheduler, policy: &DraftPolicy) -> bool {
    scheduler.running().iter().filter(|s| s.decoding()).count() > policy.sequences
}

/// See [`Speculation::Lookup`].
#[derive(Debug)]
pub struct Lookup {
    /// Tokens that must match.
    pub ngram: usize,
    /// Tokens guessed at most.
    pub ahead: usize,
}

impl Lookup {
    /// Where that stands which followed the newest tokens when they last stood in the sequence before.
    pub fn find(&self, tokens: &[u32]) -> Range<usize> {
        let Some(at) = tokens.len().checked_sub(self.ngram) else { return 0..0 };
        let newest = &tokens[at..];
        let found = tokens[..tokens.len() - 1].windows(self.ngram).rposition(|w| w == newest);
        found.map_or(0..0, |i| i + self.ngram..tokens.len().min(i + self.ngram + self.ahead))
    }
}

impl Proposer for Lookup {
    fn propose(&mut self, scheduler: &mut Scheduler, _: &mut dyn Runner, policy: &DraftPolicy) -> Result<()> {
        if too_many(scheduler, policy) {
            return Ok(());
        }
        for segment in 0..scheduler.step().segments.len() {
            let at = scheduler.step().segments[segment].sequence;
            if wants(scheduler, at) {
                let found = self.find(scheduler.running()[at].tokens());
                scheduler.sequence(at).draft_again(found);
            }
        }
        Ok(())
    }
}

/// See [`Speculation::Head`].
#[derive(Debug)]
pub struct Head {
    batch: Batch,
    rows: Vec<u32>,
    wanting: Vec<usize>,
    out: StepOutput,
}

impl Head {
    /// A proposer for a runner with blocks of `block_tokens`.
    pub fn new(block_tokens: usize) -> Self {
        let (rows, wanting, out) = (Vec::new(), Vec::new(), StepOutput::default());
        Head { batch: Batch::new(block_tokens), rows, wanting, out }
    }
}

impl Proposer for Head {
    fn propose(&mut self, scheduler: &mut Scheduler, runner: &mut dyn Runner, policy: &DraftPolicy) -> Result<()> {
        self.batch.clear();
        self.rows.clear();
        self.wanting.clear();
        let many = too_many(scheduler, policy);
        for segment in &scheduler.step().segments {
            let sequence = &scheduler.running()[segment.sequence];
            if sequence.ended.is_some() {
                continue;
            }
            // Rejected drafts left no row behind.
            let (start, end) = (segment.start, sequence.computed);
            let form = if start < sequence.prompt() { LatentForm::Plain } else { LatentForm::Absorbed };
            let wants = !many && wants(scheduler, segment.sequence);
            let logits = if wants { Logits::Last } else { Logits::None };
            // Every row goes through, drafts wanted or not: the head has a cache of its own to fill.
            self.batch.push(&sequence.tokens()[start + 1..end + 1], start, sequence.table.blocks(), form, logits);
            self.rows.extend((segment.row..segment.row + end - start).map(|row| row as u32));
            if wants {
                self.wanting.push(segment.sequence);
            }
        }
        if self.batch.is_empty() {
            return Ok(());
        }
        runner.draft(&self.batch, &self.rows, &mut self.out)?;
        for (i, &at) in self.wanting.iter().enumerate() {
            let logits = self.out.row(i);
            let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
            let best = (1..logits.len()).fold(0, better);
            scheduler.sequence(at).set_drafts(&[best as u32]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookup_repeats_the_newest_match() {
        let lookup = Lookup { ngram: 2, ahead: 3 };
        assert_eq!(lookup.find(&[1, 2, 3, 4, 5, 1, 2]), 2..5);
        assert_eq!(lookup.find(&[1, 2, 3, 1, 2, 9, 1, 2]), 5..8);
        assert_eq!(lookup.find(&[7, 7, 7]), 2..3);
        assert_eq!(lookup.find(&[1, 2, 3]), 0..0);
        assert_eq!(lookup.find(&[1]), 0..0);
        assert_eq!(lookup.find(&[1, 2]), 0..0);
    }

    #[test]
    fn bad_drafts_rest() {
        let policy = DraftPolicy::default();
        let mut record = Record::default();
        (0..32).for_each(|i| record.note(1, usize::from(i % 2 == 0), i, &policy));
        assert!(record.drafts(32), "half right is worth it");
        (0..32).for_each(|i| record.note(1, 0, 40 + i, &policy));
        assert!(!record.drafts(80));
        assert!(record.drafts(71 + 128));
    }
}
