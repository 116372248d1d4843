//! The cache as sequences see it: what they find in it, what they leave in it.
//!
//! [`blocks`](crate::blocks) knows blocks and items; here is which of a sequence's tokens make which items, and how much of it
//! may come from, and go to, the prefix cache.

use crate::blocks::{BlockPool, Copy, Item, OutOfBlocks};
use crate::runner::RunnerInfo;
use crate::sequence::Sequence;

/// Which cached blocks a sequence may take over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reuse {
    /// None.
    Off,
    /// Those that are bit for bit what it would compute.
    #[default]
    Exact,
    /// Also those that another form of attention computed (with latent attention, an earlier answer that is now part of a
    /// prompt): equal up to rounding.
    AnyForm,
}

/// Cache blocks and the rules of sharing them.
pub struct Cache {
    pool: BlockPool,
    reuse: Reuse,
    /// Whether generated tokens are other items than a prompt's.
    forms: bool,
    items: Vec<Item>,
}

impl Cache {
    /// The cache of a runner.
    pub fn new(info: &RunnerInfo, reuse: Reuse) -> Self {
        let pool = BlockPool::new(info.blocks, info.block_tokens);
        Cache { pool, reuse, forms: info.latent && reuse == Reuse::Exact, items: Vec::new() }
    }

    /// The blocks.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// The same, for who needs blocks of its own.
    pub fn pool_mut(&mut self) -> &mut BlockPool {
        &mut self.pool
    }

    /// Whether sequences share prefixes at all.
    pub fn shares(&self) -> bool {
        self.reuse != Reuse::Off
    }

    /// Blocks that a sequence needs beyond its own for all that it knows and one token more.
    pub fn wants(&self, sequence: &Sequence) -> usize {
        let all = (sequence.tokens().len() + 1).div_ceil(self.pool.block_tokens());
        all.saturating_sub(sequence.table.blocks().len())
    }

    /// Items of positions `from..to`.
    fn items(&mut self, sequence: &Sequence, from: usize, to: usize) {
        let forms = self.forms;
        self.items.clear();
        self.items.extend((from..to).map(|i| {
            let generated = forms && i >= sequence.prompt();
            sequence.item(i) | u64::from(generated) << 32
        }));
    }

    /// Makes sure that the sequence has its chain up to block `block`, all before which is known.
    fn extend_chain(&mut self, sequence: &mut Sequence, block: usize) {
        while sequence.chains.len() <= block {
            let (last, tokens) = (sequence.chains.len() - 1, self.pool.block_tokens());
            self.items(sequence, last * tokens, (last + 1) * tokens);
            sequence.chains.push(sequence.chains[last].push(&self.items));
        }
    }

    /// Advances a sequence over what the cache holds of it. The last known token is always left to compute: its logits are
    /// wanted.
    pub fn find(&mut self, sequence: &mut Sequence) {
        let tokens = self.pool.block_tokens();
        loop {
            let (from, last) = (sequence.computed, sequence.tokens().len() - 1);
            let whole = from.is_multiple_of(tokens) && sequence.table.blocks().len() * tokens == from;
            // Whoever wants the logits of its prompt must compute it.
            let reads = sequence.request.prompt_logprobs.is_none() || from >= sequence.prompt();
            if !self.shares() || !whole || !reads || from >= last {
                return;
            }
            self.extend_chain(sequence, from / tokens);
            self.items(sequence, from, last.min(from + tokens));
            let Some(hit) = self.pool.find(&sequence.chains[from / tokens], &self.items) else { return };
            // A part of a block must be copied, for which there has to be a block to spare.
            if hit.tokens < tokens && self.pool.idle() < self.wants(sequence) + 2 {
                return;
            }
            sequence.table.share(&mut self.pool, hit.block);
            sequence.computed += hit.tokens;
            sequence.offered = sequence.computed / tokens;
            if sequence.usage.preempted == 0 {
                sequence.usage.cached += hit.tokens;
            }
        }
    }

    /// Whether `other` is about to compute the very block that `sequence` needs next.
    pub fn same_next_block(&mut self, sequence: &mut Sequence, other: &mut Sequence) -> bool {
        let tokens = self.pool.block_tokens();
        let (at, next) = (sequence.computed / tokens, sequence.computed / tokens + 1);
        let known = sequence.tokens().len().min(other.tokens().len());
        let comparable = self.shares()
            && sequence.computed.is_multiple_of(tokens)
            && sequence.request.prompt_logprobs.is_none()
            && other.computed / tokens == at
            && known > next * tokens;
        if comparable {
            self.extend_chain(sequence, next);
            self.extend_chain(other, next);
        }
        comparable && sequence.chains[next] == other.chains[next]
    }

    /// Makes the next `rows` rows of a sequence writable.
    ///
    /// # Errors
    /// If the blocks run out.
    pub fn reserve(&mut self, sequence: &mut Sequence, rows: usize) -> Result<Option<Copy>, OutOfBlocks> {
        let from = sequence.computed;
        sequence.table.reserve(&mut self.pool, from, from + rows)
    }

    /// Notes that `rows` more rows are computed; gives back blocks behind them and offers full ones to other sequences.
    pub fn advance(&mut self, sequence: &mut Sequence, rows: usize) {
        sequence.computed += rows;
        sequence.table.truncate(&mut self.pool, sequence.computed);
        self.offer(sequence, false);
    }

    /// Gives back all blocks; what is computed in them can still be found.
    pub fn release(&mut self, sequence: &mut Sequence) {
        self.offer(sequence, true);
        sequence.table.release(&mut self.pool);
        (sequence.computed, sequence.offered) = (0, 0);
        if !sequence.begun() {
            sequence.usage.cached = 0;
        }
    }

    /// Publishes computed blocks that are full, and the tail if asked to.
    fn offer(&mut self, sequence: &mut Sequence, tail: bool) {
        let tokens = self.pool.block_tokens();
        let blocks = if tail { sequence.computed.div_ceil(tokens) } else { sequence.computed / tokens };
        while self.shares() && sequence.offered < blocks {
            let (at, from) = (sequence.offered, sequence.offered * tokens);
            self.extend_chain(sequence, at);
            self.items(sequence, from, sequence.computed.min(from + tokens));
            self.pool.publish(sequence.table.blocks()[at], sequence.chains[at], &self.items);
            sequence.offered += 1;
        }
    }
}
