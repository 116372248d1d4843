//! What a model is, in numbers: the only thing the decoder knows about it.
//!
//! Families (`families/`) boil a `config.json` or GGUF metadata down to a [`ModelSpec`]; differences between models are
//! which [`LayerSpec`] sits at which index, never a condition in the forward pass. The
//! spec also answers what can be asked without weights: parameters, cache size, rotary frequencies.

use std::f64::consts::PI;

use fathom_core::{DType, KvStream, RopeFreqs, RopeLayout, RouteSpec};

use crate::picture::PictureSpec;

/// A whole model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Family name, for people.
    pub family: &'static str,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Epsilon of every RMS norm.
    pub eps: f32,
    /// Longest context the model was configured for, in tokens.
    pub context: usize,
    /// Rotary embedding, the same in every layer.
    pub rope: RopeSpec,
    /// The blocks, in order.
    pub layers: Vec<LayerSpec>,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// The multi-token prediction block, if the model has one (V3 paper, section 2.2).
    pub mtp: Option<LayerSpec>,
    /// The picture side, if the model sees and draws.
    pub pictures: Option<PictureSpec>,
}

/// One block: a mixer over the sequence, then a feed-forward network, each behind a norm and a
/// residual connection.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// Attention.
    pub mixer: Mixer,
    /// Feed-forward network.
    pub ffn: Ffn,
}

/// Attention variants.
#[derive(Clone, Debug, PartialEq)]
pub enum Mixer {
    /// Grouped-query attention.
    Gqa {
        /// Query heads.
        heads: usize,
        /// Key and value heads.
        kv_heads: usize,
        /// Width of a head.
        head_dim: usize,
        /// Whether q, k and v have a bias.
        qkv_bias: bool,
        /// Whether every query and key head is RMS-normalised.
        qk_norm: bool,
    },
    /// Multi-head latent attention (V2 paper, section 2.1).
    Mla {
        /// Query heads.
        heads: usize,
        /// Rank of the query's own latent; `None`: one full projection.
        q_rank: Option<usize>,
        /// Width of the cached latent.
        kv_rank: usize,
        /// Width of a head's part without position.
        nope: usize,
        /// Width of the rotated part.
        rope: usize,
        /// Width of a value head.
        v_dim: usize,
        /// Factor on the scores, YaRN's part included.
        scale: f32,
    },
}

/// Feed-forward variants.
#[derive(Clone, Debug, PartialEq)]
pub enum Ffn {
    /// SwiGLU.
    Dense {
        /// Inner width.
        hidden: usize,
    },
    /// Routed and shared experts (V2 paper, section 2.2; V3 paper, section 2.1.2).
    Moe {
        /// Choice of experts.
        route: RouteSpec,
        /// Whether the router has a correction bias.
        bias_corrected: bool,
        /// Inner width of one routed expert.
        hidden: usize,
        /// Inner width of the shared experts together; 0: none.
        shared_hidden: usize,
    },
}

/// Rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Rotated elements per head.
    pub dim: usize,
    /// Base.
    pub theta: f64,
    /// Pairing of elements.
    pub layout: RopeLayout,
    /// Extension beyond the trained context.
    pub scaling: RopeScaling,
}

/// Extensions of the rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Positions divided by a factor (DeepSeek-Coder).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are divided.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
        /// Trained context.
        original: f64,
    },
    /// A divisor for each frequency, from the file (GGUF's `rope_freqs.weight`).
    Divisors(Vec<f32>),
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// Extension factor.
        factor: f64,
        /// Trained context.
        original: f64,
        /// Rotations over the trained context above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided.
        beta_slow: f64,
        /// Factor on cos and sin.
        attention: f64,
    },
}

/// YaRN's magnitude correction `0.1·m·ln F + 1` (1 for `F ≤ 1`).
pub fn yarn_magnitude(factor: f64, m: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 }
}

impl RopeSpec {
    /// YaRN's correction range: pairs below the first are kept, from the last on divided.
    pub fn yarn_range(&self) -> Option<(f64, f64)> {
        let RopeScaling::Yarn { original, beta_fast, beta_slow, .. } = self.scaling else { return None };
        let d = self.dim as f64;
        let index = |beta: f64| d * (original / (2.0 * PI * beta)).ln() / (2.0 * self.theta.ln());
        Some((index(beta_fast).floor().max(0.0), index(beta_slow).ceil().min(d - 1.0)))
    }

    /// The rotation speeds.
    pub fn freqs(&self) -> RopeFreqs {
        let base = |i: usize| self.theta.powf(-(2.0 * i as f64) / self.dim as f64);
        let pairs = 0..self.dim / 2;
        let mut attention = 1.0;
        let inv: Vec<f64> = match &self.scaling {
            RopeScaling::None => pairs.map(base).collect(),
            RopeScaling::Linear { factor } => pairs.map(|i| base(i) / factor).collect(),
            RopeScaling::Divisors(by) => pairs.map(|i| base(i) / f64::from(by[i])).collect(),
            &RopeScaling::Llama3 { factor, low, high, original } => pairs
                .map(|i| {
                    let f = base(i);
                    let turns = original * f / (2.0 * PI);
                    let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - keep) * f / factor + keep * f
                })
                .collect(),
            &RopeScaling::Yarn { factor, attention: a, .. } => {
                attention = a;
                let (low, high) = self.yarn_range().expect("invariant: YaRN has a range");
                let width = if high > low { high - low } else { 0.001 };
                pairs
                    .map(|i| {
                        let ramp = ((i as f64 - low) / width).clamp(0.0, 1.0);
                        base(i) / factor * ramp + base(i) * (1.0 - ramp)
                    })
                    .collect()
            }
        };
        RopeFreqs { inv_freq: inv.into_iter().map(|f| f as f32).collect(), factor: attention as f32 }
    }
}

/// The streams of a layer's cache: keys and values, or the latent with its rotated key.
pub fn kv_streams(mixer: &Mixer) -> Vec<KvStream> {
    match *mixer {
        Mixer::Gqa { kv_heads: heads, head_dim: dim, .. } => {
            vec![KvStream::Keys { heads, dim }, KvStream::Values { heads, dim }]
        }
        Mixer::Mla { kv_rank, rope, .. } => vec![KvStream::Latents { width: kv_rank + rope }],
    }
}

/// Bytes that a layer's cache takes per token.
pub fn kv_bytes(mixer: &Mixer, dtype: DType) -> usize {
    kv_streams(mixer).into_iter().map(|s| s.bytes(dtype)).sum()
}

/// Parameters of a part of a model: stored, and read for one token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// All.
    pub total: u64,
    /// Those that one token's forward pass multiplies with.
    pub touched: u64,
}

impl std::ops::AddAssign for Parameters {
    fn add_assign(&mut self, other: Self) {
        self.total += other.total;
        self.touched += other.touched;
    }
}

impl LayerSpec {
    /// Parameters of the block.
    pub fn parameters(&self, dim: usize) -> Parameters {
        let mixer = match self.mixer {
            Mixer::Gqa { heads, kv_heads, head_dim, qkv_bias, qk_norm } => {
                let out = (heads + 2 * kv_heads) * head_dim;
                dim * out + heads * head_dim * dim + out * usize::from(qkv_bias) + 2 * head_dim * usize::from(qk_norm)
            }
            Mixer::Mla { heads, q_rank, kv_rank, nope, rope, v_dim, .. } => {
                let q_out = heads * (nope + rope);
                let q = q_rank.map_or(dim * q_out, |r| dim * r + r + r * q_out);
                q + dim * (kv_rank + rope) + kv_rank + kv_rank * heads * (nope + v_dim) + heads * v_dim * dim
            }
        };
        let always = (mixer + 2 * dim) as u64;
        let (total, touched) = match self.ffn {
            Ffn::Dense { hidden } => (3 * dim * hidden, 3 * dim * hidden),
            Ffn::Moe { route, bias_corrected, hidden, shared_hidden } => {
                let fixed = route.experts * (dim + usize::from(bias_corrected)) + 3 * dim * shared_hidden;
                (fixed + route.experts * 3 * dim * hidden, fixed + route.top_k * 3 * dim * hidden)
            }
        };
        Parameters { total: always + total as u64, touched: always + touched as u64 }
    }
}

impl ModelSpec {
    /// Parameters of the main model, the prediction block not counted. The embedding counts as stored, and
    /// as touched only where it is the head.
    pub fn parameters(&self) -> Parameters {
        let table = (self.vocab * self.dim) as u64;
        let mut sum = Parameters { total: table * if self.tied { 1 } else { 2 }, touched: table };
        sum += Parameters { total: self.dim as u64, touched: self.dim as u64 };
        for layer in &self.layers {
            sum += layer.parameters(self.dim);
        }
        sum
    }

    /// Bytes of cache that one token takes in all layers of the main model.
    pub fn kv_bytes_per_token(&self, dtype: DType) -> usize {
        self.layers.iter().map(|l| kv_bytes(&l.mixer, dtype)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::{Options, keys::Source, read_spec};

    fn published(name: &str) -> ModelSpec {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/configs").join(name);
        let config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        read_spec(Source::Hf(&config), &path, &Options::default()).unwrap()
    }

    /// The oracle figures of the V3 paper (671 B, 37 B) and of `inference/model.py`.
    #[test]
    fn v3_comes_out_as_published() {
        let spec = published("deepseek-v3-r1.config.json");
        let p = spec.parameters();
        assert_eq!(format!("{:.2}", p.total as f64 / 1e9), "671.03");
        assert_eq!(format!("{:.1}", p.touched as f64 / 1e9), "36.6");
        assert_eq!(spec.rope.yarn_range(), Some((10.0, 23.0)));
        assert_eq!(spec.kv_bytes_per_token(DType::F16), 70_272);
        assert_eq!(spec.kv_bytes_per_token(DType::Q8_0), 61 * (576 + 2 * 18));
        let Mixer::Mla { scale, .. } = spec.layers[0].mixer else { panic!("latent attention") };
        assert!((scale - 0.1352338).abs() < 1e-7, "{scale}");
        assert_eq!(spec.rope.freqs().factor, 1.0);
        assert!(spec.mtp.is_some());
        assert_eq!(spec.layers.iter().filter(|l| matches!(l.ffn, Ffn::Dense { .. })).count(), 3);
    }

    #[test]
    fn llama3_ramp_is_continuous_and_bounded() {
        let rope = |scaling| RopeSpec { dim: 128, theta: 5e5, layout: RopeLayout::Halves, scaling };
        let plain = rope(RopeScaling::None).freqs().inv_freq;
        let scaled = rope(RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 }).freqs().inv_freq;
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[63] / scaled[63] - 8.0).abs() < 1e-5);
        for (p, s) in plain.iter().zip(&scaled) {
            assert!((0.99..=8.01).contains(&(p / s)));
        }
        assert!(scaled.windows(2).all(|w| w[0] > w[1]));
    }
}
