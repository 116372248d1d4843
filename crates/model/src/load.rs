//! From a path to a model: what it is, its vocabulary, how it likes to be sampled, its weights.

use std::path::Path;
use std::sync::Arc;

use fathom_core::Backend;
use fathom_files::{Archive, Fault, Faults, Metadata, Sidecar};
use fathom_text::{HuggingFaceTexts, NamedTemplate, TokenRef, VocabLists, VocabSource, Vocabulary};
use serde_json::Value;

use crate::adapter::Adapter;
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::families::keys::Source;
use crate::families::{Options, read_pixels, read_spec, template};
use crate::spec::ModelSpec;
use crate::weights::{self, Progress};

/// A model's files, read as far as can be without touching weights.
pub struct Model {
    /// What it is.
    pub spec: ModelSpec,
    /// Its files.
    pub archive: Archive,
    /// What stands beside its projections.
    pub adapter: Option<Adapter>,
}

/// How the model's makers say it should be sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// Temperature; 0 is greedy.
    pub temperature: f32,
    /// Nucleus.
    pub top_p: f32,
    /// Most likely tokens kept; 0: all.
    pub top_k: u32,
}

/// DeepSeek's recommendation for R1 and its distils (R1 README, "Usage Recommendations").
const RECOMMENDED: Defaults = Defaults { temperature: 0.6, top_p: 0.95, top_k: 0 };

impl Model {
    /// Opens a GGUF file, a Hugging Face directory, or a bare `config.json`.
    ///
    /// # Errors
    /// Everything wrong with the description; weights are checked by [`Model::check`].
    pub fn open(path: &Path, options: &Options) -> Result<Model> {
        Self::from_archive(Archive::open(path)?, options)
    }

    /// The same of files that are open already.
    ///
    /// # Errors
    /// Everything wrong with the description.
    pub fn from_archive(archive: Archive, options: &Options) -> Result<Model> {
        let path = archive.path();
        let mut spec = match (archive.config(), archive.metadata()) {
            (Some(config), _) => read_spec(Source::Hf(config), path, options)?,
            (None, Some(meta)) => {
                let arch = meta.need("general.architecture").map_err(fathom_files::Error::from)?;
                read_spec(Source::Gguf { arch, meta }, path, options)?
            }
            (None, None) => panic!("invariant: an archive has a config or metadata"),
        };
        if archive.names().next().is_some() {
            weights::complete(&mut spec, &archive)?;
        }
        let mut model = Model { spec, archive, adapter: None };
        let pixels = model.json(Sidecar::Preprocessor)?;
        if let (Some(pictures), Some(config)) = (&mut model.spec.pictures, pixels) {
            let path = model.archive.path().join(Sidecar::Preprocessor.name());
            pictures.pixels = read_pixels(&config, &path)?;
        }
        Ok(model)
    }

    /// Takes the LoRA adapter in a directory along: what is loaded from now on computes with it.
    ///
    /// # Errors
    /// All that is wrong with it, or does not fit the model, at once.
    pub fn adapt(&mut self, dir: &Path) -> Result<()> {
        self.adapter = Some(Adapter::open(dir, &self.spec)?);
        Ok(())
    }

    /// Checks all tensors; returns the names that the model has no use for.
    ///
    /// # Errors
    /// All faults at once.
    pub fn check(&self) -> Result<Vec<String>> {
        self.need_weights()?;
        weights::check(&self.spec, &self.archive)
    }

    /// Hands all weights to a backend.
    ///
    /// # Errors
    /// All faults of the tensors at once, or the backend's first.
    pub fn load(&self, backend: Arc<dyn Backend>, progress: Progress<'_>) -> Result<Decoder> {
        self.need_weights()?;
        let mut decoder = weights::load(&self.spec, &self.archive, backend, progress)?;
        if self.adapter.is_some() {
            decoder.adapt(self.adapter.as_ref())?;
        }
        Ok(decoder)
    }

    fn need_weights(&self) -> Result<()> {
        match self.archive.names().next() {
            Some(_) => Ok(()),
            None => Err(Error::NoWeights(self.archive.path().display().to_string())),
        }
    }

    /// What its tokenizer and templates are built from.
    ///
    /// # Errors
    /// If the files lack a vocabulary or hold a broken one.
    pub fn vocab(&self) -> Result<VocabSource> {
        let mut source = match self.archive.metadata() {
            Some(meta) => gguf_vocab(meta)?,
            None => self.hf_vocab()?,
        };
        if let Some(template) = template(&self.spec).filter(|_| source.templates.is_empty()) {
            source.templates.push(NamedTemplate { name: "default".to_owned(), source: template.to_owned() });
        }
        Ok(source)
    }

    fn text(&self, which: Sidecar) -> Result<Option<String>> {
        let Some(bytes) = self.archive.sidecar(which)? else { return Ok(None) };
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(e) => {
                let found = format!("a byte that is none at {}", e.utf8_error().valid_up_to());
                let path = self.archive.path().join(which.name());
                Err(fathom_files::Error::from(Fault::file(&path, "UTF-8 text", found)).into())
            }
        }
    }

    fn hf_vocab(&self) -> Result<VocabSource> {
        let name = self.archive.path().display().to_string();
        let Some(tokenizer) = self.text(Sidecar::Tokenizer)? else {
            let path = self.archive.path().join(Sidecar::Tokenizer.name());
            return Err(fathom_files::Error::from(Fault::file(&path, "the model's tokenizer", "no such file")).into());
        };
        let config = self.text(Sidecar::TokenizerConfig)?;
        let special = self.text(Sidecar::SpecialTokens)?;
        let template = self.text(Sidecar::ChatTemplate)?;
        let mut source = VocabSource::from_hugging_face(
            &name,
            HuggingFaceTexts {
                tokenizer: &tokenizer,
                config: config.as_deref(),
                special_tokens: special.as_deref(),
                chat_template: template.as_deref(),
            },
        )?;
        let generation = self.generation_config()?;
        let configs = [generation.as_ref(), self.archive.config()];
        for id in configs.into_iter().flatten().filter_map(|c| c.get("eos_token_id")).flat_map(ids) {
            source.also_end.push(TokenRef::Id(id));
        }
        Ok(source)
    }

    fn generation_config(&self) -> Result<Option<Value>> {
        self.json(Sidecar::GenerationConfig)
    }

    fn json(&self, which: Sidecar) -> Result<Option<Value>> {
        let Some(text) = self.text(which)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|e| {
            let path = self.archive.path().join(which.name());
            fathom_files::Error::from(Fault::file(&path, "a JSON object", e.to_string())).into()
        })
    }

    /// Sampling defaults: the model's own, else DeepSeek's recommendation.
    ///
    /// # Errors
    /// If `generation_config.json` is broken.
    pub fn defaults(&self) -> Result<Defaults> {
        let mut d = RECOMMENDED;
        if let Some(meta) = self.archive.metadata() {
            let get = |key| meta.get::<f32>(key).ok().flatten();
            d.temperature = get("general.sampling.temp").filter(|t| (0.0..=10.0).contains(t)).unwrap_or(d.temperature);
            d.top_p = get("general.sampling.top_p").filter(|p| *p > 0.0 && *p <= 1.0).unwrap_or(d.top_p);
            return Ok(d);
        }
        let Some(config) = self.generation_config()? else { return Ok(d) };
        let number = |key: &str| config.get(key).and_then(Value::as_f64);
        if config.get("do_sample").and_then(Value::as_bool) == Some(false) {
            d.temperature = 0.0;
        } else if let Some(t) = number("temperature").filter(|t| (0.0..=10.0).contains(t)) {
            d.temperature = t as f32;
        }
        if let Some(p) = number("top_p").filter(|p| *p > 0.0 && *p <= 1.0) {
            d.top_p = p as f32;
        }
        if let Some(k) = config.get("top_k").and_then(Value::as_u64) {
            d.top_k = k.min(1 << 20) as u32;
        }
        Ok(d)
    }
}

/// A token id, or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(all) => all.iter().filter_map(one).collect(),
        v => one(v).into_iter().collect(),
    }
}

fn gguf_vocab(meta: &Metadata) -> Result<VocabSource> {
    let mut faults = Faults::default();
    let mut take = |result: std::result::Result<(), Fault>| {
        if let Err(fault) = result {
            faults.push(fault);
        }
    };
    let mut lists = VocabLists::default();
    let mut source = VocabSource::new(meta.file().display().to_string(), Vocabulary::Lists(VocabLists::default()));
    let mut whole = None;
    take(meta.get::<&str>("tokenizer.huggingface.json").map(|v| whole = v.map(str::to_owned)));
    // Lists go before a whole tokenizer, which says the same: other programs read only them.
    if whole.is_none() || meta.value("tokenizer.ggml.tokens").is_some() {
        whole = None;
        take(meta.need::<&str>("tokenizer.ggml.model").map(|v| lists.model = v.to_owned()));
        take(meta.get::<&str>("tokenizer.ggml.pre").map(|v| lists.pre = v.unwrap_or("default").to_owned()));
        take(meta.need::<Vec<&str>>("tokenizer.ggml.tokens").map(|v| lists.tokens = owned(v)));
        take(meta.get::<Vec<&str>>("tokenizer.ggml.merges").map(|v| lists.merges = owned(v.unwrap_or_default())));
        take(meta.get("tokenizer.ggml.token_type").map(|v| lists.kinds = v.unwrap_or_default()));
    }
    let id = |key| meta.get::<u32>(key).map(|v| v.map(TokenRef::Id));
    take(id("tokenizer.ggml.bos_token_id").map(|v| source.bos = v));
    take(id("tokenizer.ggml.eos_token_id").map(|v| source.eos = v));
    take(id("tokenizer.ggml.padding_token_id").map(|v| source.pad = v));
    for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        take(id(key).map(|v| source.also_end.extend(v)));
    }
    take(meta.get("tokenizer.ggml.add_bos_token").map(|v| source.add_bos = v));
    let mut template = |name: &str, key: &str| {
        take(meta.get::<&str>(key).map(|v| {
            source.templates.extend(v.map(|s| NamedTemplate { name: name.to_owned(), source: s.to_owned() }));
        }));
    };
    template("default", "tokenizer.chat_template");
    for name in meta.get::<Vec<&str>>("tokenizer.chat_templates").ok().flatten().unwrap_or_default() {
        template(name, &format!("tokenizer.chat_template.{name}"));
    }
    faults.or(())?;
    source.vocabulary = match whole {
        Some(json) => Vocabulary::TokenizerJson(json),
        None => Vocabulary::Lists(lists),
    };
    Ok(source)
}

fn owned(all: Vec<&str>) -> Vec<String> {
    all.into_iter().map(str::to_owned).collect()
}
