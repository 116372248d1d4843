//! Mixers: what a block does along the sequence.

mod gqa;
mod mla;

use fathom_core::{Backend, Result, RopeLayout, Tensor};

use crate::batch::Batch;
use crate::kv::LayerKv;

pub use gqa::Gqa;
pub use mla::{LatentWeights, Mla, QueryProj};

/// A mixer with its weights.
#[derive(Clone)]
pub enum MixerLayer {
    /// Grouped-query attention.
    Gqa(Gqa),
    /// Latent attention.
    Mla(Mla),
}

/// What every layer of a step shares.
pub struct Step<'a> {
    /// Device.
    pub b: &'a dyn Backend,
    /// Rows.
    pub batch: &'a Batch,
    /// cos and sin of every row's position.
    pub rope: &'a Tensor,
    /// Pairing of rotated elements.
    pub layout: RopeLayout,
    /// Epsilon of the norms.
    pub eps: f32,
}

impl MixerLayer {
    /// `x: [tokens, dim]`, normed → the block's attention output `[tokens, dim]`. Without a cache, rows see the fresh
    /// keys and values of their own span.
    pub fn forward(&self, step: &Step<'_>, x: &Tensor, kv: Option<&mut LayerKv>) -> Result<Tensor> {
        match self {
            MixerLayer::Gqa(m) => m.forward(step, x, kv),
            MixerLayer::Mla(m) => m.forward(step, x, kv),
        }
    }
}
