//! Feed-forward networks: what a block does to each token by itself.

mod moe;

use fathom_core::{Backend, Result, Tensor};

use crate::linear::{Linear, project};
use crate::probe::Probe;

pub use moe::Moe;

/// SwiGLU (Shazeer 2020): `down(silu(gate x) ⊙ up x)`.
#[derive(Clone)]
pub struct Dense {
    /// Gate projection.
    pub gate: Linear,
    /// Up projection.
    pub up: Linear,
    /// Down projection.
    pub down: Linear,
}

impl Dense {
    /// `x: [tokens, dim]` → `[tokens, dim]`.
    pub fn forward(&self, b: &dyn Backend, x: &Tensor) -> Result<Tensor> {
        if [&self.gate, &self.up, &self.down].iter().all(|l| l.adapter.is_none()) {
            return b.ffn(x, self.gate.proj(), self.up.proj(), self.down.proj());
        }
        let mut both = project(b, x, &[&self.gate, &self.up])?;
        let up = both.remove(1);
        let h = b.swiglu(both.remove(0), &up)?;
        self.down.forward(b, &h)
    }
}

/// A feed-forward network with its weights.
#[derive(Clone)]
#[allow(clippy::large_enum_variant)] // one per layer, made once and never moved
pub enum FfnLayer {
    /// One network for all.
    Dense(Dense),
    /// A router and experts.
    Moe(Moe),
}

impl FfnLayer {
    /// `x: [tokens, dim]`, normed → `[tokens, dim]`. `layer` is for the probe.
    pub fn forward(&self, b: &dyn Backend, x: &Tensor, layer: usize, probe: &mut dyn Probe) -> Result<Tensor> {
        match self {
            FfnLayer::Dense(f) => f.forward(b, x),
            FfnLayer::Moe(f) => f.forward(b, x, layer, probe),
        }
    }
}
