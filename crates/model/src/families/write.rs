//! A spec written out again: as `config.json`, and as GGUF metadata.
//!
//! What [`read_spec`](super::read_spec) reads comes back equal; a test walks both ways. Converters and trainers name their
//! models with this, and with nothing else.

use fathom_core::{RopeLayout, Score};
use fathom_files::GgufWriter;
use serde_json::{Map, Value, json};

use super::FAMILIES;
use crate::error::{Error, Result};
use crate::picture::PictureSpec;
use crate::spec::{Ffn, LayerSpec, Mixer, ModelSpec, RopeScaling, yarn_magnitude};

/// Scores of experts in GGUF's numbering.
const SOFTMAX: u32 = 1;
const SIGMOID: u32 = 2;

fn refused(what: &str, why: &'static str) -> Error {
    Error::Refused { what: what.to_owned(), why }
}

/// The feed-forward networks as every family describes them: dense blocks first, then blocks with experts.
struct Blocks<'a> {
    dense: usize,
    hidden: usize,
    moe: Option<&'a Ffn>,
}

fn blocks(spec: &ModelSpec) -> Result<Blocks<'_>> {
    let is_dense = |l: &LayerSpec| matches!(l.ffn, Ffn::Dense { .. });
    let dense = spec.layers.iter().take_while(|l| is_dense(l)).count();
    if spec.layers[dense..].iter().any(is_dense) {
        return Err(refused(spec.family, "blocks with experts and without alternate, which is not written yet"));
    }
    let moe = spec.layers.get(dense).map(|l| &l.ffn);
    let hidden = match (&spec.layers[0].ffn, moe) {
        (Ffn::Dense { hidden }, _) => *hidden,
        (Ffn::Moe { .. }, Some(Ffn::Moe { hidden, .. })) => *hidden,
        _ => unreachable!("invariant: the first block is dense or the first with experts"),
    };
    Ok(Blocks { dense, hidden, moe })
}

/// YaRN's `mscale_all_dim`, from the factor that it puts on the scores of latent attention.
fn mscale_all_dim(spec: &ModelSpec) -> f64 {
    match (&spec.rope.scaling, &spec.layers[0].mixer) {
        (RopeScaling::Yarn { factor, .. }, Mixer::Mla { nope, rope, scale, .. }) if *factor > 1.0 => {
            let magnitude = (f64::from(*scale) * ((nope + rope) as f64).sqrt()).sqrt();
            // As f32 holds it: the number that was read, not its last bit.
            f64::from((((magnitude - 1.0) / (0.1 * factor.ln())) * 1e5).round() as f32) / 1e5
        }
        _ => 0.0,
    }
}

/// The `config.json` of a spec.
///
/// # Errors
/// If the spec holds what only GGUF can say, or what no family has.
pub fn config_json(spec: &ModelSpec) -> Result<Value> {
    let family = FAMILIES.iter().find(|f| f.name == spec.family);
    let family = family.ok_or_else(|| refused(spec.family, "this family is not written"))?;
    if spec.pictures.is_some() {
        return Err(refused(spec.family, "a model with a picture side is written as GGUF only"));
    }
    let Blocks { dense, hidden, moe } = blocks(spec)?;
    let mut c = Map::new();
    let mut put = |key: &str, value: Value| c.insert(key.to_owned(), value);
    put("architectures", json!([family.hf]));
    put("model_type", json!(family.hf.trim_end_matches("ForCausalLM").to_lowercase().replace("seekv", "seek_v")));
    put("vocab_size", json!(spec.vocab));
    put("hidden_size", json!(spec.dim));
    put("num_hidden_layers", json!(spec.layers.len()));
    put("intermediate_size", json!(hidden));
    put("max_position_embeddings", json!(spec.context));
    put("rms_norm_eps", json!(f64::from(spec.eps)));
    put("hidden_act", json!("silu"));
    put("tie_word_embeddings", json!(spec.tied));
    put("rope_theta", json!(spec.rope.theta));
    put("torch_dtype", json!("float32"));
    match &spec.layers[0].mixer {
        Mixer::Gqa { heads, kv_heads, head_dim, .. } => {
            put("num_attention_heads", json!(heads));
            put("num_key_value_heads", json!(kv_heads));
            put("head_dim", json!(head_dim));
        }
        Mixer::Mla { heads, q_rank, kv_rank, nope, rope, v_dim, .. } => {
            put("num_attention_heads", json!(heads));
            put("num_key_value_heads", json!(heads));
            put("q_lora_rank", json!(q_rank));
            put("kv_lora_rank", json!(kv_rank));
            put("qk_nope_head_dim", json!(nope));
            put("qk_rope_head_dim", json!(rope));
            put("v_head_dim", json!(v_dim));
            put("num_nextn_predict_layers", json!(usize::from(spec.mtp.is_some())));
        }
    }
    if let Some(Ffn::Moe { route, bias_corrected, hidden, shared_hidden }) = moe {
        put("first_k_dense_replace", json!(dense));
        put("moe_layer_freq", json!(1));
        put("n_routed_experts", json!(route.experts));
        put("num_experts_per_tok", json!(route.top_k));
        put("n_shared_experts", json!(shared_hidden / hidden));
        put("moe_intermediate_size", json!(hidden));
        put("n_group", json!(route.groups));
        put("topk_group", json!(route.groups_kept));
        put("norm_topk_prob", json!(route.normalise));
        put("routed_scaling_factor", json!(f64::from(route.scale)));
        put("scoring_func", json!(if route.score == Score::Sigmoid { "sigmoid" } else { "softmax" }));
        let method = match (bias_corrected, route.groups) {
            (true, _) => "noaux_tc",
            (false, 1) => "greedy",
            (false, _) => "group_limited_greedy",
        };
        put("topk_method", json!(method));
    }
    match &spec.rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            put("rope_scaling", json!({"type": "linear", "factor": factor}));
        }
        RopeScaling::Llama3 { factor, low, high, original } => {
            let scaling = json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original});
            put("rope_scaling", scaling);
        }
        RopeScaling::Yarn { factor, original, beta_fast, beta_slow, attention } => {
            let mut scaling = json!({"type": "yarn", "factor": factor, "original_max_position_embeddings": original,
                "beta_fast": beta_fast, "beta_slow": beta_slow});
            if matches!(spec.layers[0].mixer, Mixer::Mla { .. }) {
                if *attention != 1.0 {
                    return Err(refused(spec.family, "YaRN with two different magnitudes is not written yet"));
                }
                let m = mscale_all_dim(spec);
                scaling["mscale"] = json!(m);
                scaling["mscale_all_dim"] = json!(m);
            } else {
                scaling["attention_factor"] = json!(attention);
            }
            put("rope_scaling", scaling);
        }
        RopeScaling::Divisors(_) => {
            return Err(refused(spec.family, "a table of frequency divisors is known to GGUF only"));
        }
    }
    Ok(Value::Object(c))
}

/// Whether the family's GGUF has the rotated rows of queries and keys side by side, whatever its other files do.
pub fn pairs_rotated_rows(spec: &ModelSpec) -> bool {
    FAMILIES.iter().any(|f| f.name == spec.family && ["llama", "deepseek"].contains(&f.gguf))
}

/// Declares the metadata of a spec, `general.architecture` included. The tensors of [`demanded`](crate::weights::demanded) go with it:
/// latent attention has its key and value projections in one tensor.
///
/// # Errors
/// If GGUF cannot say it.
pub fn gguf_metadata(spec: &ModelSpec, w: &mut GgufWriter) -> Result<()> {
    let family = FAMILIES.iter().find(|f| f.name == spec.family);
    let arch = family.ok_or_else(|| refused(spec.family, "this family is not written"))?.gguf;
    let Blocks { dense, hidden, moe } = blocks(spec)?;
    let int = |n: usize| u32::try_from(n).expect("invariant: widths are capped when read");
    let key = |name: &str| format!("{arch}.{name}");
    w.pair("general.architecture", arch);
    w.pair(&key("block_count"), int(spec.layers.len() + usize::from(spec.mtp.is_some())));
    w.pair(&key("context_length"), int(spec.context));
    w.pair(&key("embedding_length"), int(spec.dim));
    w.pair(&key("feed_forward_length"), int(hidden));
    w.pair(&key("attention.layer_norm_rms_epsilon"), spec.eps);
    w.pair(&key("rope.freq_base"), spec.rope.theta as f32);
    w.pair(&key("rope.dimension_count"), int(spec.rope.dim));
    w.pair(&key("vocab_size"), int(spec.vocab));
    match &spec.layers[0].mixer {
        Mixer::Gqa { heads, kv_heads, head_dim, .. } => {
            w.pair(&key("attention.head_count"), int(*heads));
            w.pair(&key("attention.head_count_kv"), int(*kv_heads));
            w.pair(&key("attention.key_length"), int(*head_dim));
            w.pair(&key("attention.value_length"), int(*head_dim));
            if pairs_rotated_rows(spec) && spec.rope.layout == RopeLayout::Halves {
                return Err(refused(spec.family, "GGUF wants its rotated rows interleaved, which is not done yet"));
            }
        }
        Mixer::Mla { heads, q_rank, kv_rank, nope, rope, v_dim, .. } => {
            w.pair(&key("attention.head_count"), int(*heads));
            w.pair(&key("attention.head_count_kv"), int(*heads));
            if let Some(rank) = q_rank {
                w.pair(&key("attention.q_lora_rank"), int(*rank));
            }
            w.pair(&key("attention.kv_lora_rank"), int(*kv_rank));
            w.pair(&key("attention.key_length"), int(nope + rope));
            w.pair(&key("attention.value_length"), int(*v_dim));
        }
    }
    if spec.mtp.is_some() {
        w.pair(&key("nextn_predict_layers"), 1u32);
    }
    if let Some(pictures) = &spec.pictures {
        picture_metadata(pictures, arch, w);
    }
    if let Some(Ffn::Moe { route, hidden, shared_hidden, .. }) = moe {
        w.pair(&key("leading_dense_block_count"), int(dense));
        w.pair(&key("expert_count"), int(route.experts));
        w.pair(&key("expert_used_count"), int(route.top_k));
        w.pair(&key("expert_shared_count"), int(shared_hidden / hidden));
        w.pair(&key("expert_feed_forward_length"), int(*hidden));
        w.pair(&key("expert_weights_scale"), route.scale);
        w.pair(&key("expert_weights_norm"), route.normalise);
        w.pair(&key("expert_gating_func"), if route.score == Score::Sigmoid { SIGMOID } else { SOFTMAX });
        if route.groups > 1 {
            w.pair(&key("expert_group_count"), int(route.groups));
            w.pair(&key("expert_group_used_count"), int(route.groups_kept));
        }
    }
    match &spec.rope.scaling {
        // Divisors are a tensor.
        RopeScaling::None | RopeScaling::Divisors(_) => {}
        RopeScaling::Linear { factor } => {
            w.pair(&key("rope.scaling.type"), "linear").pair(&key("rope.scaling.factor"), *factor as f32);
        }
        RopeScaling::Llama3 { .. } => {
            return Err(refused(spec.family, "GGUF wants Llama 3's scaling as a tensor, which is not written yet"));
        }
        RopeScaling::Yarn { factor, original, beta_fast, beta_slow, attention } => {
            w.pair(&key("rope.scaling.type"), "yarn").pair(&key("rope.scaling.factor"), *factor as f32);
            w.pair(&key("rope.scaling.original_context_length"), int(*original as usize));
            w.pair(&key("rope.scaling.yarn_beta_fast"), *beta_fast as f32);
            w.pair(&key("rope.scaling.yarn_beta_slow"), *beta_slow as f32);
            if matches!(spec.layers[0].mixer, Mixer::Mla { .. }) {
                if *attention != 1.0 {
                    return Err(refused(spec.family, "GGUF cannot hold YaRN with two different magnitudes"));
                }
                w.pair(&key("rope.scaling.yarn_log_multiplier"), (0.1 * mscale_all_dim(spec)) as f32);
            } else {
                w.pair(&key("rope.scaling.yarn_attn_factor"), (attention / yarn_magnitude(*factor, 1.0)) as f32);
            }
        }
    }
    Ok(())
}

/// Keys of the picture side (`docs/pictures.md`).
fn picture_metadata(p: &PictureSpec, arch: &str, w: &mut GgufWriter) {
    let int = |n: usize| u32::try_from(n).expect("invariant: widths are capped when read");
    let (tower, codec, pixels) = (&p.tower, &p.codec, &p.pixels);
    let numbers = [
        ("vision.image_size", p.side),
        ("vision.patch_size", tower.patch),
        ("vision.embedding_length", tower.dim),
        ("vision.block_count", tower.layers),
        ("vision.attention.head_count", tower.heads),
        ("vision.feed_forward_length", tower.hidden),
        ("vision.aligner_count", tower.aligner_layers),
        ("codec.codebook_size", codec.codes),
        ("codec.code_length", codec.code_dim),
        ("codec.latent_channels", codec.latent),
        ("codec.base_channels", codec.base),
        ("codec.block_count", codec.blocks),
        ("codec.aligner_count", codec.aligner_layers),
        ("head.feed_forward_length", p.head_hidden),
        ("pixels.least", pixels.least),
    ];
    for (name, n) in numbers {
        w.pair(&format!("{arch}.{name}"), int(n));
    }
    let multipliers: Vec<u32> = codec.multipliers.iter().map(|m| int(*m)).collect();
    w.pair(&format!("{arch}.codec.channel_multiplier"), &multipliers[..]);
    w.pair(&format!("{arch}.vision.attention.layer_norm_epsilon"), tower.eps);
    w.pair(&format!("{arch}.pixels.normalise"), pixels.normalise);
    w.pair(&format!("{arch}.pixels.mean"), &pixels.mean[..]);
    w.pair(&format!("{arch}.pixels.std"), &pixels.std[..]);
    w.pair(&format!("{arch}.pixels.background"), &pixels.background.map(u32::from)[..]);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use fathom_files::gguf::Gguf;

    use super::*;
    use crate::families::keys::Source;
    use crate::families::{Options, read_spec};

    fn configs() -> Vec<(String, Value)> {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
        let mut all = vec![data.join("configs/deepseek-v3-r1.config.json")];
        all.extend(std::fs::read_dir(data.join("models")).unwrap().map(|e| e.unwrap().path().join("config.json")));
        let read = |p: &std::path::PathBuf| {
            Some((p.display().to_string(), serde_json::from_slice(&std::fs::read(p).ok()?).unwrap()))
        };
        all.iter().filter_map(read).collect()
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let (mut hf, mut gguf) = (0, 0);
        for (name, config) in configs() {
            let path = Path::new(&name);
            let spec = read_spec(Source::Hf(&config), path, &Options::default()).unwrap();
            if let Ok(written) = config_json(&spec) {
                let again = read_spec(Source::Hf(&written), path, &Options::default());
                assert_eq!(again.unwrap(), spec, "{name}");
                hf += 1;
            }
            let mut writer = GgufWriter::new();
            if gguf_metadata(&spec, &mut writer).is_ok() {
                let dir = tempfile::tempdir().unwrap();
                let file = dir.path().join("x.gguf");
                writer.create(&file).unwrap().finish().unwrap();
                let meta = Gguf::open(&file).unwrap().metadata;
                let arch = meta.need("general.architecture").unwrap();
                let mut again = read_spec(Source::Gguf { arch, meta: &meta }, &file, &Options::default()).unwrap();
                // Whether there is a head only the tensors tell.
                again.tied = spec.tied;
                let factor = |s: &ModelSpec| {
                    if let RopeScaling::Yarn { attention, .. } = s.rope.scaling { attention } else { 0.0 }
                };
                // GGUF holds it in 32 bit.
                if (factor(&again) - factor(&spec)).abs() < 1e-6 {
                    again.rope = spec.rope.clone();
                }
                assert_eq!(again, spec, "{name}");
                gguf += 1;
            }
        }
        assert!(hf >= 7 && gguf >= 5, "{hf} configs and {gguf} files of metadata were compared");
    }
}
