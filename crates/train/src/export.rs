//! Parameters to files: a Hugging Face directory for going on, a GGUF file for use.

use std::path::Path;

use fathom_core::{FormatId, Weight, format};
use fathom_files::{GgufWriter, SafeTensorsWriter, write_file};
use fathom_model::families::write::{config_json, gguf_metadata};
use fathom_model::names::{Naming, Slot, TensorId};
use fathom_model::weights::Demand;
use fathom_text::{Tokenizer, VocabLists};
use serde_json::json;

use crate::error::Result;
use crate::params::{Param, Params};
use crate::vocabulary::{self, BOS, EOS, TEMPLATE};

/// The tensors of one parameter under Hugging Face's names, with their values: experts stand singly there.
fn hugging_face(p: &Param) -> Vec<(String, Vec<usize>, &[f32])> {
    let Demand { id, rows, cols, experts } = p.demand;
    let name = |id: TensorId| id.name(Naming::Hf).expect("invariant: a learned tensor has a Hugging Face name");
    if experts == 1 {
        let shape = if rows == 1 { vec![cols] } else { vec![rows, cols] };
        return vec![(name(id), shape, p.values())];
    }
    let one = rows / experts;
    let each = p.values().chunks_exact(one * cols).enumerate();
    each.map(|(e, v)| (name(TensorId { expert: Some(e), ..id }), vec![one, cols], v)).collect()
}

/// Writes `config.json`, `model.safetensors` in f32 and the tokenizer's files into `folder`, which exists.
///
/// # Errors
/// If the disk is full or fails.
pub fn write_hugging_face(folder: &Path, params: &Params, lists: &VocabLists) -> Result<()> {
    let mut config = config_json(&params.spec)?;
    let tokenizer = Tokenizer::new(&vocabulary::source(lists))?;
    config["bos_token_id"] = json!(tokenizer.bos());
    config["eos_token_id"] = json!(tokenizer.end_tokens()[0]);
    let mut writer = SafeTensorsWriter::new();
    writer.metadata("format", "pt");
    let tensors: Vec<_> = params.all.iter().flat_map(hugging_face).collect();
    for (name, shape, _) in &tensors {
        writer.tensor(name, format::F32, shape)?;
    }
    let values: std::collections::BTreeMap<&str, &[f32]> = tensors.iter().map(|(n, _, v)| (n.as_str(), *v)).collect();
    writer.write(&folder.join("model.safetensors"), |name, out| out.write(bytemuck::cast_slice(values[name])))?;
    let pretty = |v| serde_json::to_string_pretty(v).expect("invariant: a JSON value can be written");
    let put = |name: &str, text: String| write_file(&folder.join(name), text.as_bytes());
    put("config.json", pretty(&config))?;
    put("tokenizer.json", tokenizer.to_json())?;
    let texts = json!({"bos_token": BOS, "eos_token": EOS, "add_bos_token": true, "chat_template": TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast"});
    put("tokenizer_config.json", pretty(&texts))?;
    Ok(())
}

/// The format of a tensor in a file whose matrices are `wanted`: vectors, routers and what does not divide into blocks stay f32.
fn format_of(d: &Demand, wanted: FormatId) -> FormatId {
    let plain = d.rows == 1 || d.id.slot == Slot::Router || !d.cols.is_multiple_of(wanted.get().block_elems());
    if plain { format::F32 } else { wanted }
}

/// Writes a GGUF file with all it takes to run: weights with matrices in `wanted`, vocabulary, template, and `facts` as further
/// text under `general.*` (name, licence, where it comes from).
///
/// # Errors
/// If the format cannot be written, or the disk is full or fails.
pub fn write_gguf(
    path: &Path,
    params: &Params,
    lists: &VocabLists,
    wanted: FormatId,
    facts: &[(&str, &str)],
) -> Result<()> {
    let mut w = GgufWriter::new();
    gguf_metadata(&params.spec, &mut w)?;
    for (key, value) in facts {
        w.pair(&format!("general.{key}"), *value);
    }
    w.pair("general.sampling.temp", 0.0f32);
    w.pair("tokenizer.ggml.model", lists.model.as_str()).pair("tokenizer.ggml.pre", lists.pre.as_str());
    w.pair("tokenizer.ggml.tokens", &lists.tokens[..]);
    let kinds: Vec<i32> = lists.kinds.iter().map(|k| *k as i32).collect();
    w.pair("tokenizer.ggml.token_type", &kinds[..]).pair("tokenizer.ggml.merges", &lists.merges[..]);
    let id = |text: &str| lists.tokens.iter().position(|t| t == text).map(|i| i as u32);
    for (key, token) in [("bos", BOS), ("eos", EOS), ("padding", vocabulary::PAD)] {
        if let Some(id) = id(token) {
            w.pair(&format!("tokenizer.ggml.{key}_token_id"), id);
        }
    }
    w.pair("tokenizer.ggml.add_bos_token", true).pair("tokenizer.chat_template", TEMPLATE);
    for p in &params.all {
        let Demand { rows, cols, experts, .. } = p.demand;
        let shape = match (experts, rows) {
            (1, 1) => vec![cols],
            (1, _) => vec![rows, cols],
            _ => vec![experts, rows / experts, cols],
        };
        w.tensor(&p.name, format_of(&p.demand, wanted), &shape)?;
    }
    let mut data = w.create(path)?;
    for p in &params.all {
        let Demand { rows, cols, .. } = p.demand;
        let weight = Weight::encode(format_of(&p.demand, wanted), rows, cols, p.values())?;
        data.write(weight.bytes.as_slice())?;
    }
    Ok(data.finish()?)
}
