//! Qwen2 (R1-Distill-Qwen) and Qwen3 (R1-0528-Qwen3-8B).

use fathom_core::RopeLayout;

use super::keys::Keys;
use super::{Common, Options, read_rope};
use crate::spec::{Mixer, ModelSpec};

pub(super) fn qwen2(k: &mut Keys<'_>, options: &Options) -> ModelSpec {
    spec(k, options, true, false)
}

pub(super) fn qwen3(k: &mut Keys<'_>, options: &Options) -> ModelSpec {
    k.off(("attention_bias", ""));
    spec(k, options, false, true)
}

fn spec(k: &mut Keys<'_>, options: &Options, qkv_bias: bool, qk_norm: bool) -> ModelSpec {
    k.off(("use_sliding_window", ""));
    let c = Common::read(k);
    let head_dim = c.head_dim(k);
    let rope = read_rope(k, head_dim, RopeLayout::Halves, options, false);
    let mixer = Mixer::Gqa { heads: c.heads, kv_heads: c.kv_heads, head_dim, qkv_bias, qk_norm };
    c.dense(mixer, rope)
}
