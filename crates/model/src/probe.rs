//! A look inside a forward pass.
//!
//! The decoder announces its named intermediates to a [`Probe`]. One hook serves golden comparison, drift
//! hunting, `fathom logits --probe` and statistics of activations; the default does nothing.

use fathom_core::{Backend, Result, Routing, Tensor};

/// Receives intermediates. `layer` is the block's index; the embedding and the final norm come with `None`.
pub trait Probe {
    /// A named tensor: `embed`, `attn_norm`, `attn_out`, `ffn_norm`, `ffn_out`, `out` (the residual stream after
    /// the block), `final_norm`.
    fn tap(&mut self, _layer: Option<usize>, _name: &'static str, _b: &dyn Backend, _x: &Tensor) -> Result<()> {
        Ok(())
    }

    /// The experts that a block chose.
    fn routed(&mut self, _layer: usize, _b: &dyn Backend, _routing: &Routing) -> Result<()> {
        Ok(())
    }

    /// Experts to use instead of the block's own choice, `[tokens × top_k]`: for comparing two
    /// engines behind a choice that rounding may flip.
    fn forced(&self, _layer: usize) -> Option<&[u32]> {
        None
    }
}

/// Looks at nothing.
pub struct NoProbe;

impl Probe for NoProbe {}
