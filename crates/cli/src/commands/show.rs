//! `fathom show`: what a model is, from its description alone: no weight is read.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Error, Result};
use fathom_core::{DType, RopeLayout, Score};
use fathom_files::Kind;
use fathom_model::Model;
use fathom_model::spec::{Ffn, LayerSpec, Mixer, RopeScaling, RopeSpec, kv_streams};
use fathom_text::{ChatTemplate, TextError, Tokenizer};
use serde_json::{Value, json};

use crate::args::{KvType, MODEL_HELP, ReadArgs};
use crate::machine;
use crate::source;
use crate::units::{bytes, grouped, parameters};

/// Show what a model is and the memory it takes
#[derive(clap::Args)]
#[command(after_help = "Examples:
  fathom show r1-7b
  fathom show model.gguf --context 8192          memory at that context
  fathom show ./DeepSeek-V3/config.json          works without weights
  fathom show r1-7b --json | jq .cache_bytes_per_token")]
pub(crate) struct Args {
    #[arg(value_name = "MODEL", help = format!("{MODEL_HELP}; or a config.json alone"))]
    model: Option<String>,

    /// The same as MODEL
    #[arg(short, long = "model", value_name = "MODEL", conflicts_with = "model")]
    flag: Option<String>,

    /// Reckon memory for this many tokens [default: the model's context]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,

    /// Number type of the KV cache to reckon with
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = KvType::F16)]
    kv_type: KvType,

    #[command(flatten)]
    read: ReadArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let place = source::locate(args.model.as_deref().or(args.flag.as_deref()))?;
    let model = place.open(&args.read.options())?;
    let (facts, faults) = facts(&model, args);
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{facts:#}")?;
    } else {
        out.write_all(text(&model, &facts).as_bytes())?;
    }
    out.flush()?;
    // What is known has been shown; what is wrong with the rest is still an error.
    faults.into_iter().next().map_or(Ok(ExitCode::SUCCESS), Err)
}

/// Everything known, and what could not be learnt because the files are broken.
fn facts(model: &Model, args: &Args) -> (Value, Vec<Error>) {
    let spec = &model.spec;
    let mut faults = Vec::new();
    let mut ask = |result: Result<Value>| {
        result.unwrap_or_else(|error| {
            let said = json!({ "error": crate::explain(&error) });
            faults.push(error);
            said
        })
    };
    let counts = spec.parameters();
    let weights = model.archive.names().next().map(|_| model.archive.total_bytes());
    let context = args.context.map_or(spec.context, |c| c as usize);
    let dtype = args.kv_type.dtype();
    let cache_bytes = (spec.kv_bytes_per_token(dtype) * context) as u64;
    let facts = json!({
        "path": model.archive.path(),
        "kind": match model.archive.kind() {
            Kind::Gguf => "gguf",
            Kind::HuggingFace => "hugging-face",
            Kind::Config => "config",
        },
        "family": spec.family,
        "parameters": counts.total,
        "parameters_touched": counts.touched,
        "context": spec.context,
        "vocab": spec.vocab,
        "dim": spec.dim,
        "tied": spec.tied,
        "layers": runs(&spec.layers).map(|(from, to, layer)| {
            json!({ "from": from, "to": to, "mixer": mixer_json(&layer.mixer), "ffn": ffn_json(&layer.ffn) })
        }).collect::<Value>(),
        "pictures": spec.pictures.as_ref().map(|p| json!({
            "side": p.side, "rows": p.rows(), "steps": p.steps(), "codes": p.codec.codes,
            "tower": { "layers": p.tower.layers, "dim": p.tower.dim, "heads": p.tower.heads, "patch": p.tower.patch },
        })),
        "mtp": spec.mtp.as_ref().map(|l| json!({ "mixer": mixer_json(&l.mixer), "ffn": ffn_json(&l.ffn) })),
        "rope": rope_json(&spec.rope),
        "softmax_scale": spec.layers.first().map(|l| softmax_scale(&l.mixer)),
        "cache_bytes_per_token": {
            "f16": spec.kv_bytes_per_token(DType::F16),
            "f32": spec.kv_bytes_per_token(DType::F32),
            "q8_0": spec.kv_bytes_per_token(DType::Q8_0),
        },
        "memory": {
            "context": context,
            "kv_type": dtype.name(),
            "weights_bytes": weights,
            "cache_bytes": cache_bytes,
            "total_bytes": weights.map(|w| w + cache_bytes),
            "available_bytes": machine::available_bytes(),
        },
        "tensors": weights.map(|total| ask(tensors_json(model, total))),
        "tokenizer": ask(text_json(model)),
        "sampling": ask(model.defaults().map_err(Error::from).map(|d| {
            json!({ "temperature": d.temperature, "top_p": d.top_p, "top_k": d.top_k })
        })),
    });
    (facts, faults)
}

/// Runs of equal layers: first, last, what they are.
fn runs(layers: &[LayerSpec]) -> impl Iterator<Item = (usize, usize, &LayerSpec)> {
    let mut next = 0;
    layers.chunk_by(|a, b| a == b).map(move |run| {
        let from = next;
        next += run.len();
        (from, next - 1, &run[0])
    })
}

fn softmax_scale(mixer: &Mixer) -> f32 {
    match *mixer {
        Mixer::Gqa { head_dim, .. } => 1.0 / (head_dim as f32).sqrt(),
        Mixer::Mla { scale, .. } => scale,
    }
}

fn mixer_json(mixer: &Mixer) -> Value {
    match *mixer {
        Mixer::Gqa { heads, kv_heads, head_dim, qkv_bias, qk_norm } => json!({
            "kind": "gqa", "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "qkv_bias": qkv_bias, "qk_norm": qk_norm,
        }),
        Mixer::Mla { heads, q_rank, kv_rank, nope, rope, v_dim, scale } => json!({
            "kind": "mla", "heads": heads, "q_rank": q_rank, "kv_rank": kv_rank, "nope": nope, "rope": rope, "v_dim": v_dim,
            "scale": scale,
        }),
    }
}

fn ffn_json(ffn: &Ffn) -> Value {
    match *ffn {
        Ffn::Dense { hidden } => json!({ "kind": "dense", "hidden": hidden }),
        Ffn::Moe { route, bias_corrected, hidden, shared_hidden } => json!({
            "kind": "moe", "experts": route.experts, "top_k": route.top_k, "hidden": hidden, "shared_hidden": shared_hidden,
            "score": match route.score { Score::Softmax => "softmax", Score::Sigmoid => "sigmoid" },
            "groups": route.groups, "groups_kept": route.groups_kept, "bias_corrected": bias_corrected,
            "normalise": route.normalise, "scale": route.scale,
        }),
    }
}

fn rope_json(rope: &RopeSpec) -> Value {
    let mut value = json!({
        "dim": rope.dim,
        "theta": rope.theta,
        "layout": match rope.layout { RopeLayout::Interleaved => "interleaved", RopeLayout::Halves => "halves" },
        "scaling": "none",
    });
    let more = match &rope.scaling {
        RopeScaling::None => json!({}),
        RopeScaling::Linear { factor } => json!({ "scaling": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low, high, original } => {
            json!({ "scaling": "llama3", "factor": factor, "low": low, "high": high, "original": original })
        }
        RopeScaling::Divisors(divisors) => json!({ "scaling": "divisors", "divisors": divisors }),
        RopeScaling::Yarn { factor, original, beta_fast, beta_slow, attention } => json!({
            "scaling": "yarn", "factor": factor, "original": original, "beta_fast": beta_fast, "beta_slow": beta_slow,
            "attention": attention, "correction_range": rope.yarn_range(),
        }),
    };
    let Value::Object(more) = more else { unreachable!("invariant: every arm is an object") };
    value.as_object_mut().expect("invariant: made as an object above").extend(more);
    value
}

/// How the weights are stored, and what in the files nobody needs.
fn tensors_json(model: &Model, total: u64) -> Result<Value> {
    let unused = model.check()?;
    let mut formats: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for name in model.archive.names() {
        // A type that fathom does not compute with is a fault only where the model needs the tensor; `check` has seen to that.
        let stored = model.archive.tensor(name).ok().flatten();
        let entry = formats.entry(stored.as_ref().map_or("unknown", |t| t.format.name())).or_default();
        *entry = (entry.0 + 1, entry.1 + stored.map_or(0, |t| t.bytes.len()));
    }
    let mut formats: Vec<_> = formats.into_iter().collect();
    formats.sort_by_key(|(_, (_, bytes))| std::cmp::Reverse(*bytes));
    Ok(json!({
        "count": model.archive.names().count(),
        "bytes": total,
        "formats": formats.iter().map(|(name, (tensors, bytes))| {
            json!({ "format": name, "tensors": tensors, "bytes": bytes })
        }).collect::<Value>(),
        "unused": unused,
    }))
}

/// The text side; null where there is none beside a bare description.
fn text_json(model: &Model) -> Result<Value> {
    if model.archive.kind() == Kind::Config && model.archive.sidecar(fathom_files::Sidecar::Tokenizer)?.is_none() {
        return Ok(Value::Null);
    }
    let source = model.vocab()?;
    let tokenizer = Tokenizer::new(&source)?;
    let shown = |id: u32| json!({ "id": id, "text": tokenizer.decode(&[id]) });
    let template = match ChatTemplate::new(&source, &tokenizer) {
        Err(TextError::NoTemplate { .. }) => Value::Null,
        Err(other) => return Err(other.into()),
        Ok(template) => json!({
            "reasons": template.reasons(),
            "tools": template.tool_form().map(|form| format!("{form:?}")),
        }),
    };
    Ok(json!({
        "tokens": tokenizer.vocab_size(),
        "bos": tokenizer.bos().map(shown),
        "adds_bos": tokenizer.adds_bos(),
        "end": tokenizer.end_tokens().iter().copied().map(shown).collect::<Value>(),
        "template": template,
    }))
}

/// The facts for people.
fn text(model: &Model, facts: &Value) -> String {
    let spec = &model.spec;
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(out, "{name:<12}{value}").expect("invariant: a string takes what is written");
    };
    let counts = spec.parameters();
    let what = match model.archive.kind() {
        Kind::Gguf => "GGUF",
        Kind::HuggingFace => "safetensors",
        Kind::Config => "a description without weights",
    };
    line("model", format!("{} ({}, {what})", spec.family, model.archive.path().display()));
    let touched = match counts.touched == counts.total {
        true => "all".to_owned(),
        false => parameters(counts.touched, 1),
    };
    line("parameters", format!("{}, {touched} touched per token", parameters(counts.total, 2)));
    let tied = if spec.tied { ", embedding and head the same" } else { "" };
    line(
        "size",
        format!(
            "{} layers, width {}, {} tokens in the vocabulary{tied}",
            spec.layers.len(),
            grouped(spec.dim as u64),
            grouped(spec.vocab as u64)
        ),
    );
    for (from, to, layer) in runs(&spec.layers) {
        let name = if from == to { format!("layer {from}") } else { format!("layers {from}–{to}") };
        line(&name, mixer_text(&layer.mixer));
        line("", ffn_text(&layer.ffn));
    }
    if let Some(p) = &spec.pictures {
        let (tower, codec) = (&p.tower, &p.codec);
        line(
            "sees",
            format!(
                "{0} × {0} pixels as {1} rows of the prompt; {2} layers of {3}, patches of {4}",
                p.side,
                p.rows(),
                tower.layers,
                tower.dim,
                tower.patch
            ),
        );
        line(
            "draws",
            format!("{0} × {0} pixels in {1} steps out of {2} codes", p.side, p.steps(), grouped(codec.codes as u64)),
        );
    }
    if let Some(mtp) = &spec.mtp {
        line("MTP", format!("one layer that predicts the token after the next; {}", ffn_text(&mtp.ffn)));
    }
    line("rope", rope_text(&spec.rope));
    if let Some(layer) = spec.layers.first() {
        line("softmax", format!("scale {:.7}", softmax_scale(&layer.mixer)));
        let widths: Vec<String> = kv_streams(&layer.mixer).iter().map(|s| s.width().to_string()).collect();
        let per_token = spec.kv_bytes_per_token(DType::F16) as u64;
        line(
            "cache",
            format!("{} bytes per token in 16 bit ({} numbers a layer)", grouped(per_token), widths.join(" + ")),
        );
    }
    line("context", format!("{} tokens", grouped(spec.context as u64)));
    line("memory", memory_text(&facts["memory"]));
    tensors_text(&facts["tensors"], &mut line);
    tokenizer_text(&facts["tokenizer"], &mut line);
    let sampling = &facts["sampling"];
    if sampling["error"].is_null() {
        let number = |key: &str| sampling[key].as_f64().map_or(String::new(), |x| format!("{}", x as f32));
        let top_k = sampling["top_k"].as_u64().filter(|k| *k > 0).map_or(String::new(), |k| format!(", top-k {k}"));
        line("sampling", format!("temperature {}, top-p {}{top_k}", number("temperature"), number("top_p")));
    }
    out
}

fn mixer_text(mixer: &Mixer) -> String {
    match *mixer {
        Mixer::Gqa { heads, kv_heads, head_dim, qkv_bias, qk_norm } => {
            let bias = if qkv_bias { ", q, k and v with bias" } else { "" };
            let norm = if qk_norm { ", q and k normalised" } else { "" };
            format!("attention: {heads} heads of {head_dim}, {kv_heads} of keys and values{bias}{norm}")
        }
        Mixer::Mla { heads, q_rank, kv_rank, nope, rope, v_dim, .. } => {
            let query = q_rank.map_or("query in full".to_owned(), |r| format!("query of rank {r}"));
            format!(
                "latent attention: {heads} heads of {nope} + {rope}, values of {v_dim}; latent of {kv_rank} + {rope}, {query}"
            )
        }
    }
}

fn ffn_text(ffn: &Ffn) -> String {
    match *ffn {
        Ffn::Dense { hidden } => format!("feed-forward of {}", grouped(hidden as u64)),
        Ffn::Moe { route, bias_corrected, hidden, shared_hidden } => {
            let mut text = format!("{} of {} experts of {}", route.top_k, route.experts, grouped(hidden as u64));
            if shared_hidden > 0 {
                text += &format!(", shared {}", grouped(shared_hidden as u64));
            }
            if route.groups > 1 {
                text += &format!(", out of the best {} of {} groups", route.groups_kept, route.groups);
            }
            let score = match route.score {
                Score::Softmax => "softmax",
                Score::Sigmoid => "sigmoid",
            };
            let bias = if bias_corrected { " with bias correction" } else { "" };
            let normalised = if route.normalise { ", normalised" } else { "" };
            text + &format!("; {score} routing{bias}{normalised}, × {}", route.scale)
        }
    }
}

fn rope_text(rope: &RopeSpec) -> String {
    let layout = match rope.layout {
        RopeLayout::Interleaved => "neighbours",
        RopeLayout::Halves => "halves",
    };
    let mut text = format!("base {}, {} numbers a head, paired as {layout}", rope.theta, rope.dim);
    match &rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => text += &format!("; linear × {factor}"),
        RopeScaling::Llama3 { factor, original, .. } => {
            text += &format!("; llama3 × {factor} beyond {} tokens", grouped(*original as u64));
        }
        RopeScaling::Divisors(_) => text += "; a divisor for each frequency, from the file",
        RopeScaling::Yarn { factor, original, attention, .. } => {
            let (low, high) = rope.yarn_range().expect("invariant: YaRN has a range");
            text += &format!(
                "; YaRN × {factor} beyond {} tokens, correction range {low}–{high}, cos and sin × {attention:.4}",
                grouped(*original as u64)
            );
        }
    }
    text
}

fn memory_text(memory: &Value) -> String {
    let size = |key: &str| memory[key].as_u64().map(bytes);
    let context = grouped(memory["context"].as_u64().unwrap_or_default());
    let cache = size("cache_bytes").unwrap_or_default();
    let kv = memory["kv_type"].as_str().unwrap_or_default();
    let mut text = match (size("weights_bytes"), size("total_bytes")) {
        (Some(weights), Some(total)) => {
            format!("{total}: weights {weights}, cache for {context} tokens {cache} in {kv}")
        }
        _ => format!("cache for {context} tokens {cache} in {kv}; weights unknown"),
    };
    if let Some(free) = size("available_bytes") {
        text += &format!("; {free} available here");
    }
    text
}

fn tensors_text(tensors: &Value, line: &mut dyn FnMut(&str, String)) {
    if tensors.is_null() || !tensors["error"].is_null() {
        return;
    }
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let formats = list(&tensors["formats"])
        .iter()
        .map(|f| {
            format!(
                "{} {} ({})",
                number(&f["tensors"]),
                f["format"].as_str().unwrap_or_default(),
                bytes(number(&f["bytes"]))
            )
        })
        .collect::<Vec<_>>();
    line("tensors", format!("{}: {}", grouped(number(&tensors["count"])), formats.join(", ")));
    for (i, name) in list(&tensors["unused"]).iter().enumerate() {
        line(if i == 0 { "unused" } else { "" }, name.as_str().unwrap_or_default().to_owned());
    }
}

fn tokenizer_text(tokenizer: &Value, line: &mut dyn FnMut(&str, String)) {
    if tokenizer.is_null() || !tokenizer["error"].is_null() {
        return;
    }
    let shown = |t: &Value| format!("{} ({})", t["text"].as_str().unwrap_or_default(), t["id"]);
    let bos = match (&tokenizer["bos"], tokenizer["adds_bos"] == true) {
        (Value::Null, _) => "no BOS".to_owned(),
        (bos, true) => format!("BOS {}, put first", shown(bos)),
        (bos, false) => format!("BOS {}, not added", shown(bos)),
    };
    let end: Vec<String> = tokenizer["end"].as_array().into_iter().flatten().map(shown).collect();
    let tokens = grouped(tokenizer["tokens"].as_u64().unwrap_or_default());
    line("tokenizer", format!("{tokens} tokens; {bos}; ends with {}", end.join(", ")));
    let template = &tokenizer["template"];
    line(
        "template",
        match (template, template["reasons"] == true, template["tools"].as_str()) {
            (Value::Null, ..) => "none: only raw prompts (`fathom run --no-template`)".to_owned(),
            (_, reasons, tools) => {
                let reasons = if reasons { "with reasoning" } else { "without reasoning" };
                format!("{reasons}, {}", tools.map_or("no tools".to_owned(), |t| format!("tools as {t}")))
            }
        },
    );
}
