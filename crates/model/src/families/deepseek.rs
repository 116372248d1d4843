//! DeepSeek's own architectures: MoE-16B; V2, V2-Lite, Coder-V2; V3, R1, V3.1.

use fathom_core::{RopeLayout, RouteSpec, Score};

use super::keys::{Keys, Source};
use super::{Common, Options, WIDTH, llama, read_mscale_all_dim, read_rope};
use crate::spec::{Ffn, LayerSpec, Mixer, ModelSpec, RopeScaling, yarn_magnitude};

/// DeepSeek-MoE-16B: Llama's attention with routed experts.
pub(super) fn moe(k: &mut Keys<'_>, options: &Options) -> ModelSpec {
    k.off(("attention_bias", ""));
    let c = Common::read(k);
    let head_dim = c.head_dim(k);
    let rope = read_rope(k, head_dim, llama::layout(k), options, false);
    let mixer = Mixer::Gqa { heads: c.heads, kv_heads: c.kv_heads, head_dim, qkv_bias: false, qk_norm: false };
    let layers = blocks(k, &c, mixer);
    c.spec(rope, layers)
}

/// V2 and V3: latent attention with routed experts.
pub(super) fn latent(k: &mut Keys<'_>, options: &Options) -> ModelSpec {
    k.off(("attention_bias", ""));
    if !k.bool(("use_mla", ""), true) {
        k.fault(("use_mla", ""), "true (the vision models' plain attention is not implemented)", "false");
    }
    let c = Common::read(k);
    let q_rank = k.optional(("q_lora_rank", "attention.q_lora_rank"), WIDTH);
    let kv_rank = k.usize(("kv_lora_rank", "attention.kv_lora_rank"), WIDTH);
    let rope_dim = k.usize(("qk_rope_head_dim", "rope.dimension_count"), WIDTH);
    let (nope, v_dim) = match k.source {
        Source::Hf(_) => (k.usize(("qk_nope_head_dim", ""), WIDTH), k.usize(("v_head_dim", ""), WIDTH)),
        Source::Gguf { .. } => {
            // New files give the heads' own widths behind `_mla`, old ones have only those.
            let mut head = |new, old| k.optional(("", new), WIDTH).unwrap_or_else(|| k.usize(("", old), WIDTH));
            let key = head("attention.key_length_mla", "attention.key_length");
            let value = head("attention.value_length_mla", "attention.value_length");
            if key <= rope_dim {
                k.fault(
                    ("", "attention.key_length_mla"),
                    format!("more than the {rope_dim} rotated elements"),
                    key.to_string(),
                );
            }
            (key.saturating_sub(rope_dim).max(1), value)
        }
    };
    let rope = read_rope(k, rope_dim, RopeLayout::Interleaved, options, true);
    let magnitude = match rope.scaling {
        RopeScaling::Yarn { factor, .. } => yarn_magnitude(factor, read_mscale_all_dim(k)),
        _ => 1.0,
    };
    let scale = ((nope + rope_dim) as f64).powf(-0.5) * magnitude * magnitude;
    let mixer = Mixer::Mla { heads: c.heads, q_rank, kv_rank, nope, rope: rope_dim, v_dim, scale: scale as f32 };

    let mtp = k.optional(("num_nextn_predict_layers", "nextn_predict_layers"), 0..=1).unwrap_or(0);
    let mut layers = blocks(k, &c, mixer);
    // GGUF counts the prediction block among the blocks, Hugging Face does not.
    let mtp = match k.source {
        Source::Gguf { .. } if mtp > 0 && layers.len() > 1 => layers.pop(),
        Source::Hf(_) if mtp > 0 => layers.last().cloned(),
        _ => None,
    };
    let mut spec = ModelSpec { mtp, ..c.spec(rope, layers) };
    let sigmoid = |l: &LayerSpec| matches!(&l.ffn, Ffn::Moe { route, .. } if route.score == Score::Sigmoid);
    spec.family = if spec.layers.iter().any(sigmoid) { "DeepSeek-V3" } else { "DeepSeek-V2" };
    spec
}

/// Dense blocks first, then blocks with experts.
fn blocks(k: &mut Keys<'_>, c: &Common, mixer: Mixer) -> Vec<LayerSpec> {
    let dense = k.optional(("first_k_dense_replace", "leading_dense_block_count"), 0..=1024).unwrap_or(0);
    let every = k.optional(("moe_layer_freq", ""), 1..=1024).unwrap_or(1);
    let experts = k.optional(("n_routed_experts", "expert_count"), 1..=1 << 12);
    let ffn = experts.map(|experts| experts_spec(k, experts));
    (0..c.layers)
        .map(|i| {
            let ffn = match &ffn {
                Some(moe) if i >= dense && i.is_multiple_of(every) => moe.clone(),
                _ => Ffn::Dense { hidden: c.hidden },
            };
            LayerSpec { mixer: mixer.clone(), ffn }
        })
        .collect()
}

fn experts_spec(k: &mut Keys<'_>, experts: usize) -> Ffn {
    let hidden = k.usize(("moe_intermediate_size", "expert_feed_forward_length"), WIDTH);
    let shared = k.optional(("n_shared_experts", "expert_shared_count"), 0..=1 << 10).unwrap_or(0);
    let top_k = k.usize(("num_experts_per_tok", "expert_used_count"), 1..=experts);
    let (score, method) = match k.source {
        Source::Hf(_) => {
            k.only(("scoring_func", ""), &["softmax", "sigmoid"]);
            k.only(("topk_method", ""), &["greedy", "group_limited_greedy", "noaux_tc"]);
            // V3's transformers port leaves both keys out of the configuration class, V3's files have them.
            let method = k.str(("topk_method", "")).unwrap_or("greedy");
            let sigmoid = k.str(("scoring_func", "")).map_or(method == "noaux_tc", |s| s == "sigmoid");
            (if sigmoid { Score::Sigmoid } else { Score::Softmax }, method)
        }
        Source::Gguf { .. } => {
            // 0 or nothing: files older than the key, all of them V2.
            match k.optional(("", "expert_gating_func"), 0..=2) {
                Some(2) => (Score::Sigmoid, "noaux_tc"),
                _ => (Score::Softmax, "group_limited_greedy"),
            }
        }
    };
    let (mut groups, mut groups_kept) = (1, 1);
    if method != "greedy" {
        groups = k.optional(("n_group", "expert_group_count"), 1..=experts).unwrap_or(1);
        groups_kept = k.optional(("topk_group", "expert_group_used_count"), 1..=groups).unwrap_or(groups);
        if !experts.is_multiple_of(groups) {
            k.fault(
                ("n_group", "expert_group_count"),
                format!("a divisor of the {experts} experts"),
                groups.to_string(),
            );
            groups = 1;
        } else if top_k > groups_kept * (experts / groups) {
            let most = groups_kept * (experts / groups);
            k.fault(
                ("num_experts_per_tok", "expert_used_count"),
                format!("at most the {most} experts of the kept groups"),
                top_k.to_string(),
            );
        }
    }
    let corrected = method == "noaux_tc";
    Ffn::Moe {
        route: RouteSpec {
            experts,
            top_k,
            score,
            groups,
            groups_kept,
            group_top: if corrected { 2 } else { 1 },
            normalise: k.bool(("norm_topk_prob", "expert_weights_norm"), false),
            scale: k.optional_f64(("routed_scaling_factor", "expert_weights_scale"), 0.0..=1e6).unwrap_or(1.0) as f32,
        },
        bias_corrected: corrected,
        hidden,
        shared_hidden: shared * hidden,
    }
}
