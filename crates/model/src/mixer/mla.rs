//! Multi-head latent attention (V2 paper, section 2.1; DeepSeek-V3 `inference/model.py`, class `MLA`).
//!
//! The cache holds per token the normed latent c and the rotated key k_r, 576 numbers for V3. Scores are
//! q_n·(W_k c) + q_r·k_r; whether W_k is applied to c (plain) or to q_n (absorbed) is chosen per span.

use fathom_core::{AttendSpec, HeadProj, KvView, LatentSpec, Mask, Proj, Resident, Result, Shape, Tensor};

use super::Step;
use crate::kv::LayerKv;
use crate::linear::{Linear, project};

/// The query's projection.
#[derive(Clone)]
#[allow(clippy::large_enum_variant)] // one per layer, made once and never moved
pub enum QueryProj {
    /// Straight from the residual stream (V2-Lite).
    Full(Linear),
    /// Through a normed latent of its own.
    Low {
        /// Down.
        a: Linear,
        /// Norm of the latent.
        norm: Resident,
        /// Up.
        b: Linear,
    },
}

/// Where the heads' key and value projections are stored.
#[derive(Clone)]
pub enum LatentWeights {
    /// One tensor, per head the key rows, then the value rows (Hugging Face, old GGUF).
    Fused(Resident),
    /// Two tensors, the keys' transposed per head (GGUF).
    Split {
        /// `[heads × rank, nope]`.
        k: Resident,
        /// `[heads × v_dim, rank]`.
        v: Resident,
    },
}

/// Weights of a layer.
#[derive(Clone)]
pub struct Mla {
    /// Shape and scale.
    pub spec: LatentSpec,
    /// Query.
    pub q: QueryProj,
    /// Down-projection to the latent and the shared rotated key.
    pub kv_a: Linear,
    /// Norm of the latent.
    pub kv_norm: Resident,
    /// Up-projections.
    pub kv_b: LatentWeights,
    /// Output projection.
    pub out: Linear,
}

impl Mla {
    /// See [`super::MixerLayer::forward`].
    pub fn forward(&self, step: &Step<'_>, x: &Tensor, kv: Option<&mut LayerKv>) -> Result<Tensor> {
        let (b, spec) = (step.b, &self.spec);

        let (q, kv_a) = match &self.q {
            QueryProj::Full(q) => {
                let mut both = project(b, x, &[q, &self.kv_a])?;
                let kv_a = both.remove(1);
                (both.remove(0), kv_a)
            }
            QueryProj::Low { a, norm, b: up } => {
                let mut both = project(b, x, &[a, &self.kv_a])?;
                let kv_a = both.remove(1);
                let latent = b.rms_norm(&both.remove(0), norm, step.eps)?;
                (up.forward(b, &latent)?, kv_a)
            }
        };
        let q = b.rope(q, step.rope, spec.heads, spec.nope, step.layout)?;

        let c = b.rms_norm(&b.slice_cols(&kv_a, 0, spec.rank)?, &self.kv_norm, step.eps)?;
        let k_r = b.slice_cols(&kv_a, spec.rank, spec.rank + spec.rope)?;
        let k_r = b.rope(k_r, step.rope, 1, 0, step.layout)?;
        let o = match kv {
            None => self.attend_fresh(step, &q, &c, &k_r)?,
            Some(kv) => {
                let [cache] = &mut kv[..] else { panic!("invariant: latent attention caches one stream") };
                b.kv_write(cache, &b.concat_cols(&c, &k_r)?, &step.batch.slots)?;
                let (k, v) = self.head_projs();
                b.attend_latent(&q, cache, k, v, &step.batch.spans(), spec)?
            }
        };
        self.out.forward(b, &o)
    }

    /// Attention over this batch's own rows, composed of operations that have derivatives: keys and values
    /// of every head are expanded from the latent, and each head's key gets the shared rotated part.
    fn attend_fresh(&self, step: &Step<'_>, q: &Tensor, c: &Tensor, k_r: &Tensor) -> Result<Tensor> {
        let LatentSpec { heads, nope, rope, v_dim, scale, .. } = self.spec;
        let b = step.b;
        let LatentWeights::Fused(weight) = &self.kv_b else {
            panic!("invariant: a model that learns keeps its key and value projections in one weight");
        };
        let kv = b.linear(c, &[Proj { weight, bias: None }])?.remove(0);
        // A row per token and head, so that all heads are cut and joined at once.
        let rows = kv.rows();
        let kv = kv.reshape(Shape::matrix(rows * heads, nope + v_dim))?;
        let token_of: Vec<u32> = (0..rows as u32).flat_map(|t| std::iter::repeat_n(t, heads)).collect();
        let k = b.concat_cols(&b.slice_cols(&kv, 0, nope)?, &b.select_rows(k_r, &token_of)?)?;
        let k = k.reshape(Shape::matrix(rows, heads * (nope + rope)))?;
        let v = b.slice_cols(&kv, nope, nope + v_dim)?.reshape(Shape::matrix(rows, heads * v_dim))?;
        let spec = AttendSpec { heads, kv_heads: heads, head_dim: nope + rope, v_dim, scale, mask: Mask::Causal };
        b.attend(q, KvView::Fresh { k: &k, v: &v }, &step.batch.spans(), &spec)
    }

    fn head_projs(&self) -> (HeadProj<'_>, HeadProj<'_>) {
        let LatentSpec { rank, nope, v_dim, .. } = self.spec;
        match &self.kv_b {
            LatentWeights::Fused(weight) => {
                let head = |first_row, head_rows| HeadProj {
                    weight,
                    first_row,
                    head_stride: nope + v_dim,
                    head_rows,
                    transposed: false,
                };
                (head(0, nope), head(nope, v_dim))
            }
            LatentWeights::Split { k, v } => (
                HeadProj { weight: k, first_row: 0, head_stride: rank, head_rows: rank, transposed: true },
                HeadProj { weight: v, first_row: 0, head_stride: v_dim, head_rows: v_dim, transposed: false },
            ),
        }
    }
}
