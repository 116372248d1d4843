//! A model on disk, whatever its files are.
//!
//! [`Archive`] is the one type that the floors above see: tensors by name, outermost dimension first, and
//! either GGUF metadata or a `config.json` to tell what they are. Small files that a Hugging Face directory
//! keeps beside the weights are read on request.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fathom_core::ByteSource;
use serde_json::Value as Json;

use crate::fault::{Error, Fault, Result};
use crate::gguf::Gguf;
use crate::metadata::Metadata;
use crate::pickle::read_checkpoint;
use crate::safetensors::SafeTensors;
use crate::table::{Table, TensorInfo};

const MAX_CONFIG_BYTES: u64 = 4 << 20;
const CONFIG: &str = "config.json";

/// What kind of files a model is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A GGUF file, or all parts of a split one.
    Gguf,
    /// A directory with `config.json` and safetensors.
    HuggingFace,
    /// A `config.json` without weights: enough to show what the model is.
    Config,
}

/// A small file beside the weights of a Hugging Face model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sidecar {
    /// `tokenizer.json`
    Tokenizer,
    /// `tokenizer_config.json`
    TokenizerConfig,
    /// `generation_config.json`
    GenerationConfig,
    /// `special_tokens_map.json`
    SpecialTokens,
    /// `chat_template.jinja`
    ChatTemplate,
    /// `preprocessor_config.json`
    Preprocessor,
}

impl Sidecar {
    /// The file's name.
    pub fn name(self) -> &'static str {
        match self {
            Sidecar::Tokenizer => "tokenizer.json",
            Sidecar::TokenizerConfig => "tokenizer_config.json",
            Sidecar::GenerationConfig => "generation_config.json",
            Sidecar::SpecialTokens => "special_tokens_map.json",
            Sidecar::ChatTemplate => "chat_template.jinja",
            Sidecar::Preprocessor => "preprocessor_config.json",
        }
    }

    fn max_bytes(self) -> u64 {
        match self {
            Sidecar::Tokenizer => 128 << 20,
            Sidecar::TokenizerConfig => 16 << 20,
            Sidecar::GenerationConfig | Sidecar::SpecialTokens | Sidecar::ChatTemplate | Sidecar::Preprocessor => {
                1 << 20
            }
        }
    }
}

enum Source {
    Gguf(Box<Gguf>),
    HuggingFace { dir: PathBuf, config: Json, tensors: SafeTensors },
    Config { dir: PathBuf, config: Json, tensors: Table },
}

/// An open model.
pub struct Archive {
    path: PathBuf,
    source: Source,
}

impl Archive {
    /// Opens a `.gguf` file (any part of a split one), a directory with `config.json` and safetensors, a
    /// directory with one GGUF model, or a bare `config.json`.
    ///
    /// # Errors
    /// Every fault that the files show.
    pub fn open(path: &Path) -> Result<Archive> {
        let source = if path.is_dir() {
            Self::open_dir(path)?
        } else {
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => {
                    let dir = path.parent().unwrap_or(Path::new("")).to_owned();
                    Source::Config { dir, config: read_config(path)?, tensors: Table::default() }
                }
                Some("safetensors") => {
                    return Err(Fault::file(path, "the directory that holds this file", "one file of it").into());
                }
                _ => Source::Gguf(Box::new(Gguf::open(path)?)),
            }
        };
        Ok(Archive { path: path.to_owned(), source })
    }

    /// A GGUF file in memory; `name` stands for its path.
    ///
    /// # Errors
    /// Every fault that it shows.
    pub fn from_gguf(name: &Path, bytes: Arc<dyn ByteSource>) -> Result<Archive> {
        let source = Source::Gguf(Box::new(Gguf::from_source(name, bytes)?));
        Ok(Archive { path: name.to_owned(), source })
    }

    /// The same, and a directory whose weights are PyTorch's pickles: the one way to these, for whoever converts them. They are read by
    /// a machine that can build tensors and nothing else.
    ///
    /// # Errors
    /// As [`Archive::open`], and if a pickle wants anything else.
    pub fn open_unsafe_kinds(path: &Path) -> Result<Archive> {
        let pickles = if path.is_dir() && !SafeTensors::is_in(path) { pickles(path)? } else { Vec::new() };
        if pickles.is_empty() {
            return Archive::open(path);
        }
        let mut faults = crate::Faults::default();
        let mut table = Table::default();
        for pickle in &pickles {
            let read = read_checkpoint(pickle, &mut table, &mut faults);
            faults.catch(read);
        }
        let config = faults.catch(read_config(&path.join(CONFIG)));
        let tensors = SafeTensors { table };
        let source = faults.or(config.map(|config| Source::HuggingFace { dir: path.to_owned(), config, tensors }))?;
        Ok(Archive { path: path.to_owned(), source: source.expect("invariant: without it there is a fault") })
    }

    fn open_dir(dir: &Path) -> Result<Source> {
        let config = dir.join(CONFIG);
        if SafeTensors::is_in(dir) {
            let mut faults = crate::Faults::default();
            let config = faults.catch(read_config(&config));
            return match (config, faults.catch(SafeTensors::open_dir(dir))) {
                (Some(config), Some(tensors)) => Ok(Source::HuggingFace { dir: dir.to_owned(), config, tensors }),
                _ => Err(Error::Faults(faults)),
            };
        }
        let mut ggufs = Vec::new();
        let mut pickles = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
            let path = entry.map_err(Error::io(dir, "list"))?.path();
            match path.extension().and_then(|e| e.to_str()) {
                // Of a split model, the first part stands for all.
                Some("gguf") if !is_later_part(&path) => ggufs.push(path),
                Some("bin" | "pt" | "pth" | "ckpt") => pickles.push(path),
                _ => {}
            }
        }
        ggufs.sort();
        match &ggufs[..] {
            [one] => Ok(Source::Gguf(Box::new(Gguf::open(one)?))),
            [] if !pickles.is_empty() => {
                let found = format!(
                    "{}: a pickle, which can run code and is not read here; `fathom convert` makes a GGUF of it",
                    pickles[0].display()
                );
                Err(Fault::file(dir, "safetensors or GGUF files", found).into())
            }
            [] if config.exists() => {
                Ok(Source::Config { dir: dir.to_owned(), config: read_config(&config)?, tensors: Table::default() })
            }
            [] => Err(Fault::file(dir, "config.json with model*.safetensors, or one .gguf file", "neither").into()),
            [first, second, ..] => {
                let found = format!("{} and {}: name one", first.display(), second.display());
                Err(Fault::file(dir, "one GGUF model", found).into())
            }
        }
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is made of.
    pub fn kind(&self) -> Kind {
        match self.source {
            Source::Gguf(_) => Kind::Gguf,
            Source::HuggingFace { .. } => Kind::HuggingFace,
            Source::Config { .. } => Kind::Config,
        }
    }

    /// The metadata of a GGUF model.
    pub fn metadata(&self) -> Option<&Metadata> {
        match &self.source {
            Source::Gguf(g) => Some(&g.metadata),
            _ => None,
        }
    }

    /// The `config.json` of a Hugging Face model: a JSON object.
    pub fn config(&self) -> Option<&Json> {
        match &self.source {
            Source::Gguf(_) => None,
            Source::HuggingFace { config, .. } | Source::Config { config, .. } => Some(config),
        }
    }

    fn table(&self) -> &Table {
        match &self.source {
            Source::Gguf(g) => &g.table,
            Source::HuggingFace { tensors, .. } => &tensors.table,
            Source::Config { tensors, .. } => tensors,
        }
    }

    /// The tensor `name`, if there is one.
    ///
    /// # Errors
    /// If its type is none that fathom computes with.
    pub fn tensor(&self, name: &str) -> Result<Option<TensorInfo>, Fault> {
        self.table().get(name)
    }

    /// Whether there is a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.table().file_of(name).is_some()
    }

    /// The file that holds the tensor `name`.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.table().file_of(name)
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.table().names()
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.table().total_bytes()
    }

    /// A small file beside the weights; none if there is no such file, or the model is a GGUF file, which
    /// carries all of this in its metadata.
    ///
    /// # Errors
    /// If it cannot be read or is unreasonably large.
    pub fn sidecar(&self, which: Sidecar) -> Result<Option<Vec<u8>>> {
        let (Source::HuggingFace { dir, .. } | Source::Config { dir, .. }) = &self.source else { return Ok(None) };
        let path = dir.join(which.name());
        if path.exists() { read_capped(&path, which.max_bytes()).map(Some) } else { Ok(None) }
    }
}

/// The checkpoint of a directory, or its parts, in order.
fn pickles(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
        let path = entry.map_err(Error::io(dir, "list"))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name == "pytorch_model.bin" || (name.starts_with("pytorch_model-") && name.ends_with(".bin")) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a file is a part of a split GGUF model other than the first.
fn is_later_part(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let is_number = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    match stem.rsplit_once("-of-").and_then(|(head, count)| Some((head.rsplit_once('-')?.1, count))) {
        Some((no, count)) => is_number(no) && is_number(count) && no != "00001",
        None => false,
    }
}

fn read_config(path: &Path) -> Result<Json> {
    let bytes = read_capped(path, MAX_CONFIG_BYTES)?;
    match serde_json::from_slice(&bytes) {
        Ok(json @ Json::Object(_)) => Ok(json),
        Ok(_) => Err(Fault::file(path, "a JSON object", "another JSON value").into()),
        Err(e) => Err(Fault::file(path, "a JSON object", e.to_string()).into()),
    }
}

/// Reads a file of at most `cap` bytes.
///
/// # Errors
/// If it cannot be read, is no file, or is longer.
pub fn read_capped(path: &Path, cap: u64) -> Result<Vec<u8>> {
    let kind = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
    if !kind.is_file() {
        return Err(Fault::file(path, "a file", "something else").into());
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
    // Read past the cap by one, so that a file that grows meanwhile is seen to be too long.
    file.take(cap + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    if bytes.len() as u64 > cap {
        return Err(Fault::file(path, format!("at most {cap} bytes"), format!("{} bytes", kind.len())).into());
    }
    Ok(bytes)
}
