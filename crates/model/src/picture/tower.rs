//! The tower that sees: a vision transformer (Dosovitskiy et al. 2021) as SigLIP trains it (Zhai et al. 2023): learned positions, no
//! class token, norms before attention and network, the last layer's rows behind a final norm.

use fathom_core::{
    AttendSpec, Backend, ConvSpec, KvView, LatentForm, Mask, Proj, Resident, Result, Shape, Span, Spans, Tensor,
};

use crate::linear::Linear;
use crate::picture::TowerSpec;
use crate::probe::Probe;

/// A layer norm.
pub struct Norm {
    /// `[1, dim]`.
    pub weight: Resident,
    /// `[1, dim]`.
    pub bias: Resident,
}

/// A block.
pub struct TowerLayer {
    /// Before attention.
    pub norm1: Norm,
    /// Query, key and value.
    pub qkv: [Linear; 3],
    /// Output of attention.
    pub out: Linear,
    /// Before the network.
    pub norm2: Norm,
    /// Into the network.
    pub up: Linear,
    /// Out of it.
    pub down: Linear,
}

/// The tower with its weights.
pub struct Tower {
    /// What it is.
    pub spec: TowerSpec,
    /// Patches to rows: a convolution.
    pub patch: Linear,
    /// `[patches, dim]`.
    pub positions: Resident,
    /// Blocks.
    pub layers: Vec<TowerLayer>,
    /// Final norm.
    pub norm: Norm,
}

impl Norm {
    fn forward(&self, b: &dyn Backend, x: &Tensor, eps: f32) -> Result<Tensor> {
        b.layer_norm(x, &self.weight, &self.bias, eps)
    }
}

impl Tower {
    /// Pixel values `[pictures, side, side, 3]` → features `[pictures × patches, dim]`.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn forward(&self, b: &dyn Backend, pixels: &Tensor) -> Result<Tensor> {
        self.probed(b, pixels, &mut crate::NoProbe)
    }

    /// The same, announcing `patches` and every block's `out`.
    ///
    /// # Errors
    /// If the backend or the probe fails.
    pub fn probed(&self, b: &dyn Backend, pixels: &Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        let TowerSpec { patch, dim, heads, eps, .. } = self.spec;
        let spec = ConvSpec { kernel: patch, stride: patch, pad: (0, 0), magnify: 1 };
        let proj = Proj { weight: &self.patch.weight, bias: self.patch.bias.as_ref() };
        let patches = b.conv2d(pixels, proj, &spec)?;
        let (pictures, each) = (patches.shape.dims()[0], patches.shape.dims()[1] * patches.shape.dims()[2]);
        let rows = pictures * each;
        let positions: Vec<u32> = (0..rows).map(|row| (row % each) as u32).collect();
        let x = patches.reshape(Shape::matrix(rows, dim))?;
        let mut h = b.add(x, &b.embed(&self.positions, &positions)?)?;
        probe.tap(None, "patches", b, &h)?;
        let spans: Vec<Span> = (0..pictures)
            .map(|p| Span { row: p * each, rows: each, start: 0, table: 0, form: LatentForm::Plain })
            .collect();
        let spans = Spans { spans: &spans, tables: &[], block: 1 };
        let head_dim = dim / heads;
        let scale = (head_dim as f64).powf(-0.5) as f32;
        let spec = AttendSpec { heads, kv_heads: heads, head_dim, v_dim: head_dim, scale, mask: Mask::Full };
        for (i, layer) in self.layers.iter().enumerate() {
            let x = layer.norm1.forward(b, &h, eps)?;
            let [q, k, v] = layer.qkv.each_ref().map(Linear::proj);
            let qkv = b.linear(&x, &[q, k, v])?;
            let o = b.attend(&qkv[0], KvView::Fresh { k: &qkv[1], v: &qkv[2] }, &spans, &spec)?;
            h = b.add(h, &layer.out.forward(b, &o)?)?;
            let x = layer.norm2.forward(b, &h, eps)?;
            let x = b.gelu(layer.up.forward(b, &x)?)?;
            h = b.add(h, &layer.down.forward(b, &x)?)?;
            probe.tap(Some(i), "out", b, &h)?;
        }
        self.norm.forward(b, &h, eps)
    }
}
