//! The codec between pixels and ids: a vector-quantised autoencoder (VQGAN, Esser et al. 2021; as LlamaGen trains it, Sun et al.
//! 2024).
//!
//! Vectors and codebook are normalised before the nearest entry is searched, and a looked-up entry is normalised too.

use fathom_core::{
    AttendSpec, Backend, ConvSpec, GroupNormSpec, KvView, LatentForm, Mask, Resident, Result, Shape, Span, Spans,
    Tensor,
};

use crate::linear::Linear;
use crate::picture::CodecSpec;
use crate::picture::tower::Norm;

/// A 3 × 3 convolution.
pub struct Conv(pub Linear);

/// Two convolutions behind norms, and the input added.
pub struct ResBlock {
    /// Norm and convolution, twice.
    pub halves: [(Norm, Conv); 2],
    /// For the input, where the number of channels changes.
    pub shortcut: Option<Linear>,
}

/// Attention of every pixel to every pixel, one head.
pub struct AttnBlock {
    /// Norm.
    pub norm: Norm,
    /// Query, key and value.
    pub qkv: [Linear; 3],
    /// Output.
    pub out: Linear,
}

/// What is done at one size: residual blocks, at the smallest size each followed by attention, then the change of size.
pub struct Level {
    /// Blocks.
    pub blocks: Vec<(ResBlock, Option<AttnBlock>)>,
    /// Convolution that changes the size.
    pub resize: Option<Conv>,
}

/// Encoder or decoder.
pub struct Half {
    /// First convolution.
    pub conv_in: Conv,
    /// Levels: the encoder's from large to small before the middle, the decoder's from small to large behind it.
    pub levels: Vec<Level>,
    /// At the smallest size: a residual block, attention, a residual block.
    pub middle: (ResBlock, AttnBlock, ResBlock),
    /// Last norm.
    pub norm_out: Norm,
    /// Last convolution.
    pub conv_out: Conv,
}

/// The codec with its weights.
pub struct Codec {
    /// What it is.
    pub spec: CodecSpec,
    /// Entries, `[codes, code_dim]`.
    pub codebook: Resident,
    /// The entries normalised, for the search.
    pub entries: Vec<f32>,
    /// `1 / √code_dim`, `[1, code_dim]`: makes an RMS norm a division by the length.
    pub unit: Resident,
    /// Pixels → latent.
    pub encoder: Half,
    /// Latent → vector.
    pub quant: Linear,
    /// Vector → latent.
    pub post_quant: Linear,
    /// Latent → pixels.
    pub decoder: Half,
}

/// Added to the mean square of a vector before it is divided by its length; far below that of any.
const TINY: f32 = 1e-24;

/// A backend and the norms' numbers.
#[derive(Clone, Copy)]
struct Run<'a> {
    b: &'a dyn Backend,
    groups: usize,
    eps: f32,
}

impl Run<'_> {
    fn norm(&self, norm: &Norm, x: &Tensor, silu: bool) -> Result<Tensor> {
        let spec = GroupNormSpec { groups: self.groups, eps: self.eps, silu };
        self.b.group_norm(x, &norm.weight, &norm.bias, &spec)
    }

    fn conv(&self, conv: &Conv, x: &Tensor, spec: &ConvSpec) -> Result<Tensor> {
        self.b.conv2d(x, conv.0.proj(), spec)
    }

    /// A 1 × 1 convolution is a projection of every pixel.
    fn pointwise(&self, proj: &Linear, x: &Tensor) -> Result<Tensor> {
        let [n, height, width, _] = dims(x);
        let y = proj.forward(self.b, x)?;
        let channels = y.cols();
        y.reshape(Shape::new(&[n, height, width, channels]))
    }

    fn residual(&self, block: &ResBlock, x: Tensor) -> Result<Tensor> {
        let same = ConvSpec::same(3);
        let [(norm1, conv1), (norm2, conv2)] = &block.halves;
        let y = self.conv(conv1, &self.norm(norm1, &x, true)?, &same)?;
        let y = self.conv(conv2, &self.norm(norm2, &y, true)?, &same)?;
        let x = match &block.shortcut {
            Some(proj) => self.pointwise(proj, &x)?,
            None => x,
        };
        self.b.add(x, &y)
    }

    fn attention(&self, block: &AttnBlock, x: Tensor) -> Result<Tensor> {
        let [n, height, width, channels] = dims(&x);
        let y = self.norm(&block.norm, &x, false)?;
        let [q, k, v] = block.qkv.each_ref().map(Linear::proj);
        let qkv = self.b.linear(&y, &[q, k, v])?;
        let rows = height * width;
        let spans: Vec<Span> =
            (0..n).map(|p| Span { row: p * rows, rows, start: 0, table: 0, form: LatentForm::Plain }).collect();
        let spans = Spans { spans: &spans, tables: &[], block: 1 };
        let scale = (channels as f64).powf(-0.5) as f32;
        let spec = AttendSpec { heads: 1, kv_heads: 1, head_dim: channels, v_dim: channels, scale, mask: Mask::Full };
        let y = self.b.attend(&qkv[0], KvView::Fresh { k: &qkv[1], v: &qkv[2] }, &spans, &spec)?;
        let y = block.out.forward(self.b, &y)?.reshape(x.shape)?;
        self.b.add(x, &y)
    }

    fn level(&self, level: &Level, mut x: Tensor, resize: &ConvSpec) -> Result<Tensor> {
        for (block, attention) in &level.blocks {
            x = self.residual(block, x)?;
            if let Some(attention) = attention {
                x = self.attention(attention, x)?;
            }
        }
        match &level.resize {
            Some(conv) => self.conv(conv, &x, resize),
            None => Ok(x),
        }
    }

    fn middle(&self, half: &Half, x: Tensor) -> Result<Tensor> {
        let (first, attention, last) = &half.middle;
        self.residual(last, self.attention(attention, self.residual(first, x)?)?)
    }

    fn last(&self, half: &Half, x: &Tensor) -> Result<Tensor> {
        self.conv(&half.conv_out, &self.norm(&half.norm_out, x, true)?, &ConvSpec::same(3))
    }
}

fn dims(x: &Tensor) -> [usize; 4] {
    x.shape.dims().try_into().expect("invariant: pictures have four dimensions")
}

impl Codec {
    fn run<'a>(&self, b: &'a dyn Backend) -> Run<'a> {
        Run { b, groups: self.spec.groups, eps: self.spec.eps }
    }

    /// Ids of pictures of `height` rows of `width` ids → pixel values `[pictures, factor × height, factor × width, 3]`, from −1 to
    /// 1 and a little beyond.
    ///
    /// # Errors
    /// If the backend fails, or an id is none.
    pub fn decode(&self, b: &dyn Backend, ids: &[u32], height: usize, width: usize) -> Result<Tensor> {
        let run = self.run(b);
        let z = b.rms_norm(&b.embed(&self.codebook, ids)?, &self.unit, TINY)?;
        let z = z.reshape(Shape::new(&[ids.len() / (height * width), height, width, self.spec.code_dim]))?;
        let mut x = run.conv(&self.decoder.conv_in, &run.pointwise(&self.post_quant, &z)?, &ConvSpec::same(3))?;
        x = run.middle(&self.decoder, x)?;
        let up = ConvSpec { magnify: 2, ..ConvSpec::same(3) };
        for level in &self.decoder.levels {
            x = run.level(level, x, &up)?;
        }
        run.last(&self.decoder, &x)
    }

    /// Pixel values `[pictures, side, side, 3]` from −1 to 1 → vectors before the search, `[pictures, grid, grid, code_dim]`.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn latent(&self, b: &dyn Backend, pixels: &Tensor) -> Result<Tensor> {
        let run = self.run(b);
        let mut x = run.conv(&self.encoder.conv_in, pixels, &ConvSpec::same(3))?;
        let down = ConvSpec { kernel: 3, stride: 2, pad: (0, 1), magnify: 1 };
        for level in &self.encoder.levels {
            x = run.level(level, x, &down)?;
        }
        x = run.middle(&self.encoder, x)?;
        run.pointwise(&self.quant, &run.last(&self.encoder, &x)?)
    }

    /// Pixel values → ids, `[pictures × grid × grid]`: of each vector the entry that lies nearest once both are normalised.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn encode(&self, b: &dyn Backend, pixels: &Tensor) -> Result<Vec<u32>> {
        let z = self.latent(b, pixels)?;
        let z = b.rms_norm(&z, &self.unit, TINY)?;
        let mut values = vec![0.0; z.shape.numel()];
        b.read(&z, &mut values)?;
        Ok(values.chunks_exact(self.spec.code_dim).map(|v| self.nearest(v)).collect())
    }

    /// Of unit vectors the nearest is the one with the largest product; of equal ones the first.
    fn nearest(&self, v: &[f32]) -> u32 {
        let mut best = (f32::NEG_INFINITY, 0);
        for (i, entry) in self.entries.chunks_exact(v.len()).enumerate() {
            let product = entry.iter().zip(v).map(|(a, b)| a * b).sum();
            if product > best.0 {
                best = (product, i);
            }
        }
        best.1 as u32
    }
}
