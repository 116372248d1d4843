//! Llama: DeepSeek-LLM, DeepSeek-Coder, R1-Distill-Llama.

use fathom_core::RopeLayout;

use super::keys::{Keys, Source};
use super::{Common, Options, read_rope};
use crate::spec::{Mixer, ModelSpec};

/// llama.cpp's converter permutes the rows of q and k so that pairs lie side by side; Hugging Face's files do not.
pub(super) fn layout(k: &Keys<'_>) -> RopeLayout {
    match k.source {
        Source::Hf(_) => RopeLayout::Halves,
        Source::Gguf { .. } => RopeLayout::Interleaved,
    }
}

pub(super) fn spec(k: &mut Keys<'_>, options: &Options) -> ModelSpec {
    k.off(("attention_bias", ""));
    k.off(("mlp_bias", ""));
    let c = Common::read(k);
    let head_dim = c.head_dim(k);
    let rope = read_rope(k, head_dim, layout(k), options, false);
    let mixer = Mixer::Gqa { heads: c.heads, kv_heads: c.kv_heads, head_dim, qkv_bias: false, qk_norm: false };
    c.dense(mixer, rope)
}
