//! Checkpoints: a model that can be used, and beside it what it takes to go on as if nothing had happened.
//!
//! A checkpoint is a folder `step-N` in the stage's own folder: a Hugging Face directory in f32 (which `fathom` itself, or
//! transformers, loads), `optimiser.safetensors`, and `state.json`. It is made under another name and renamed when all of it
//! is on disk, so that a kill or a full disk at any moment leaves the one before.

use std::fs;
use std::path::{Path, PathBuf};

use fathom_core::format;
use fathom_files::{SafeTensorsWriter, safetensors::SafeTensors, write_file};
use fathom_model::{Model, ModelSpec, Options};
use fathom_text::VocabLists;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::export::write_hugging_face;
use crate::optim::Optimiser;
use crate::params::Params;

/// How far a stage has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps taken.
    pub step: u64,
    /// Examples drawn.
    pub examples: u64,
    /// Tokens learned from, questions included.
    pub tokens: u64,
    /// Seconds of work, over all sessions.
    pub seconds: f64,
    /// Joules used, where there is a figure.
    pub joules: Option<f64>,
    /// Whether the figure is measured (by a counter) or declared power times time.
    pub joules_measured: bool,
    /// Whether the stage is done.
    pub done: bool,
}

const STATE: &str = "state.json";
const OPTIMISER: &str = "optimiser.safetensors";

/// Checkpoints kept, the newest ones.
const KEPT: usize = 2;

/// All checkpoints of a stage's folder, oldest first.
fn all(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("listing", folder))?.path();
        let step = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("step-")?.parse().ok());
        if let Some(step) = step {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The newest checkpoint.
///
/// # Errors
/// If the folder cannot be read.
pub fn newest(folder: &Path) -> Result<Option<PathBuf>> {
    Ok(all(folder)?.pop().map(|(_, path)| path))
}

/// Saves one more checkpoint and removes the oldest ones.
///
/// # Errors
/// If the disk is full or fails; the older checkpoints are as they were then.
pub fn save(
    folder: &Path,
    params: &Params,
    optimiser: Option<&Optimiser>,
    state: &State,
    lists: &VocabLists,
) -> Result<PathBuf> {
    let path = folder.join(format!("step-{}", state.step));
    let part = folder.join(format!(".part-{}", state.step));
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).map_err(Error::io("creating", &part))?;
    write_hugging_face(&part, params, lists)?;
    if let Some(optimiser) = optimiser {
        save_optimiser(&part.join(OPTIMISER), params, optimiser)?;
    }
    let text = serde_json::to_string_pretty(state).expect("invariant: a state is JSON");
    write_file(&part.join(STATE), text.as_bytes())?;
    if path.exists() {
        // The same step once more, from a run that went on from an older one.
        fs::remove_dir_all(&path).map_err(Error::io("removing", &path))?;
    }
    fs::rename(&part, &path).map_err(Error::io("renaming", &part))?;
    let older = all(folder)?;
    for (_, old) in older.iter().rev().skip(KEPT) {
        fs::remove_dir_all(old).map_err(Error::io("removing", old))?;
    }
    Ok(path)
}

fn save_optimiser(path: &Path, params: &Params, optimiser: &Optimiser) -> Result<()> {
    let mut w = SafeTensorsWriter::new();
    w.metadata("steps", &optimiser.steps.to_string());
    let mut values = std::collections::BTreeMap::new();
    for (p, moments) in params.all.iter().zip(&optimiser.moments) {
        for (which, v) in [("m", &moments.m), ("v", &moments.v)] {
            if !v.is_empty() {
                let name = format!("{which}.{}", p.name);
                w.tensor(&name, format::F32, &[v.len()])?;
                values.insert(name, v);
            }
        }
    }
    Ok(w.write(path, |name, out| out.write(bytemuck::cast_slice(values[name])))?)
}

/// The state of a checkpoint.
///
/// # Errors
/// If it is broken.
pub fn state(path: &Path) -> Result<State> {
    let file = path.join(STATE);
    let bytes = fs::read(&file).map_err(Error::io("reading", &file))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::Broken { file, why: e.to_string() })
}

/// The parameters of a checkpoint, which must be those of `spec`.
///
/// # Errors
/// If the files are broken or hold another model.
pub fn params(path: &Path, spec: &ModelSpec) -> Result<Params> {
    let model = Model::open(path, &Options::default())?;
    if model.spec != *spec {
        let what = "the model's shape or vocabulary".to_owned();
        return Err(Error::OtherRun { folder: path.to_owned(), what });
    }
    Ok(Params::from_source(spec, &model.archive)?)
}

/// Fills `optimiser`, made for the same parameters, with what a checkpoint remembers.
///
/// # Errors
/// If the file is broken or another optimiser's.
pub fn load_optimiser(path: &Path, params: &Params, optimiser: &mut Optimiser, steps: u64) -> Result<()> {
    let file = path.join(OPTIMISER);
    let saved = SafeTensors::open(&file)?;
    for (p, moments) in params.all.iter().zip(&mut optimiser.moments) {
        for (which, v) in [("m", &mut moments.m), ("v", &mut moments.v)] {
            let name = format!("{which}.{}", p.name);
            let info = saved.tensor(&name).map_err(|e| Error::from(fathom_files::Error::from(e)))?;
            match info {
                Some(info) if info.bytes.len() == 4 * v.len() => {
                    let numbers = info.bytes.as_slice().as_chunks::<4>().0;
                    v.iter_mut().zip(numbers).for_each(|(v, b)| *v = f32::from_le_bytes(*b));
                }
                None if v.is_empty() => {}
                _ => {
                    let why = format!("{name} is not what this recipe's optimiser remembers");
                    return Err(Error::Broken { file, why });
                }
            }
        }
    }
    optimiser.steps = steps;
    Ok(())
}
