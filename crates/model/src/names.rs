//! What a tensor is for, and what it is called in each file layout.
//!
//! A [`Slot`] is the canonical identity. Loader, converter and trainer share this one table, and a test walks it both
//! ways.

use std::fmt;

/// The role of a tensor in its layer, or in the whole model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the table below says what each is called, which says what it is
pub enum Slot {
    TokenEmbd,
    OutputNorm,
    Output,
    RopeFreqs,
    AttnNorm,
    AttnQ,
    AttnQBias,
    AttnK,
    AttnKBias,
    AttnV,
    AttnVBias,
    AttnOut,
    AttnQNorm,
    AttnKNorm,
    QA,
    QANorm,
    QB,
    KvA,
    KvANorm,
    KvB,
    KB,
    VB,
    FfnNorm,
    FfnGate,
    FfnUp,
    FfnDown,
    Router,
    RouterBias,
    GateExps,
    UpExps,
    DownExps,
    GateShexp,
    UpShexp,
    DownShexp,
    MtpEmbedNorm,
    MtpHiddenNorm,
    MtpProj,
    MtpHeadNorm,
    MtpHead,
    MtpEmbd,
}

use Slot::*;

/// Slots of the whole model: GGUF name, Hugging Face name.
const GLOBAL: &[(Slot, &str, &str)] = &[
    (TokenEmbd, "token_embd.weight", "model.embed_tokens.weight"),
    (OutputNorm, "output_norm.weight", "model.norm.weight"),
    (Output, "output.weight", "lm_head.weight"),
    (RopeFreqs, "rope_freqs.weight", ""),
];

/// Slots of a layer, behind `blk.N.` or `model.layers.N.`. `{e}` stands for an expert; an empty name means that
/// the layout has no such tensor.
const LAYER: &[(Slot, &str, &str)] = &[
    (AttnNorm, "attn_norm.weight", "input_layernorm.weight"),
    (AttnQ, "attn_q.weight", "self_attn.q_proj.weight"),
    (AttnQBias, "attn_q.bias", "self_attn.q_proj.bias"),
    (AttnK, "attn_k.weight", "self_attn.k_proj.weight"),
    (AttnKBias, "attn_k.bias", "self_attn.k_proj.bias"),
    (AttnV, "attn_v.weight", "self_attn.v_proj.weight"),
    (AttnVBias, "attn_v.bias", "self_attn.v_proj.bias"),
    (AttnOut, "attn_output.weight", "self_attn.o_proj.weight"),
    (AttnQNorm, "attn_q_norm.weight", "self_attn.q_norm.weight"),
    (AttnKNorm, "attn_k_norm.weight", "self_attn.k_norm.weight"),
    (QA, "attn_q_a.weight", "self_attn.q_a_proj.weight"),
    (QANorm, "attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight"),
    (QB, "attn_q_b.weight", "self_attn.q_b_proj.weight"),
    (KvA, "attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight"),
    (KvANorm, "attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight"),
    (KvB, "attn_kv_b.weight", "self_attn.kv_b_proj.weight"),
    (KB, "attn_k_b.weight", ""),
    (VB, "attn_v_b.weight", ""),
    (FfnNorm, "ffn_norm.weight", "post_attention_layernorm.weight"),
    (FfnGate, "ffn_gate.weight", "mlp.gate_proj.weight"),
    (FfnUp, "ffn_up.weight", "mlp.up_proj.weight"),
    (FfnDown, "ffn_down.weight", "mlp.down_proj.weight"),
    (Router, "ffn_gate_inp.weight", "mlp.gate.weight"),
    (RouterBias, "exp_probs_b.bias", "mlp.gate.e_score_correction_bias"),
    (GateExps, "ffn_gate_exps.weight", "mlp.experts.{e}.gate_proj.weight"),
    (UpExps, "ffn_up_exps.weight", "mlp.experts.{e}.up_proj.weight"),
    (DownExps, "ffn_down_exps.weight", "mlp.experts.{e}.down_proj.weight"),
    (GateShexp, "ffn_gate_shexp.weight", "mlp.shared_experts.gate_proj.weight"),
    (UpShexp, "ffn_up_shexp.weight", "mlp.shared_experts.up_proj.weight"),
    (DownShexp, "ffn_down_shexp.weight", "mlp.shared_experts.down_proj.weight"),
    (MtpEmbedNorm, "nextn.enorm.weight", "enorm.weight"),
    (MtpHiddenNorm, "nextn.hnorm.weight", "hnorm.weight"),
    (MtpProj, "nextn.eh_proj.weight", "eh_proj.weight"),
    (MtpHeadNorm, "nextn.shared_head_norm.weight", "shared_head.norm.weight"),
    (MtpHead, "nextn.shared_head_head.weight", "shared_head.head.weight"),
    (MtpEmbd, "nextn.embed_tokens.weight", "embed_tokens.weight"),
];

/// How a file names its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// llama.cpp's names; experts stacked.
    Gguf,
    /// Hugging Face's names; experts singly.
    Hf,
    /// The same with the language model inside a model that also sees and draws.
    HfNested,
    /// The makers' own names of such a model.
    Original,
}

impl Naming {
    /// The layout of files that are no GGUF, told by what they call the embedding.
    pub fn of_language_model(contains: impl Fn(&str) -> bool) -> Naming {
        let embedding = TensorId::global(TokenEmbd);
        let has = |naming: &Naming| embedding.name(*naming).is_some_and(|name| contains(&name));
        [Naming::HfNested, Naming::Original].into_iter().find(has).unwrap_or(Naming::Hf)
    }

    /// A Hugging Face name of a lone language model in this layout.
    fn nest(self, name: String) -> String {
        match (self, name.strip_prefix("model.")) {
            (Naming::Gguf | Naming::Hf, _) | (Naming::HfNested, None) => name,
            (Naming::HfNested, Some(rest)) => format!("model.language_model.{rest}"),
            (Naming::Original, _) => format!("language_model.{name}"),
        }
    }

    /// The inverse of [`Naming::nest`].
    fn flat(self, name: &str) -> Option<String> {
        match self {
            Naming::Gguf | Naming::Hf => Some(name.to_owned()),
            Naming::HfNested => match name.strip_prefix("model.language_model.") {
                Some(rest) => Some(format!("model.{rest}")),
                None => (!name.starts_with("model.")).then(|| name.to_owned()),
            },
            Naming::Original => name.strip_prefix("language_model.").map(str::to_owned),
        }
    }
}

/// One tensor of a model: its slot, layer (`None`: the whole model's) and, where a file keeps them singly, expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorId {
    /// Role.
    pub slot: Slot,
    /// Layer.
    pub layer: Option<usize>,
    /// Expert.
    pub expert: Option<usize>,
}

impl TensorId {
    /// A tensor of the whole model.
    pub const fn global(slot: Slot) -> Self {
        TensorId { slot, layer: None, expert: None }
    }

    /// A tensor of a layer.
    pub const fn layer(slot: Slot, layer: usize) -> Self {
        TensorId { slot, layer: Some(layer), expert: None }
    }

    /// The name in a file, or `None` where the layout has no such tensor.
    pub fn name(&self, naming: Naming) -> Option<String> {
        let table = if self.layer.is_some() { LAYER } else { GLOBAL };
        let (_, gguf, hf) = table.iter().find(|(s, ..)| *s == self.slot)?;
        let pattern = if naming == Naming::Gguf { gguf } else { hf };
        if pattern.is_empty() || (pattern.contains("{e}") != self.expert.is_some()) {
            return None;
        }
        let suffix = match self.expert {
            Some(e) => pattern.replace("{e}", &e.to_string()),
            None => (*pattern).to_owned(),
        };
        Some(naming.nest(match (self.layer, naming) {
            (None, _) => suffix,
            (Some(n), Naming::Gguf) => format!("blk.{n}.{suffix}"),
            (Some(n), _) => format!("model.layers.{n}.{suffix}"),
        }))
    }

    /// The tensor that a name means.
    pub fn parse(name: &str, naming: Naming) -> Option<TensorId> {
        let pick = |row: &(Slot, &'static str, &'static str)| if naming == Naming::Gguf { row.1 } else { row.2 };
        let name = naming.flat(name)?;
        let name = name.as_str();
        if let Some(row) = GLOBAL.iter().find(|r| pick(r) == name) {
            return Some(TensorId::global(row.0));
        }
        let rest = name.strip_prefix(if naming == Naming::Gguf { "blk." } else { "model.layers." })?;
        let (number, suffix) = rest.split_once('.')?;
        let layer = canonical(number)?;
        LAYER.iter().find_map(|row| {
            let pattern = pick(row);
            let expert = match pattern.split_once("{e}") {
                Some((before, after)) => Some(canonical(suffix.strip_prefix(before)?.strip_suffix(after)?)?),
                None if !pattern.is_empty() && pattern == suffix => None,
                None => return None,
            };
            Some(TensorId { slot: row.0, layer: Some(layer), expert })
        })
    }
}

/// A decimal number written the one usual way.
fn canonical(digits: &str) -> Option<usize> {
    let n: usize = digits.parse().ok()?;
    (n.to_string() == digits).then_some(n)
}

impl fmt::Display for TensorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.slot)?;
        if let Some(n) = self.layer {
            write!(f, " of layer {n}")?;
        }
        if let Some(e) = self.expert {
            write!(f, ", expert {e}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_again() {
        let mut seen = std::collections::HashSet::new();
        for naming in [Naming::Gguf, Naming::Hf, Naming::HfNested, Naming::Original] {
            for (table, layer) in [(GLOBAL, None), (LAYER, Some(61))] {
                for &(slot, ..) in table {
                    for expert in [None, Some(0), Some(255)] {
                        let id = TensorId { slot, layer, expert };
                        if let Some(name) = id.name(naming) {
                            assert_eq!(TensorId::parse(&name, naming), Some(id), "{name}");
                            assert!(seen.insert((naming as u8, name)));
                        }
                    }
                }
            }
        }
        assert_eq!(seen.len(), 160);
    }

    #[test]
    fn strangers_are_strangers() {
        for name in ["blk.x.attn_q.weight", "blk.01.attn_q.weight", "blk.1.attn_q", "blk.1.", "attn_q.weight", ""] {
            assert_eq!(TensorId::parse(name, Naming::Gguf), None, "{name}");
        }
        for name in ["model.layers.3.mlp.experts.-1.up_proj.weight", "model.layers.3.mlp.experts..up_proj.weight"] {
            assert_eq!(TensorId::parse(name, Naming::Hf), None, "{name}");
        }
    }
}
