//! Finding golden directories and reading their recordings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fathom_model::{AttnFactor, Options};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{Golden, Hidden, Prompt, Route};
use crate::{Error, Result};

/// A recording of the other reading of `attn_factor`; where it lies, the main recordings ignore that key.
const HONOURED: &str = "golden_attn_factor_honoured.safetensors";
/// Greedy continuations of GGUF files are followed up to the first step whose two best logits are closer than this: their
/// weights were not chosen to have clear gaps.
const GGUF_GAP: f32 = 1e-3;

/// All goldens below a directory, in the order of their names.
///
/// # Errors
/// If a directory cannot be read or a recording is broken.
pub fn find(root: &Path) -> Result<Vec<Golden>> {
    let mut found = Vec::new();
    walk(root, &mut found)?;
    for g in &mut found {
        let below = g.model.strip_prefix(root).unwrap_or(&g.model);
        let name = if below.as_os_str().is_empty() { root.file_name().unwrap_or_default() } else { below.as_os_str() };
        g.name = format!("{}{}", name.to_string_lossy(), g.name);
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn io(path: &Path, why: impl ToString) -> Error {
    Error::Io { path: path.to_owned(), why: why.to_string() }
}

fn walk(dir: &Path, found: &mut Vec<Golden>) -> Result<()> {
    let entries = std::fs::read_dir(dir).map_err(|e| io(dir, e))?;
    let mut paths = entries.map(|e| Ok(e.map_err(|e| io(dir, e))?.path())).collect::<Result<Vec<PathBuf>>>()?;
    paths.sort();
    for path in &paths {
        if path.is_dir() {
            walk(path, found)?;
        } else if path.file_name().is_some_and(|n| n == "golden.safetensors") {
            found.extend(directory(dir)?);
        } else if path.extension().is_some_and(|e| e == "gguf") {
            found.extend(gguf(path)?);
        }
    }
    Ok(())
}

/// The two readings of what the makers left open, where both were recorded.
fn ignoring(dir: &Path) -> Options {
    let both = [dir, dir.parent().unwrap_or(dir)].iter().any(|d| d.join(HONOURED).exists());
    Options { attn_factor: if both { AttnFactor::Ignore } else { AttnFactor::Honour } }
}

/// The recordings of a Hugging Face directory; none if they are not of the text kind.
fn directory(dir: &Path) -> Result<Vec<Golden>> {
    let json = json(&dir.join("golden.json"))?;
    let Some(listed) = json["prompts"].as_object() else { return Ok(Vec::new()) };
    let mut prompts = recording(&dir.join("golden.safetensors"))?;
    for (name, entry) in listed {
        if let Some(p) = prompts.iter_mut().find(|p| p.name == *name) {
            p.greedy = entry.get("greedy32_cached").map(|v| ids(v, &dir.join("golden.json"))).transpose()?;
        }
    }
    let drafts = dir.join("golden_mtp.safetensors");
    if drafts.exists() {
        for d in recording(&drafts)? {
            if let Some(p) = prompts.iter_mut().find(|p| p.name == d.name) {
                (p.drafts, p.first_draft) = (d.drafts, d.first_draft);
            }
        }
    }
    let mut all = Vec::new();
    let honoured = dir.join(HONOURED);
    if honoured.exists() {
        let mut others = recording(&honoured)?;
        for o in &mut others {
            o.ids = prompts.iter().find(|p| p.name == o.name).map(|p| p.ids.clone()).unwrap_or_default();
        }
        all.push(Golden {
            name: " (attn_factor honoured)".into(),
            model: dir.to_owned(),
            options: Options { attn_factor: AttnFactor::Honour },
            prompts: others,
            greedy_gap: 0.0,
        });
    }
    let options = ignoring(dir);
    all.push(Golden { name: String::new(), model: dir.to_owned(), options, prompts, greedy_gap: 0.0 });
    Ok(all)
}

/// The recording beside a GGUF file, if there is one.
fn gguf(file: &Path) -> Result<Option<Golden>> {
    let beside = file.with_extension("golden.safetensors");
    if !beside.exists() {
        return Ok(None);
    }
    let dir = file.parent().unwrap_or(file);
    let mut prompts = recording(&beside)?;
    let listed = dir.join("golden_gguf.json");
    if listed.exists() {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let kind = stem.rsplit('-').next().unwrap_or(&stem);
        let greedy = &json(&listed)?[kind]["greedy_short"];
        if let Some(p) = prompts.iter_mut().find(|p| p.name == "short" && !greedy.is_null()) {
            p.greedy = Some(ids(greedy, &listed)?);
        }
    }
    let options = ignoring(dir);
    Ok(Some(Golden { name: String::new(), model: file.to_owned(), options, prompts, greedy_gap: GGUF_GAP }))
}

fn json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(|e| io(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| io(path, e))
}

fn ids(list: &Value, path: &Path) -> Result<Vec<u32>> {
    let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
    let all = list.as_array().and_then(|a| a.iter().map(id).collect());
    all.ok_or_else(|| io(path, format!("expected a list of token ids, found {list}")))
}

/// All prompts of a safetensors file whose names are `PROMPT.WHAT`.
fn recording(path: &Path) -> Result<Vec<Prompt>> {
    let bytes = std::fs::read(path).map_err(|e| io(path, e))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| io(path, e))?;
    let mut prompts: BTreeMap<&str, Prompt> = BTreeMap::new();
    let mut names = file.names();
    names.sort_unstable();
    for full in names {
        let Some((prompt, what)) = full.split_once('.') else { continue };
        let view = file.tensor(full).map_err(|e| io(path, e))?;
        let words = || view.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
        let f32s = || match view.dtype() {
            Dtype::F32 => Ok(words().map(f32::from_le_bytes).collect::<Vec<f32>>()),
            other => Err(io(path, format!("{full}: expected F32, found {other:?}"))),
        };
        let u32s = || match view.dtype() {
            Dtype::I32 => Ok(words().map(u32::from_le_bytes).collect::<Vec<u32>>()),
            other => Err(io(path, format!("{full}: expected I32, found {other:?}"))),
        };
        let p = prompts.entry(prompt).or_insert_with(|| Prompt { name: prompt.to_owned(), ..Prompt::default() });
        let parts: Vec<&str> = what.split('.').collect();
        match parts[..] {
            ["input_ids"] => p.ids = u32s()?,
            ["logits"] => p.logits = f32s()?,
            ["draft_logits"] => p.drafts = Some(f32s()?),
            ["first_draft_logits"] => p.first_draft = Some(f32s()?),
            ["hidden", name @ ("embed" | "final_norm")] => {
                let name = if name == "embed" { "embed" } else { "final_norm" };
                p.hidden.push(Hidden { layer: None, name, values: f32s()? });
            }
            ["hidden", "layer", layer] => {
                let layer = number(path, full, layer)?;
                p.hidden.push(Hidden { layer: Some(layer), name: "out", values: f32s()? });
            }
            ["route", layer, which] => {
                let layer = number(path, full, layer)?;
                let at = p.routes.iter().position(|r| r.layer == layer).unwrap_or_else(|| {
                    p.routes.push(Route { layer, experts: Vec::new(), weights: Vec::new() });
                    p.routes.len() - 1
                });
                match which {
                    "experts" => p.routes[at].experts = u32s()?,
                    _ => p.routes[at].weights = f32s()?,
                }
            }
            // Recorded for other uses: they follow from the logits, or show another convention.
            _ => {}
        }
    }
    Ok(prompts.into_values().collect())
}

fn number(path: &Path, full: &str, text: &str) -> Result<usize> {
    text.parse().map_err(|_| io(path, format!("{full}: expected a layer number, found {text}")))
}
