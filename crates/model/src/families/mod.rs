//! Model families: the only place that knows an architecture's name.
//!
//! A family turns a description into a [`ModelSpec`]; it is data with a little reading around it. To add a model that fits the
//! spec's variants, write one file here and add its line to [`FAMILIES`] (`docs/adding-a-model.md`).

mod deepseek;
mod janus;
pub mod keys;
mod llama;
mod qwen;
pub mod write;

use std::ops::RangeInclusive;
use std::path::Path;

use fathom_core::RopeLayout;
use fathom_files::Array;

use crate::error::{Error, Result};
use crate::picture::PixelSpec;
use crate::spec::{Ffn, LayerSpec, Mixer, ModelSpec, RopeScaling, RopeSpec, yarn_magnitude};
use keys::{Key, Keys, Source};

/// One architecture.
pub struct Family {
    /// Name for people.
    pub name: &'static str,
    /// `architectures[0]` of `config.json`.
    pub hf: &'static str,
    /// `general.architecture` of GGUF.
    pub gguf: &'static str,
    /// Reads the spec.
    spec: fn(&mut Keys<'_>, &Options) -> ModelSpec,
}

/// How to read what releases leave open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What to do with `attn_factor`.
    pub attn_factor: AttnFactor,
}

/// YaRN's `attn_factor` of R1-0528-Qwen3-8B is a key that some loaders read and others do not; the results differ
/// (facts, A2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttnFactor {
    /// Multiply it in: cos and sin are not scaled in the end.
    #[default]
    Honour,
    /// As if it were not there.
    Ignore,
}

/// All architectures. The one place to add a line.
pub const FAMILIES: &[Family] = &[
    Family { name: "Llama", hf: "LlamaForCausalLM", gguf: "llama", spec: llama::spec },
    Family { name: "Qwen2", hf: "Qwen2ForCausalLM", gguf: "qwen2", spec: qwen::qwen2 },
    Family { name: "Qwen3", hf: "Qwen3ForCausalLM", gguf: "qwen3", spec: qwen::qwen3 },
    Family { name: "DeepSeek-MoE", hf: "DeepseekForCausalLM", gguf: "deepseek", spec: deepseek::moe },
    Family { name: "DeepSeek-V2", hf: "DeepseekV2ForCausalLM", gguf: "deepseek2", spec: deepseek::latent },
    Family { name: "Janus", hf: "JanusForConditionalGeneration", gguf: "janus", spec: janus::nested },
    Family { name: "Janus", hf: "MultiModalityCausalLM", gguf: "janus", spec: janus::original },
    Family { name: "DeepSeek-V3", hf: "DeepseekV3ForCausalLM", gguf: "deepseek2", spec: deepseek::latent },
];

/// Architectures that are known and not supported, with what to say.
const REFUSED: &[(&str, &str)] = &[
    ("DeepseekV32ForCausalLM", "V3.2's sparse attention is not implemented yet; V3.1 and R1-0528 are"),
    (
        "DeepseekV4ForCausalLM",
        "V4's compressed attention and hyper-connections are not implemented yet; V3.1 and R1-0528 are",
    ),
    ("DeepseekV41ForCausalLM", "V4.1 is not implemented yet; V3.1 and R1-0528 are"),
    ("deepseek32", "V3.2's sparse attention is not implemented yet; V3.1 and R1-0528 are"),
    ("deepseek3_2", "V3.2's sparse attention is not implemented yet; V3.1 and R1-0528 are"),
    ("deepseek4", "V4's compressed attention and hyper-connections are not implemented yet; V3.1 and R1-0528 are"),
    ("deepseek_v4", "V4's compressed attention and hyper-connections are not implemented yet; V3.1 and R1-0528 are"),
];

/// Reads a spec from a `config.json` or GGUF metadata.
///
/// # Errors
/// An unknown or refused architecture, or all faults of the description at once.
pub fn read_spec(source: Source<'_>, file: &Path, options: &Options) -> Result<ModelSpec> {
    let mut keys = Keys::new(source, file);
    let found = match source {
        Source::Hf(config) => match config.get("architectures").and_then(|a| a.get(0)).and_then(|a| a.as_str()) {
            Some(name) => name,
            None => {
                keys.fault(("architectures", ""), "a list with the architecture's name", "nothing");
                return Err(keys.faults.into());
            }
        },
        Source::Gguf { arch, .. } => arch,
    };
    if let Some((name, why)) = REFUSED.iter().find(|(name, _)| *name == found) {
        return Err(Error::Refused { what: (*name).to_owned(), why });
    }
    let is = |f: &&Family| match source {
        Source::Hf(_) => f.hf == found,
        Source::Gguf { .. } => f.gguf == found,
    };
    let Some(family) = FAMILIES.iter().find(is) else {
        let known = FAMILIES.iter().map(|f| if matches!(source, Source::Hf(_)) { f.hf } else { f.gguf }).collect();
        return Err(Error::UnknownArchitecture { found: found.to_owned(), known });
    };
    let mut spec = (family.spec)(&mut keys, options);
    if spec.family.is_empty() {
        spec.family = family.name;
    }
    Ok(keys.faults.or(spec)?)
}

/// How pixels become numbers, from a `preprocessor_config.json`.
///
/// # Errors
/// All its faults at once.
pub fn read_pixels(config: &serde_json::Value, file: &Path) -> Result<PixelSpec> {
    let mut keys = Keys::new(Source::Hf(config), file);
    let pixels = janus::pixels(&mut keys);
    Ok(keys.faults.or(pixels)?)
}

/// A chat template for models whose files bring none.
pub fn template(spec: &ModelSpec) -> Option<&'static str> {
    spec.pictures.as_ref().map(janus::template)
}

/// The most that any width may be: far above every model, far below overflow.
const WIDTH: RangeInclusive<usize> = 1..=1 << 20;

/// What every family has.
struct Common {
    vocab: usize,
    dim: usize,
    eps: f32,
    context: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    hidden: usize,
    tied: bool,
}

impl Common {
    fn read(k: &mut Keys<'_>) -> Self {
        k.only(("hidden_act", ""), &["silu"]);
        let heads = k.usize(("num_attention_heads", "attention.head_count"), 1..=1 << 12);
        // Old GGUF files have no such key; the token list says it.
        let tokens = match k.source {
            Source::Gguf { meta, .. } => meta.get::<Array<'_>>("tokenizer.ggml.tokens").ok().flatten(),
            Source::Hf(_) => None,
        };
        let vocab_key = ("vocab_size", "vocab_size");
        let vocab = match tokens {
            Some(tokens) => k.optional(vocab_key, 1..=1 << 24).unwrap_or(tokens.len()),
            None => k.usize(vocab_key, 1..=1 << 24),
        };
        let kv_heads = k.optional(("num_key_value_heads", "attention.head_count_kv"), 1..=heads).unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            k.fault(
                ("num_key_value_heads", "attention.head_count_kv"),
                format!("a divisor of {heads}"),
                kv_heads.to_string(),
            );
        }
        Common {
            vocab,
            dim: k.usize(("hidden_size", "embedding_length"), WIDTH),
            eps: k.f64(("rms_norm_eps", "attention.layer_norm_rms_epsilon"), 0.0..=1.0) as f32,
            context: k.usize(("max_position_embeddings", "context_length"), 1..=1 << 30),
            layers: k.usize(("num_hidden_layers", "block_count"), 1..=1024),
            heads,
            kv_heads,
            hidden: k.usize(("intermediate_size", "feed_forward_length"), WIDTH),
            // GGUF leaves the head out instead; `weights` looks for it.
            tied: k.bool(("tie_word_embeddings", ""), false),
        }
    }

    fn head_dim(&self, k: &mut Keys<'_>) -> usize {
        let given = k.optional(("head_dim", "attention.key_length"), WIDTH);
        let value = given.unwrap_or(self.dim / self.heads);
        if value == 0 || (given.is_none() && !self.dim.is_multiple_of(self.heads)) {
            k.fault(
                ("hidden_size", "embedding_length"),
                format!("a multiple of the {} heads", self.heads),
                self.dim.to_string(),
            );
            return 1;
        }
        value
    }

    fn spec(self, rope: RopeSpec, layers: Vec<LayerSpec>) -> ModelSpec {
        ModelSpec {
            family: "",
            vocab: self.vocab,
            dim: self.dim,
            eps: self.eps,
            context: self.context,
            rope,
            layers,
            tied: self.tied,
            mtp: None,
            pictures: None,
        }
    }

    /// A model whose blocks are all alike.
    fn dense(self, mixer: Mixer, rope: RopeSpec) -> ModelSpec {
        let layer = LayerSpec { mixer, ffn: Ffn::Dense { hidden: self.hidden } };
        let layers = vec![layer; self.layers];
        self.spec(rope, layers)
    }
}

/// Rotary embedding of `dim` elements. `mla`: DeepSeek's way of scaling cos and sin.
fn read_rope(k: &mut Keys<'_>, dim: usize, layout: RopeLayout, options: &Options, mla: bool) -> RopeSpec {
    if !dim.is_multiple_of(2) {
        k.fault(("head_dim", "rope.dimension_count"), "an even number of rotated elements", dim.to_string());
    }
    // Transformers 5 moved the keys into `rope_parameters`.
    let new = matches!(k.source, Source::Hf(c) if c.get("rope_parameters").is_some());
    let key =
        |old: &'static str, moved: &'static str, gguf: &'static str| -> Key { (if new { moved } else { old }, gguf) };
    let theta = k
        .optional_f64(key("rope_theta", "rope_parameters.rope_theta", "rope.freq_base"), 1.0..=1e12)
        .unwrap_or(10_000.0);
    let kind = k
        .str(key("rope_scaling.rope_type", "rope_parameters.rope_type", "rope.scaling.type"))
        .or_else(|| k.str(("rope_scaling.type", "")))
        .unwrap_or("none");
    let factor_key = key("rope_scaling.factor", "rope_parameters.factor", "rope.scaling.factor");
    let original_key = key(
        "rope_scaling.original_max_position_embeddings",
        "rope_parameters.original_max_position_embeddings",
        "rope.scaling.original_context_length",
    );
    let scaling = match kind {
        "none" | "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: k.f64(factor_key, 1.0..=1e6) },
        "llama3" => RopeScaling::Llama3 {
            factor: k.f64(factor_key, 1.0..=1e6),
            low: k.f64(key("rope_scaling.low_freq_factor", "rope_parameters.low_freq_factor", ""), 1e-6..=1e6),
            high: k.f64(key("rope_scaling.high_freq_factor", "rope_parameters.high_freq_factor", ""), 1e-6..=1e6),
            original: k.f64(original_key, 1.0..=1e9),
        },
        "yarn" => read_yarn(k, key, factor_key, original_key, options, mla),
        other => {
            k.fault(
                key("rope_scaling.type", "rope_parameters.rope_type", "rope.scaling.type"),
                "none, linear, llama3 or yarn",
                other,
            );
            RopeScaling::None
        }
    };
    RopeSpec { dim, theta, layout, scaling }
}

fn read_yarn(
    k: &mut Keys<'_>,
    key: impl Fn(&'static str, &'static str, &'static str) -> Key,
    factor_key: Key,
    original_key: Key,
    options: &Options,
    mla: bool,
) -> RopeScaling {
    let factor = k.f64(factor_key, 1.0..=1e6);
    let gguf = matches!(k.source, Source::Gguf { .. });
    let attention = if mla && !gguf {
        // DeepSeek's HF code: g(F, mscale) / g(F, mscale_all_dim), defaults 1 and 0.
        let mscale = k.optional_f64(key("rope_scaling.mscale", "rope_parameters.mscale", ""), 0.0..=100.0);
        yarn_magnitude(factor, mscale.unwrap_or(1.0)) / yarn_magnitude(factor, read_mscale_all_dim(k))
    } else if mla {
        // GGUF cannot hold two different values; shipped models have equal ones, whose ratio is 1.
        1.0
    } else {
        let given =
            k.optional_f64(key("rope_scaling.attention_factor", "rope_parameters.attention_factor", ""), 0.0..=100.0);
        let extra = k
            .optional_f64(
                key("rope_scaling.attn_factor", "rope_parameters.attn_factor", "rope.scaling.attn_factor"),
                0.0..=100.0,
            )
            .or_else(|| k.optional_f64(("", "rope.scaling.yarn_attn_factor"), 0.0..=100.0));
        let honoured = if options.attn_factor == AttnFactor::Honour { extra.unwrap_or(1.0) } else { 1.0 };
        given.unwrap_or(yarn_magnitude(factor, 1.0) * honoured)
    };
    RopeScaling::Yarn {
        factor,
        original: k.f64(original_key, 1.0..=1e9),
        beta_fast: k
            .optional_f64(
                key("rope_scaling.beta_fast", "rope_parameters.beta_fast", "rope.scaling.yarn_beta_fast"),
                1e-6..=1e6,
            )
            .unwrap_or(32.0),
        beta_slow: k
            .optional_f64(
                key("rope_scaling.beta_slow", "rope_parameters.beta_slow", "rope.scaling.yarn_beta_slow"),
                1e-6..=1e6,
            )
            .unwrap_or(1.0),
        attention,
    }
}

/// YaRN's `mscale_all_dim`, which scales latent attention's scores; GGUF stores a tenth of it (traps, 4).
fn read_mscale_all_dim(k: &mut Keys<'_>) -> f64 {
    match k.source {
        Source::Gguf { .. } => {
            k.optional_f64(("", "rope.scaling.yarn_log_multiplier"), 0.0..=10.0).map_or(0.0, |v| v / 0.1)
        }
        Source::Hf(c) if c.get("rope_parameters").is_some() => {
            k.optional_f64(("rope_parameters.mscale_all_dim", ""), 0.0..=100.0).unwrap_or(0.0)
        }
        Source::Hf(_) => k.optional_f64(("rope_scaling.mscale_all_dim", ""), 0.0..=100.0).unwrap_or(0.0),
    }
}
