//! The cache: for every layer one or two streams of rows, cut into blocks that sequences own.
//!
//! Which block belongs to whom is the engine's business; here is only the memory.

use fathom_core::{Backend, DType, KvCache, Result};

use crate::spec::{LayerSpec, kv_streams};

/// Tokens per block.
pub const BLOCK: usize = 64;

/// The cache streams of one layer: keys and values, or the latent.
pub type LayerKv = Vec<KvCache>;

/// All layers' streams. Block `i` is slots `i × BLOCK ..+ BLOCK` of every stream.
pub struct KvPool {
    /// Per layer; a prediction block's comes last.
    pub layers: Vec<LayerKv>,
    blocks: usize,
}

impl KvPool {
    /// A pool of `blocks` blocks for the given layers.
    ///
    /// # Errors
    /// If the backend has no memory for it.
    pub fn new<'a>(
        b: &dyn Backend,
        layers: impl Iterator<Item = &'a LayerSpec>,
        blocks: usize,
        dtype: DType,
    ) -> Result<Self> {
        let stream = |stream| b.kv_alloc(blocks * BLOCK, stream, dtype);
        let layers = layers
            .map(|l| kv_streams(&l.mixer).into_iter().map(stream).collect::<Result<LayerKv>>())
            .collect::<Result<_>>()?;
        Ok(KvPool { layers, blocks })
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Copies the first `tokens` tokens of block `from` to block `to`, in every layer.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn copy_block(&mut self, b: &dyn Backend, from: u32, to: u32, tokens: usize) -> Result<()> {
        for stream in self.layers.iter_mut().flatten() {
            b.kv_copy(stream, from as usize * BLOCK, to as usize * BLOCK, tokens)?;
        }
        Ok(())
    }
}
