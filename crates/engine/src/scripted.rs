//! A runner without weights, for tests of everything above it.
//!
//! Its logits are a fixed pseudo-random function of the whole item history, which it reads back through the block table
//! slot by slot. So any mistake in blocks, slots, positions, sharing, order or attention form changes the tokens; and a
//! sequence's right tokens can be computed alone, by [`ScriptedRunner::lone`].

use fathom_core::LatentForm;
use fathom_model::Batch;

use crate::{Result, Runner, RunnerInfo, StepOutput};

/// See the module.
#[derive(Clone, Debug)]
pub struct ScriptedRunner {
    info: RunnerInfo,
    /// What stands in every cache slot; 0 = never written.
    slots: Vec<u64>,
    /// The drafting layer's slots.
    draft_slots: Vec<u64>,
    /// Slots that the last step wrote, sorted; scratch.
    written: Vec<u32>,
    /// History hash of every row of the last step: the "hidden state".
    hidden: Vec<u64>,
    /// One draft in this many is wrong; 0 = none.
    wrong_draft_every: u64,
    /// Rows computed so far.
    pub rows: u64,
}

/// splitmix64 (Steele, Lea and Flood 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn fold(hash: u64, item: u64) -> u64 {
    mix(hash ^ mix(item))
}

fn item(token: u32, position: usize, form: LatentForm) -> u64 {
    let form = u64::from(form == LatentForm::Absorbed);
    mix(u64::from(token) << 33 | (position as u64) << 1 | form) | 1
}

/// Logits in `[-4, 4)` that the history decides.
fn write_logits(hash: u64, out: &mut [f32]) {
    for (i, logit) in out.iter_mut().enumerate() {
        *logit = (fold(hash, i as u64) >> 40) as f32 / (1u64 << 21) as f32 - 4.0;
    }
}

impl ScriptedRunner {
    /// A runner with the given dimensions, one of whose drafts in `wrong_draft_every` misses (0 = none).
    pub fn new(info: RunnerInfo, wrong_draft_every: u64) -> Self {
        let slots = vec![0; info.cache_tokens()];
        let (written, hidden) = (Vec::new(), Vec::new());
        ScriptedRunner { draft_slots: slots.clone(), slots, written, hidden, info, wrong_draft_every, rows: 0 }
    }

    /// The logits after a history, computed without any cache: the first `prompt` tokens in the plain form, the others in
    /// the absorbed one (if this runner has two).
    pub fn lone(&self, tokens: &[u32], prompt: usize) -> Vec<f32> {
        let form = |i| if i < prompt { LatentForm::Plain } else { LatentForm::Absorbed };
        let hash = tokens.iter().enumerate().fold(0, |h, (i, &t)| fold(h, self.item(t, i, form(i))));
        let mut logits = vec![0.0; self.info.vocab];
        write_logits(hash, &mut logits);
        logits
    }

    fn item(&self, token: u32, position: usize, form: LatentForm) -> u64 {
        item(token, position, if self.info.latent { form } else { LatentForm::Plain })
    }
}

impl Runner for ScriptedRunner {
    fn info(&self) -> &RunnerInfo {
        &self.info
    }

    fn step(&mut self, batch: &Batch, out: &mut StepOutput) -> Result<()> {
        assert!(!batch.is_empty(), "invariant: a step computes at least one row");
        assert_eq!(batch.block, self.info.block_tokens, "invariant: the batch is cut like the cache");
        self.rows += batch.rows() as u64;
        self.written.clear();
        self.written.extend(&batch.slots);
        self.written.sort_unstable();
        assert!(self.written.windows(2).all(|w| w[0] != w[1]), "invariant: no two rows of a step share a slot");
        for span in &batch.spans {
            for i in span.row..span.row + span.rows {
                let position = batch.positions[i] as usize;
                assert!(position < self.info.context, "invariant: no position lies beyond the context");
                self.slots[batch.slots[i] as usize] = self.item(batch.tokens[i], position, span.form);
            }
        }
        let spans = batch.spans();
        self.hidden.clear();
        for span in spans.spans {
            let mut hash = (0..span.start).fold(0, |h, p| fold(h, self.slots[spans.slot(span, p)]));
            for p in span.start..span.start + span.rows {
                hash = fold(hash, self.slots[spans.slot(span, p)]);
                self.hidden.push(hash);
            }
        }
        out.reset(batch.logit_rows.len(), self.info.vocab);
        for (i, &row) in batch.logit_rows.iter().enumerate() {
            write_logits(self.hidden[row as usize], out.row_mut(i));
        }
        Ok(())
    }

    fn hidden(&mut self, row: u32, out: &mut Vec<f32>) -> Result<()> {
        out.resize(4, 0.0);
        write_logits(!self.hidden[row as usize], out);
        Ok(())
    }

    fn copy_block(&mut self, from: u32, to: u32, tokens: usize) -> Result<()> {
        let (from, to) = (from as usize * self.info.block_tokens, to as usize * self.info.block_tokens);
        self.slots.copy_within(from..from + tokens, to);
        self.draft_slots.copy_within(from..from + tokens, to);
        Ok(())
    }

    fn draft(&mut self, batch: &Batch, rows: &[u32], out: &mut StepOutput) -> Result<()> {
        assert!(self.info.drafts, "invariant: only a runner with a drafting head is asked to draft");
        assert_eq!(batch.rows(), rows.len(), "invariant: every drafting row has a hidden state");
        for (i, &row) in rows.iter().enumerate() {
            assert!((row as usize) < self.hidden.len(), "invariant: a drafting row follows a row of the last step");
            self.draft_slots[batch.slots[i] as usize] = u64::from(batch.tokens[i]) + 1;
        }
        out.reset(batch.logit_rows.len(), self.info.vocab);
        for (i, &row) in batch.logit_rows.iter().enumerate() {
            let row = row as usize;
            let (token, position) = (batch.tokens[row], batch.positions[row] as usize + 1);
            let mut hash = fold(self.hidden[rows[row] as usize], self.item(token, position, LatentForm::Absorbed));
            if self.wrong_draft_every > 0 && mix(hash).is_multiple_of(self.wrong_draft_every) {
                hash = !hash;
            }
            write_logits(hash, out.row_mut(i));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fathom_model::Logits;

    fn runner() -> ScriptedRunner {
        let info = RunnerInfo {
            vocab: 16,
            context: 64,
            block_tokens: 4,
            blocks: 8,
            latent: true,
            drafts: false,
            pictures: None,
        };
        ScriptedRunner::new(info, 0)
    }

    fn run(runner: &mut ScriptedRunner, parts: &[(&[u32], usize, LatentForm)], table: &[u32]) -> Vec<f32> {
        let (mut batch, mut out) = (Batch::new(4), StepOutput::default());
        for &(tokens, start, form) in parts {
            batch.clear();
            batch.push(tokens, start, table, form, Logits::Last);
            runner.step(&batch, &mut out).unwrap();
        }
        out.row(0).to_vec()
    }

    #[test]
    fn history_decides_and_cutting_does_not() {
        let (plain, absorbed) = (LatentForm::Plain, LatentForm::Absorbed);
        let want = runner().lone(&[5, 6, 7, 8, 9, 3], 5);
        let cut: &[(&[u32], usize, LatentForm)] = &[(&[5, 6], 0, plain), (&[7, 8, 9], 2, plain), (&[3], 5, absorbed)];
        assert_eq!(run(&mut runner(), cut, &[6, 1]), want);
        assert_ne!(run(&mut runner(), &[(&[5, 6, 7, 8, 9, 3], 0, plain)], &[6, 1]), want, "another form");
        assert_ne!(run(&mut runner(), &[(&[5, 6, 7, 8, 9], 0, plain), (&[4], 5, absorbed)], &[6, 1]), want, "token");
        let mut r = runner();
        run(&mut r, &cut[..2], &[6, 1]);
        assert_ne!(run(&mut r, &cut[2..], &[5, 1]), want, "a wrong block gives wrong logits");
    }
}
