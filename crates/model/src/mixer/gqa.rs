//! Grouped-query attention (Ainslie et al. 2023), with the biases of Qwen2's kind and the per-head norms of
//! Qwen3's kind where the spec has them.

use fathom_core::{AttendSpec, KvView, Resident, Result, Shape, Tensor};

use super::Step;
use crate::kv::LayerKv;
use crate::linear::{Linear, project};

/// Weights of a layer.
#[derive(Clone)]
pub struct Gqa {
    /// Shape and scale.
    pub spec: AttendSpec,
    /// Query projection.
    pub q: Linear,
    /// Key projection.
    pub k: Linear,
    /// Value projection.
    pub v: Linear,
    /// Output projection.
    pub out: Linear,
    /// Norms of every query and key head.
    pub qk_norm: Option<(Resident, Resident)>,
}

impl Gqa {
    /// See [`super::MixerLayer::forward`].
    pub fn forward(&self, step: &Step<'_>, x: &Tensor, kv: Option<&mut LayerKv>) -> Result<Tensor> {
        let (b, spec) = (step.b, &self.spec);
        let mut qkv = project(b, x, &[&self.q, &self.k, &self.v])?;
        let v = qkv.remove(2);
        let mut k = qkv.remove(1);
        let mut q = qkv.remove(0);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = self.head_norm(step, q, q_norm)?;
            k = self.head_norm(step, k, k_norm)?;
        }
        let q = b.rope(q, step.rope, spec.heads, 0, step.layout)?;
        let k = b.rope(k, step.rope, spec.kv_heads, 0, step.layout)?;
        let view = match kv {
            None => KvView::Fresh { k: &k, v: &v },
            Some(kv) => {
                let [k_cache, v_cache] = &mut kv[..] else {
                    panic!("invariant: grouped-query attention caches keys and values");
                };
                b.kv_write(k_cache, &k, &step.batch.slots)?;
                b.kv_write(v_cache, &v, &step.batch.slots)?;
                KvView::Paged { k: k_cache, v: v_cache }
            }
        };
        let o = b.attend(&q, view, &step.batch.spans(), spec)?;
        self.out.forward(b, &o)
    }

    fn head_norm(&self, step: &Step<'_>, x: Tensor, weight: &Resident) -> Result<Tensor> {
        let flat = x.shape;
        let heads = x.reshape(Shape::matrix(flat.numel() / self.spec.head_dim, self.spec.head_dim))?;
        step.b.rms_norm(&heads, weight, step.eps)?.reshape(flat)
    }
}
