//! Janus and Janus-Pro: a Llama that sees through a SigLIP tower and draws picture ids (Chen et al. 2025, arXiv 2501.17811).
//!
//! Two kinds of `config.json`: Hugging Face's, which says everything, and DeepSeek's own, which names parts whose shapes their code
//! fixes. What a file leaves out has the value of that code.

use fathom_core::RopeLayout;

use super::keys::{Key, Keys, Source};
use super::{Common, Options, WIDTH, read_rope};
use crate::picture::{CodecSpec, PictureSpec, PixelSpec, TowerSpec};
use crate::spec::{Mixer, ModelSpec};

/// What transformers' `LlamaConfig` assumes.
const LANGUAGE: &[(&str, f64)] = &[
    ("hidden_size", 4096.0),
    ("intermediate_size", 11008.0),
    ("num_attention_heads", 32.0),
    ("num_hidden_layers", 32.0),
    ("rms_norm_eps", 1e-6),
];

/// What transformers' `JanusVisionConfig` assumes: `siglip_large_patch16_384`.
const VISION: &[(&str, f64)] = &[
    ("image_size", 384.0),
    ("patch_size", 16.0),
    ("hidden_size", 1024.0),
    ("num_hidden_layers", 24.0),
    ("num_attention_heads", 16.0),
    ("mlp_ratio", 4.0),
    ("layer_norm_eps", 1e-6),
    ("depth", 2.0),
];

/// What transformers' `JanusVQVAEConfig` assumes: VQ-16.
const CODEC: &[(&str, f64)] = &[
    ("num_embeddings", 16384.0),
    ("embed_dim", 8.0),
    ("latent_channels", 256.0),
    ("base_channels", 128.0),
    ("num_res_blocks", 2.0),
    ("num_hidden_layers", 2.0),
    ("image_token_embed_dim", 2048.0),
];

/// Channels of VQ-16's levels over those at full size.
const MULTIPLIERS: &[usize] = &[1, 1, 2, 2, 4];

/// Groups and epsilon of VQ-16's norms (`vq_model.py`, `Normalize`).
const GROUPS: (usize, f32) = (32, 1e-6);

/// Turns of Janus-Pro (`conversation.py`, template `deepseek`).
const MARKED: &str = include_str!("janus_pro.jinja");
/// Turns of Janus-1.3B.
const PLAIN: &str = include_str!("janus_1_3b.jinja");

/// The template of a model whose files bring none. The only other thing in which Janus-1.3B differs tells it: it does not normalise.
pub(super) fn template(pictures: &PictureSpec) -> &'static str {
    if pictures.pixels.normalise { MARKED } else { PLAIN }
}

fn language(k: &mut Keys<'_>, options: &Options) -> ModelSpec {
    k.off(("attention_bias", ""));
    k.off(("mlp_bias", ""));
    let c = Common::read(k);
    let head_dim = c.head_dim(k);
    // Our own GGUF keeps the rows of q and k as they are.
    let rope = read_rope(k, head_dim, RopeLayout::Halves, options, false);
    let mixer = Mixer::Gqa { heads: c.heads, kv_heads: c.kv_heads, head_dim, qkv_bias: false, qk_norm: false };
    c.dense(mixer, rope)
}

/// Hugging Face's description, and that of our GGUF.
pub(super) fn nested(k: &mut Keys<'_>, options: &Options) -> ModelSpec {
    let mut spec = k.within("text_config", LANGUAGE, |k| language(k, options));
    let (side, tower) = k.within("vision_config", VISION, |k| {
        k.only(("hidden_act", ""), &["gelu"]);
        k.off(("use_qk_norm", ""));
        let dim = k.usize(("hidden_size", "vision.embedding_length"), WIDTH);
        let hidden = match k.source {
            Source::Hf(_) => (dim as f64 * k.f64(("mlp_ratio", ""), 0.01..=64.0)) as usize,
            Source::Gguf { .. } => k.usize(("", "vision.feed_forward_length"), WIDTH),
        };
        let tower = TowerSpec {
            patch: k.usize(("patch_size", "vision.patch_size"), 1..=256),
            dim,
            layers: k.usize(("num_hidden_layers", "vision.block_count"), 1..=256),
            heads: k.usize(("num_attention_heads", "vision.attention.head_count"), 1..=256),
            hidden,
            eps: k.f64(("layer_norm_eps", "vision.attention.layer_norm_epsilon"), 0.0..=1.0) as f32,
            aligner_layers: k.usize(("depth", "vision.aligner_count"), 1..=16),
        };
        (k.usize(("image_size", "vision.image_size"), 1..=4096), tower)
    });
    let (codec, head_hidden) = k.within("vq_config", CODEC, |k| {
        k.off(("double_latent", ""));
        let codec = CodecSpec {
            codes: k.usize(("num_embeddings", "codec.codebook_size"), 1..=1 << 20),
            code_dim: k.usize(("embed_dim", "codec.code_length"), 1..=4096),
            latent: k.usize(("latent_channels", "codec.latent_channels"), 1..=4096),
            base: k.usize(("base_channels", "codec.base_channels"), 1..=4096),
            multipliers: k
                .usizes(("channel_multiplier", "codec.channel_multiplier"), 1..=64, 8)
                .unwrap_or_else(|| MULTIPLIERS.to_vec()),
            blocks: k.usize(("num_res_blocks", "codec.block_count"), 1..=64),
            groups: GROUPS.0,
            eps: GROUPS.1,
            aligner_layers: k.usize(("num_hidden_layers", "codec.aligner_count"), 1..=16),
        };
        (codec, k.usize(("image_token_embed_dim", "head.feed_forward_length"), WIDTH))
    });
    let pixels = match k.source {
        Source::Hf(_) => PixelSpec::default(),
        Source::Gguf { .. } => pixels(k),
    };
    let given = k.within("vq_config", &[], |k| k.optional(("num_patches", ""), 1..=4096));
    let pictures = PictureSpec { side, pixels, tower, codec, head_hidden };
    if let Some(grid) = given.filter(|grid| *grid != pictures.grid()) {
        k.fault(("vq_config.num_patches", ""), pictures.grid().to_string(), grid.to_string());
    }
    check(k, &pictures);
    spec.pictures = Some(pictures);
    spec
}

/// DeepSeek's own description.
pub(super) fn original(k: &mut Keys<'_>, options: &Options) -> ModelSpec {
    let mut spec = k.within("language_config", LANGUAGE, |k| language(k, options));
    let (side, tower) = k.within("vision_config", VISION, |k| {
        k.only(("params.model_name", ""), &["siglip_large_patch16_384"]);
        k.only(("params.select_feature", ""), &["same"]);
        // `_tiny` is a test model's way to say what the code of a real one fixes.
        let dim = k.optional(("_tiny.width", ""), WIDTH).unwrap_or(1024);
        let tower = TowerSpec {
            patch: k.optional(("_tiny.patch_size", ""), 1..=256).unwrap_or(16),
            dim,
            layers: k.optional(("_tiny.layers", ""), 1..=256).unwrap_or(24),
            heads: k.optional(("_tiny.heads", ""), 1..=256).unwrap_or(16),
            hidden: (dim as f64 * k.optional_f64(("_tiny.mlp_ratio", ""), 0.01..=64.0).unwrap_or(4.0)) as usize,
            eps: 1e-6,
            aligner_layers: 2,
        };
        (k.optional(("params.image_size", ""), 1..=4096).unwrap_or(384), tower)
    });
    let aligner_layers = |k: &mut Keys<'_>, section| {
        k.within(section, &[], |k| {
            k.only(("params.projector_type", ""), &["mlp_gelu"]);
            k.optional(("params.depth", ""), 1..=16).unwrap_or(2)
        })
    };
    let tower = TowerSpec { aligner_layers: aligner_layers(k, "aligner_config"), ..tower };
    let embed_layers = aligner_layers(k, "gen_aligner_config");
    let codec = k.within("gen_vision_config", &[], |k| {
        k.only(("cls", ""), &["VQ-16"]);
        CodecSpec {
            codes: k.optional(("params.image_token_size", ""), 1..=1 << 20).unwrap_or(16384),
            code_dim: k.optional(("params.n_embed", ""), 1..=4096).unwrap_or(8),
            latent: k.optional(("_tiny.z_channels", ""), 1..=4096).unwrap_or(256),
            base: k.optional(("_tiny.ch", ""), 1..=4096).unwrap_or(128),
            multipliers: k.usizes(("_tiny.ch_mult", ""), 1..=64, 8).unwrap_or_else(|| MULTIPLIERS.to_vec()),
            blocks: k.optional(("_tiny.num_res_blocks", ""), 1..=64).unwrap_or(2),
            groups: GROUPS.0,
            eps: GROUPS.1,
            aligner_layers: embed_layers,
        }
    });
    let head_hidden = k.within("gen_head_config", &[], |k| k.usize(("params.image_token_embed", ""), WIDTH));
    let pictures = PictureSpec { side, pixels: PixelSpec::default(), tower, codec, head_hidden };
    check(k, &pictures);
    spec.pictures = Some(pictures);
    spec
}

/// What the parts must have in common.
fn check(k: &mut Keys<'_>, p: &PictureSpec) {
    let whole = |part: usize| p.side.is_multiple_of(part) && p.side >= part;
    if !whole(p.tower.patch) {
        k.fault(
            ("vision_config.patch_size", "vision.patch_size"),
            format!("a divisor of {}", p.side),
            p.tower.patch.to_string(),
        );
    }
    if !whole(p.codec.factor()) {
        let key: Key = ("vq_config.channel_multiplier", "codec.channel_multiplier");
        k.fault(key, format!("levels that halve {} evenly", p.side), p.codec.multipliers.len().to_string());
    }
    if !p.tower.dim.is_multiple_of(p.tower.heads) {
        let key: Key = ("vision_config.num_attention_heads", "vision.attention.head_count");
        k.fault(key, format!("a divisor of {}", p.tower.dim), p.tower.heads.to_string());
    }
    if !p.codec.multipliers.iter().all(|m| (m * p.codec.base).is_multiple_of(p.codec.groups)) {
        let key: Key = ("vq_config.base_channels", "codec.base_channels");
        k.fault(key, format!("a multiple of {} groups", p.codec.groups), p.codec.base.to_string());
    }
}

/// How pixels become numbers: `preprocessor_config.json`, or our GGUF.
pub(super) fn pixels(k: &mut Keys<'_>) -> PixelSpec {
    let plain = PixelSpec::default();
    let triple = |k: &mut Keys<'_>, key: Key| k.triple(key, 0.0..=255.0);
    let mean = triple(k, ("image_mean", "pixels.mean")).unwrap_or(plain.mean.map(f64::from));
    let std = triple(k, ("image_std", "pixels.std")).unwrap_or(plain.std.map(f64::from));
    if std.iter().any(|s| *s <= 0.0) {
        k.fault(("image_std", "pixels.std"), "positive numbers", format!("{std:?}"));
    }
    PixelSpec {
        normalise: k.bool(("do_normalize", "pixels.normalise"), true),
        mean: mean.map(|v| v as f32),
        std: std.map(|v| v as f32),
        background: triple(k, ("background_color", "pixels.background"))
            .unwrap_or_else(|| mean.map(|m| m * 255.0))
            .map(|v| v as u8),
        least: k.optional(("min_size", "pixels.least"), 1..=4096).unwrap_or(plain.least),
    }
}
