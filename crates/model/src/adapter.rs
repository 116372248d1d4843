//! LoRA adapters (Hu et al. 2021): small matrices beside a frozen model's projections, in PEFT's files.
//!
//! A directory holds `adapter_config.json` and `adapter_model.safetensors`; tensors are called after the projection that they
//! stand beside, `base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight`. In memory a [`Pair`]'s `b` has the
//! adapter's scale multiplied in, and its rows lie as the model's file has them: llama.cpp's Llama files interleave
//! the rotated rows of queries and keys, PEFT's files never do.

use std::collections::BTreeMap;
use std::path::Path;

use fathom_core::{RopeLayout, Weight, format};
use fathom_files::safetensors::SafeTensors;
use fathom_files::{Fault, Faults, SafeTensorsWriter, read_capped, write_file};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::Result;
use crate::names::Slot::{self, *};
use crate::names::{Naming, TensorId};
use crate::spec::{Mixer, ModelSpec};
use crate::weights::{Demand, demanded};

/// Name of the description.
pub const CONFIG: &str = "adapter_config.json";
/// Name of the weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";
const MAX_CONFIG_BYTES: u64 = 1 << 20;
const PREFIX: &str = "base_model.model.";

/// The projections that adapters can stand beside: all but those of routed experts and of the latent's expansion.
pub const ADAPTABLE: [Slot; 13] =
    [AttnQ, AttnK, AttnV, AttnOut, QA, QB, KvA, FfnGate, FfnUp, FfnDown, GateShexp, UpShexp, DownShexp];

/// What stands beside one projection `[out, in]`.
#[derive(Clone, Debug)]
pub struct Pair {
    /// `[rank, in]`, f32.
    pub a: Weight,
    /// `[out, rank]`, f32: with the scale, rows as in the model's file.
    pub b: Weight,
}

/// Pairs by projection.
#[derive(Clone, Debug, Default)]
pub struct Adapter {
    /// Rank of the pairs, at most.
    pub rank: usize,
    /// The scale that is multiplied into every `b`.
    pub scale: f32,
    /// In the order of the model's tensors.
    pub pairs: Vec<(TensorId, Pair)>,
}

/// The projections of a model that can be adapted, by the last parts of their Hugging Face names: `q_proj`. In a model with routed experts
/// those of feed-forward networks have the part before as well, since PEFT matches ends of names.
pub fn targets(spec: &ModelSpec) -> Vec<(String, Demand)> {
    let layers = spec.layers.len();
    let own = |d: &Demand| ADAPTABLE.contains(&d.id.slot) && d.id.layer.is_some_and(|l| l < layers);
    let experts = spec.layers.iter().any(|l| matches!(l.ffn, crate::spec::Ffn::Moe { .. }));
    let target = |d: Demand| {
        let module = module(d.id);
        let short = if experts && module.contains(".mlp.") { 2 } else { 1 };
        let parts: Vec<&str> = module.rsplit('.').take(short).collect();
        (parts.into_iter().rev().collect::<Vec<_>>().join("."), d)
    };
    demanded(spec).into_iter().filter(own).map(target).collect()
}

/// A projection's name in Hugging Face's code: `model.layers.0.self_attn.q_proj`.
fn module(id: TensorId) -> String {
    let name = id.name(Naming::Hf).expect("invariant: what can be adapted has a Hugging Face name");
    name.trim_end_matches(".weight").to_owned()
}

/// The parts of PEFT's description that decide what an adapter computes.
#[derive(Deserialize)]
struct Config {
    peft_type: String,
    r: usize,
    lora_alpha: f32,
    #[serde(default)]
    use_rslora: bool,
    /// Everything else.
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// Keys that must be absent or have one of these values, since they change what an adapter computes.
const REFUSED: [(&str, &[Value]); 12] = [
    ("use_dora", &[Value::Bool(false)]),
    ("fan_in_fan_out", &[Value::Bool(false)]),
    ("lora_bias", &[Value::Bool(false)]),
    ("modules_to_save", &[]),
    ("layer_replication", &[]),
    ("rank_pattern", &[]),
    ("alpha_pattern", &[]),
    ("target_parameters", &[]),
    ("trainable_token_indices", &[]),
    ("alora_invocation_tokens", &[]),
    ("use_bdlora", &[Value::Bool(false)]),
    ("use_qalora", &[Value::Bool(false)]),
];

impl Adapter {
    /// What stands beside a projection.
    pub fn get(&self, id: TensorId) -> Option<&Pair> {
        self.pairs.iter().find(|(i, _)| *i == id).map(|(_, pair)| pair)
    }

    /// Reads the adapter of a directory for a model.
    ///
    /// # Errors
    /// All that is wrong with it, or does not fit the model, at once.
    pub fn open(dir: &Path, spec: &ModelSpec) -> Result<Adapter> {
        let mut faults = Faults::default();
        let config = read_config(&dir.join(CONFIG), &mut faults)?;
        let path = dir.join(WEIGHTS);
        let tensors = SafeTensors::open(&path)?;
        let targets = targets(spec);
        let mut pairs = Vec::new();
        let mut known = Vec::new();
        for (_, Demand { id, rows, cols, .. }) in &targets {
            let names = ["A", "B"].map(|which| tensor_name(*id, which));
            known.extend(names.clone());
            let shapes = [[config.r, *cols], [*rows, config.r]];
            let mut found = Vec::new();
            for (name, shape) in names.iter().zip(shapes) {
                match read(&tensors, &path, name, shape) {
                    Ok(values) => found.push(values),
                    Err(fault) => faults.push(fault),
                }
            }
            match &mut found[..] {
                [None, None] => {}
                [Some(a), Some(b)] => {
                    b.iter_mut().for_each(|v| *v *= config.scale);
                    let b = interleaved(spec, *id, config.r, b, false);
                    let (a, b) = (Weight::from_f32(config.r, *cols, a), Weight::from_f32(*rows, config.r, &b));
                    pairs.push((*id, Pair { a, b }));
                }
                [a, _] => {
                    let (there, missing) = if a.is_some() { (&names[0], &names[1]) } else { (&names[1], &names[0]) };
                    faults.push(Fault::tensor(&path, missing, format!("it beside {there}"), "no such tensor"));
                }
                _ => {}
            }
        }
        for name in tensors.names().filter(|n| !known.iter().any(|k| k == n)) {
            faults.push(Fault::tensor(&path, name, expected_names(spec, &targets), "this name"));
        }
        if pairs.is_empty() && faults.total() == 0 {
            faults.push(Fault::file(&path, expected_names(spec, &targets), "no tensor"));
        }
        Ok(faults.or(Adapter { rank: config.r, scale: config.scale, pairs })?)
    }

    /// Writes the adapter as PEFT does, each file whole or not at all. `base` names the model that it belongs to; `notes` go into the
    /// file of weights as metadata.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub fn save(&self, dir: &Path, spec: &ModelSpec, base: &str, notes: &[(&str, &str)]) -> Result<()> {
        let mut names: Vec<String> = Vec::new();
        for (target, d) in targets(spec) {
            if self.get(d.id).is_some() && !names.contains(&target) {
                names.push(target);
            }
        }
        let config = json!({
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": f64::from(self.scale) * self.rank as f64,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": self.rank,
            "target_modules": names,
            "task_type": "CAUSAL_LM",
        });
        let mut writer = SafeTensorsWriter::new();
        writer.metadata("format", "pt");
        notes.iter().for_each(|(key, value)| _ = writer.metadata(key, value));
        let mut values: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for (id, pair) in &self.pairs {
            let (a, mut b) = (pair.a.decode(), pair.b.decode());
            b.iter_mut().for_each(|v| *v /= self.scale);
            let b = interleaved(spec, *id, pair.b.cols, &b, true);
            writer.tensor(&tensor_name(*id, "A"), format::F32, &[pair.a.rows, pair.a.cols])?;
            writer.tensor(&tensor_name(*id, "B"), format::F32, &[pair.b.rows, pair.b.cols])?;
            values.insert(tensor_name(*id, "A"), a);
            values.insert(tensor_name(*id, "B"), b);
        }
        std::fs::create_dir_all(dir).map_err(fathom_files::Error::io(dir, "create"))?;
        writer.write(&dir.join(WEIGHTS), |name, out| {
            let bytes: Vec<u8> = values[name].iter().flat_map(|v| v.to_le_bytes()).collect();
            out.write(&bytes)
        })?;
        write_file(&dir.join(CONFIG), format!("{config:#}\n").as_bytes())?;
        Ok(())
    }

    /// Adds `B·A` to rows of the projection `id`, from row `first` on; whether there was something to add.
    pub fn merge(&self, id: TensorId, first: usize, values: &mut [f32]) -> bool {
        let Some(Pair { a, b }) = self.get(id) else { return false };
        let a_values = a.decode();
        let b_values = b.slice_rows(first..first + values.len() / a.cols).decode();
        for (row, b) in values.chunks_exact_mut(a.cols).zip(b_values.chunks_exact(b.cols)) {
            for (b, a) in b.iter().zip(a_values.chunks_exact(a.cols)) {
                row.iter_mut().zip(a).for_each(|(w, a)| *w += b * a);
            }
        }
        true
    }
}

/// What PEFT calls matrix `which` beside a projection.
fn tensor_name(id: TensorId, which: &str) -> String {
    format!("{PREFIX}{}.lora_{which}.weight", module(id))
}

fn expected_names(spec: &ModelSpec, targets: &[(String, Demand)]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in targets {
        if !names.contains(&&**name) {
            names.push(name);
        }
    }
    let last = spec.layers.len() - 1;
    format!("{PREFIX}model.layers.N.….lora_A.weight or lora_B, N 0 to {last}, beside one of {}", names.join(", "))
}

/// A tensor's values, if it is there.
fn read(
    tensors: &SafeTensors,
    path: &Path,
    name: &str,
    shape: [usize; 2],
) -> std::result::Result<Option<Vec<f32>>, Fault> {
    let Some(info) = tensors.tensor(name)? else { return Ok(None) };
    let fault = |expected: String, found: String| Fault::tensor(path, name, expected, found);
    if info.shape != shape {
        return Err(fault(format!("{shape:?} for this model"), format!("{:?}", info.shape)));
    }
    if ![format::F32, format::F16, format::BF16].contains(&info.format) {
        return Err(fault("F32, F16 or BF16".to_owned(), info.format.to_string()));
    }
    let weight = Weight::new(info.format, shape[0], shape[1], info.bytes, None)
        .map_err(|e| fault("whole blocks".to_owned(), e.to_string()))?;
    let values = weight.decode();
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(fault("finite numbers".to_owned(), format!("{} at {i}", values[i]))),
        None => Ok(Some(values)),
    }
}

/// Rank and scale.
struct Shape {
    r: usize,
    scale: f32,
}

fn read_config(path: &Path, faults: &mut Faults) -> Result<Shape> {
    let bytes = read_capped(path, MAX_CONFIG_BYTES)?;
    let config: Config = serde_json::from_slice(&bytes).map_err(|e| {
        fathom_files::Error::from(Fault::file(path, "PEFT's description of a LoRA adapter", e.to_string()))
    })?;
    if config.peft_type != "LORA" {
        faults.push(Fault::key(path, "peft_type", "LORA", &config.peft_type));
    }
    if !(1..=4096).contains(&config.r) {
        faults.push(Fault::key(path, "r", "a rank from 1 to 4096", config.r.to_string()));
    }
    if !(config.lora_alpha.is_finite() && config.lora_alpha > 0.0) {
        faults.push(Fault::key(path, "lora_alpha", "a positive number", config.lora_alpha.to_string()));
    }
    if let Some(bias) = config.rest.get("bias").filter(|b| *b != "none") {
        faults.push(Fault::key(path, "bias", "none: biases that an adapter changes are not applied", bias.to_string()));
    }
    for (key, fine) in REFUSED {
        let Some(value) = config.rest.get(key) else { continue };
        let empty = match value {
            Value::Null => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        if !empty && !fine.contains(value) {
            faults.push(Fault::key(path, key, "nothing: this kind of adapter is not applied", value.to_string()));
        }
    }
    let r = config.r.clamp(1, 4096);
    let divisor = if config.use_rslora { (r as f32).sqrt() } else { r as f32 };
    Ok(Shape { r, scale: config.lora_alpha / divisor })
}

/// Rows of `b` from PEFT's order into that of the model's file, or `back`.
fn interleaved(spec: &ModelSpec, id: TensorId, rank: usize, b: &[f32], back: bool) -> Vec<f32> {
    let mixer = &spec.layers[id.layer.expect("invariant: adapters stand beside blocks' projections")].mixer;
    let Mixer::Gqa { head_dim, .. } = *mixer else { return b.to_vec() };
    if spec.rope.layout != RopeLayout::Interleaved || ![AttnQ, AttnK].contains(&id.slot) {
        return b.to_vec();
    }
    let mut out = vec![0.0; b.len()];
    for (row, values) in b.chunks_exact(rank).enumerate() {
        let (head, i) = (row / head_dim, row % head_dim);
        // Rotated pairs are (i, i + half) in PEFT's files and (2i, 2i + 1) in llama.cpp's.
        let half = head_dim / 2;
        let to = if back { i % 2 * half + i / 2 } else { i % half * 2 + i / half };
        out[(head * head_dim + to) * rank..][..rank].copy_from_slice(values);
    }
    out
}
