//! Who owns which cache block: reference counts, the prefix cache, eviction.
//!
//! The cache is cut into blocks of equal length. A sequence's [`BlockTable`] names its blocks in order; several tables may
//! hold one block as long as nobody writes to it. What a finished sequence leaves behind stays, findable by what
//! stands before it, until its memory is wanted: least recently released first. A block is found by the chained hash of
//! all items before it, and its own items are then compared one by one. Only bookkeeping lives here; the numbers themselves
//! belong to the runner.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

/// What stands at one position, as far as reuse must know: a token (with the attention form that computed it, where
/// forms differ), or the hash of an image. Equal items, and equal items before them, mean equal cache contents.
pub type Item = u64;

/// Chained hash of everything before a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chain([u8; 32]);

impl Chain {
    /// The start of all sequences that may share blocks: same tenant, same adapter. `salt` tells them apart.
    pub fn root(salt: &[u8]) -> Self {
        Chain(Sha256::digest(salt).into())
    }

    /// The chain after one more full block.
    pub fn push(&self, items: &[Item]) -> Self {
        let mut hash = Sha256::new_with_prefix(self.0);
        items.iter().for_each(|item| hash.update(item.to_le_bytes()));
        Chain(hash.finalize().into())
    }
}

/// No block: the end of a list.
const NONE: u32 = u32::MAX;

#[derive(Clone, Debug)]
struct Block {
    /// Tables that hold it.
    holders: u32,
    /// What it holds, if it can be found: the chain before it, and how many of its items count.
    published: Option<(Chain, u32)>,
    /// Neighbours in the list of blocks without holders, oldest release first.
    older: u32,
    newer: u32,
}

/// All cache blocks of one runner.
#[derive(Clone, Debug)]
pub struct BlockPool {
    block_tokens: usize,
    blocks: Vec<Block>,
    /// `[blocks, block_tokens]`: the items of published blocks.
    items: Vec<Item>,
    /// Blocks that can be found, by the chain before them.
    below: HashMap<Chain, Vec<u32>>,
    oldest: u32,
    newest: u32,
    idle: usize,
}

/// What the prefix cache holds of a sequence at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The block.
    pub block: u32,
    /// How many of its first tokens are wanted; all of them, or the block must be copied before it is written.
    pub tokens: usize,
}

impl BlockPool {
    /// A pool of empty blocks.
    pub fn new(blocks: usize, block_tokens: usize) -> Self {
        assert!(block_tokens > 0 && blocks < NONE as usize, "invariant: block numbers fit into 32 bits");
        let empty = Block { holders: 0, published: None, older: NONE, newer: NONE };
        let mut pool = BlockPool {
            block_tokens,
            blocks: vec![empty; blocks],
            items: vec![0; blocks * block_tokens],
            below: HashMap::new(),
            oldest: NONE,
            newest: NONE,
            idle: 0,
        };
        (0..blocks as u32).for_each(|block| pool.enlist(block));
        pool
    }

    /// Tokens per block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks that [`BlockPool::take`] can still give: empty ones and unheld remains.
    pub fn idle(&self) -> usize {
        self.idle
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether the pool has no block at all.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Blocks that hold findable remains, held or not.
    pub fn published(&self) -> usize {
        self.blocks.iter().filter(|b| b.published.is_some()).count()
    }

    /// An empty block with one holder; forgets the remains that were released longest ago if it must.
    pub fn take(&mut self) -> Option<u32> {
        if self.oldest == NONE {
            return None;
        }
        let block = self.oldest;
        self.delist(block);
        self.unpublish(block);
        self.blocks[block as usize].holders = 1;
        Some(block)
    }

    /// One more holder.
    pub fn hold(&mut self, block: u32) {
        if self.blocks[block as usize].holders == 0 {
            self.delist(block);
        }
        self.blocks[block as usize].holders += 1;
    }

    /// One holder less.
    pub fn release(&mut self, block: u32) {
        let b = &mut self.blocks[block as usize];
        b.holders = b.holders.checked_sub(1).expect("invariant: only a held block is released");
        if b.holders == 0 {
            self.enlist(block);
        }
    }

    /// Whether the only holder may write to it: nobody else holds it or could find it.
    pub fn writable(&self, block: u32) -> bool {
        let b = &self.blocks[block as usize];
        b.holders == 1 && b.published.is_none()
    }

    /// Makes a held block findable: after `chain` it holds `items` (fewer than a block's worth for a sequence's tail).
    /// Does nothing if it can be found already or if the cache knows as much at this place.
    pub fn publish(&mut self, block: u32, chain: Chain, items: &[Item]) {
        assert!(items.len() <= self.block_tokens, "invariant: a block holds at most its tokens");
        let known = self.find(&chain, items).is_some_and(|hit| hit.tokens == items.len());
        if items.is_empty() || known || self.blocks[block as usize].published.is_some() {
            return;
        }
        self.blocks[block as usize].published = Some((chain, items.len() as u32));
        let at = block as usize * self.block_tokens;
        self.items[at..at + items.len()].copy_from_slice(items);
        self.below.entry(chain).or_default().push(block);
    }

    /// The block after `chain` that shares the longest prefix with `wanted`; of that at most a block's worth counts.
    pub fn find(&self, chain: &Chain, wanted: &[Item]) -> Option<Hit> {
        let shared = |&block: &u32| {
            let tokens = self.items_of(block).iter().zip(wanted).take_while(|(a, b)| a == b).count();
            Hit { block, tokens }
        };
        let best = self.below.get(chain)?.iter().map(shared).max_by_key(|hit| hit.tokens)?;
        (best.tokens > 0).then_some(best)
    }

    fn items_of(&self, block: u32) -> &[Item] {
        let count = self.blocks[block as usize].published.map_or(0, |(_, count)| count as usize);
        &self.items[block as usize * self.block_tokens..][..count]
    }

    fn unpublish(&mut self, block: u32) {
        let Some((chain, _)) = self.blocks[block as usize].published.take() else { return };
        let siblings = self.below.get_mut(&chain).expect("invariant: a published block stands below its chain");
        siblings.retain(|&b| b != block);
        if siblings.is_empty() {
            self.below.remove(&chain);
        }
    }

    /// Puts a block at the young end of the idle list; one that holds nothing at the old end, to be taken first.
    fn enlist(&mut self, block: u32) {
        let (older, newer) =
            if self.blocks[block as usize].published.is_some() { (self.newest, NONE) } else { (NONE, self.oldest) };
        self.blocks[block as usize].older = older;
        self.blocks[block as usize].newer = newer;
        self.link(older, newer, block, block);
        self.idle += 1;
    }

    fn delist(&mut self, block: u32) {
        let Block { older, newer, .. } = self.blocks[block as usize];
        self.link(older, newer, newer, older);
        self.idle -= 1;
    }

    /// Lets `older` be followed by `after_older`, and `newer` preceded by `before_newer`.
    fn link(&mut self, older: u32, newer: u32, after_older: u32, before_newer: u32) {
        match older {
            NONE => self.oldest = after_older,
            _ => self.blocks[older as usize].newer = after_older,
        }
        match newer {
            NONE => self.newest = before_newer,
            _ => self.blocks[newer as usize].older = before_newer,
        }
    }
}

/// A block that must be copied before a row is written into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Shared block.
    pub from: u32,
    /// The writer's own block.
    pub to: u32,
    /// Tokens that count in it.
    pub tokens: usize,
}

/// The pool has no block left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBlocks;

/// The blocks of one sequence, in order.
///
/// A table that is dropped with blocks in it leaks them; its owner calls [`BlockTable::release`].
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<u32>,
}

impl BlockTable {
    /// An empty table with room for `blocks` blocks.
    pub fn with_capacity(blocks: usize) -> Self {
        BlockTable { blocks: Vec::with_capacity(blocks) }
    }

    /// Block numbers.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Appends a block that the cache found.
    pub fn share(&mut self, pool: &mut BlockPool, block: u32) {
        pool.hold(block);
        self.blocks.push(block);
    }

    /// Makes positions `from..to` writable, where everything before `from` is computed: appends blocks, and replaces a
    /// shared block at `from` by one of its own, which the caller must fill as the returned copy says.
    ///
    /// # Errors
    /// If the pool runs out; what was appended until then stays in the table and is used by the next attempt.
    pub fn reserve(
        &mut self,
        pool: &mut BlockPool,
        from: usize,
        to: usize,
    ) -> std::result::Result<Option<Copy>, OutOfBlocks> {
        let (first, tokens) = (from / pool.block_tokens, from % pool.block_tokens);
        while self.blocks.len() < to.div_ceil(pool.block_tokens) {
            self.blocks.push(pool.take().ok_or(OutOfBlocks)?);
        }
        if from >= to || pool.writable(self.blocks[first]) {
            return Ok(None);
        }
        // A block whose contents are not wanted (tokens = 0) is replaced without a copy.
        let own = pool.take().ok_or(OutOfBlocks)?;
        let from = std::mem::replace(&mut self.blocks[first], own);
        pool.release(from);
        Ok((tokens > 0).then_some(Copy { from, to: own, tokens }))
    }

    /// Gives back the blocks that `tokens` tokens do not need (rejected drafts).
    pub fn truncate(&mut self, pool: &mut BlockPool, tokens: usize) {
        let keep = tokens.div_ceil(pool.block_tokens);
        // From the end, so that of the remains a chain's tail is forgotten before its head.
        while self.blocks.len() > keep {
            let block = self.blocks.pop().expect("invariant: longer than keep, so not empty");
            pool.release(block);
        }
    }

    /// Gives back all blocks.
    pub fn release(&mut self, pool: &mut BlockPool) {
        self.truncate(pool, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn items(range: std::ops::Range<u64>) -> Vec<Item> {
        range.collect()
    }

    #[test]
    fn a_prefix_is_found_and_compared() {
        let mut pool = BlockPool::new(4, 4);
        let root = Chain::root(b"tenant");
        let mut table = BlockTable::default();
        assert_eq!(table.reserve(&mut pool, 0, 6), Ok(None));
        let blocks = table.blocks().to_vec();
        pool.publish(blocks[0], root, &items(0..4));
        let chain = root.push(&items(0..4));
        pool.publish(blocks[1], chain, &items(4..6));
        assert_eq!(pool.find(&root, &items(0..9)), Some(Hit { block: blocks[0], tokens: 4 }));
        assert_eq!(pool.find(&chain, &items(4..9)), Some(Hit { block: blocks[1], tokens: 2 }));
        assert_eq!(pool.find(&root, &[0, 1, 9, 3]), Some(Hit { block: blocks[0], tokens: 2 }));
        assert_eq!(pool.find(&root, &items(4..9)), None, "the place counts");
        assert_eq!(pool.find(&Chain::root(b"other"), &items(0..4)), None, "the tenant counts");
        // Found while held and after release, until the memory is wanted: tail first.
        table.release(&mut pool);
        assert_eq!(pool.idle(), 4);
        assert_eq!(pool.published(), 2);
        let mut other = BlockTable::default();
        assert_eq!(other.reserve(&mut pool, 0, 12), Ok(None));
        assert_eq!(pool.find(&chain, &items(4..9)), None, "the tail went first");
        assert!(pool.find(&root, &items(0..9)).is_some());
        assert_eq!(other.reserve(&mut pool, 12, 17), Err(OutOfBlocks));
        assert_eq!(pool.find(&root, &items(0..9)), None);
    }

    #[test]
    fn shared_tails_are_copied_on_write() {
        let mut pool = BlockPool::new(4, 4);
        let root = Chain::root(b"");
        let mut first = BlockTable::default();
        first.reserve(&mut pool, 0, 3).unwrap();
        pool.publish(first.blocks()[0], root, &items(0..3));
        let hit = pool.find(&root, &items(0..4)).unwrap();
        let mut second = BlockTable::default();
        second.share(&mut pool, hit.block);
        let copy = second.reserve(&mut pool, hit.tokens, 5).unwrap().expect("shared, so copied");
        assert_eq!((copy.from, copy.tokens), (first.blocks()[0], 3));
        assert_eq!(second.blocks()[0], copy.to);
        assert_eq!(second.reserve(&mut pool, 4, 6), Ok(None), "its own now");
        // The first may not write either while its block can be found.
        assert!(first.reserve(&mut pool, 3, 4).unwrap().is_some());
        first.release(&mut pool);
        second.truncate(&mut pool, 4);
        assert_eq!(second.blocks().len(), 1);
        second.release(&mut pool);
        assert_eq!(pool.idle(), 4);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Grow(usize, usize),
        Truncate(usize, usize),
        Release(usize),
        Restart(usize, u64),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            (0..4usize, 1..9usize).prop_map(|(t, n)| Op::Grow(t, n)),
            (0..4usize, 0..12usize).prop_map(|(t, n)| Op::Truncate(t, n)),
            (0..4usize).prop_map(Op::Release),
            (0..4usize, 0..3u64).prop_map(|(t, flavour)| Op::Restart(t, flavour)),
        ];
        prop::collection::vec(op, 1..80)
    }

    proptest! {
        /// Four tables grow, shrink, publish and find on a small pool that is backed by real memory: no table ever
        /// reads something it did not write or find, and no block is lost.
        #[test]
        fn contents_survive(ops in ops()) {
            const BLOCK: usize = 3;
            let mut pool = BlockPool::new(7, BLOCK);
            let mut memory = [u64::MAX; 7 * BLOCK];
            let mut tables: Vec<(BlockTable, Vec<Item>)> = (0..4).map(|_| Default::default()).collect();
            let root = Chain::root(b"x");
            // The item at a position is a function of a sequence's flavour that often agrees with another's.
            let item = |flavour: u64, i: usize| if i < 4 { i as u64 } else { flavour * 100 + i as u64 };
            let mut flavours = [0u64, 0, 1, 2];
            for op in ops {
                match op {
                    Op::Grow(t, n) => {
                        let (table, have) = &mut tables[t];
                        let (from, to) = (have.len(), have.len() + n);
                        if let Ok(copy) = table.reserve(&mut pool, from, to) {
                            if let Some(Copy { from, to, tokens }) = copy {
                                memory.copy_within(from as usize * BLOCK..from as usize * BLOCK + tokens, to as usize * BLOCK);
                            }
                            for i in from..to {
                                memory[table.blocks()[i / BLOCK] as usize * BLOCK + i % BLOCK] = item(flavours[t], i);
                                have.push(item(flavours[t], i));
                            }
                        }
                    }
                    Op::Truncate(t, n) => {
                        let (table, have) = &mut tables[t];
                        have.truncate(n);
                        table.truncate(&mut pool, have.len());
                    }
                    Op::Release(t) => {
                        let (table, have) = &mut tables[t];
                        let mut chain = root;
                        for (chunk, &block) in have.chunks(BLOCK).zip(table.blocks()) {
                            pool.publish(block, chain, chunk);
                            chain = chain.push(chunk);
                        }
                        table.release(&mut pool);
                        have.clear();
                    }
                    Op::Restart(t, flavour) => {
                        let (table, have) = &mut tables[t];
                        table.release(&mut pool);
                        have.clear();
                        flavours[t] = flavour;
                        let wanted: Vec<Item> = (0..10).map(|i| item(flavour, i)).collect();
                        let mut chain = root;
                        while let Some(hit) = pool.find(&chain, &wanted[have.len()..]) {
                            table.share(&mut pool, hit.block);
                            have.extend_from_slice(&wanted[have.len()..][..hit.tokens]);
                            if hit.tokens < BLOCK {
                                break;
                            }
                            chain = chain.push(&have[have.len() - BLOCK..]);
                        }
                    }
                }
                for (table, have) in &tables {
                    for (i, want) in have.iter().enumerate() {
                        prop_assert_eq!(memory[table.blocks()[i / BLOCK] as usize * BLOCK + i % BLOCK], *want);
                    }
                }
            }
            tables.iter_mut().for_each(|(table, _)| table.release(&mut pool));
            prop_assert_eq!(pool.idle(), 7, "no block leaked");
        }
    }
}
