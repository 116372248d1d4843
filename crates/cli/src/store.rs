//! The models that `fathom serve` offers: those named on its command line, and those that were fetched.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Instant, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use fathom_core::DType;
use fathom_engine::ChatModel;
use fathom_hub::Hub;
use fathom_model::{Adapter, Decoder, Model};
use fathom_server::{Offer, Refusal, Served, Store};

use crate::args::{Draft, LoadArgs};
use crate::assistant::start_engine;
use crate::load::{Device, Loaded, Room, load_on};
use crate::source::{self, Place};

/// See the module.
pub(crate) struct Models {
    named: Vec<Named>,
    load: LoadArgs,
    device: Device,
    draft: Draft,
    /// Tokens that a model's cache holds; none = one full context.
    cache_tokens: Option<usize>,
    /// Whether clients may fetch and delete models.
    pulls: bool,
    /// What was fetched, as of the last change.
    fetched: Mutex<Vec<Offer>>,
    /// Weights and context of the first model while it is loaded: its adapters share them.
    first: Mutex<(Weak<Decoder>, usize)>,
}

/// A model of the command line.
struct Named {
    /// What was written; none = the model that is taken if none is named.
    source: Option<String>,
    offer: Offer,
    /// An adapter that stands beside the first model's weights.
    adapter: Option<PathBuf>,
}

impl Models {
    /// Reads the descriptions of the models that were named, `NAME=MODEL` or `MODEL`, and of the adapters in `load`, `NAME=DIR`, each
    /// a model of that name: the first one's weights with the adapter.
    pub(crate) fn new(
        names: &[String],
        mut load: LoadArgs,
        device: Device,
        draft: Draft,
        cache_tokens: Option<usize>,
        pulls: bool,
    ) -> Result<Self> {
        let sources: Vec<(Option<String>, Option<String>)> = if names.is_empty() {
            vec![(None, None)]
        } else {
            let split = |text: &String| match text.split_once('=') {
                Some((name, source)) => (Some(name.to_owned()), Some(source.to_owned())),
                None => (None, Some(text.clone())),
            };
            names.iter().map(split).collect()
        };
        let mut named: Vec<Named> = Vec::new();
        for (name, source) in sources {
            let place = source::locate(source.as_deref())?;
            let name = name.unwrap_or_else(|| called(source.as_deref(), place.path()));
            ensure!(!name.is_empty(), "NAME=MODEL needs a name before the equals sign");
            if named.iter().any(|n| n.offer.name == name) {
                bail!("two models would be called {name}: give one another name, OTHER={}", place.path().display());
            }
            let offer = describe(&place, &name, &load, &device).with_context(|| format!("cannot offer {name}"))?;
            named.push(Named { source, offer, adapter: None });
        }
        for adapter in std::mem::take(&mut load.adapter) {
            let text = adapter.to_string_lossy().into_owned();
            let Some((name, dir)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
                bail!("--adapter {text}: expected NAME=DIR, where NAME is what clients call it");
            };
            if named.iter().any(|n| n.offer.name == name) {
                bail!("--adapter {text}: something else is called {name} already");
            }
            let first = &named[0];
            let model = source::locate(first.source.as_deref())?.open(&load.read.options())?;
            let adapter = Adapter::open(Path::new(dir), &model.spec)?;
            let pairs = adapter.pairs.iter().map(|(_, p)| 4 * (p.a.rows * p.a.cols + p.b.rows * p.b.cols) as u64);
            let bytes = first.offer.bytes - model.archive.total_bytes() + pairs.sum::<u64>();
            let offer = Offer { name: name.to_owned(), bytes, ..first.offer.clone() };
            named.push(Named { source: first.source.clone(), offer, adapter: Some(PathBuf::from(dir)) });
        }
        let (fetched, first) = (Mutex::default(), Mutex::default());
        let models = Models { named, load, device, draft, cache_tokens, pulls, fetched, first };
        models.refresh();
        Ok(models)
    }

    /// What the models of the command line are called, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.named.iter().map(|n| n.offer.name.clone()).collect()
    }

    /// Looks again what was fetched. A cache that cannot be read holds nothing.
    fn refresh(&self) {
        let list = Hub::from_env().and_then(|hub| hub.list()).unwrap_or_default();
        let offers = list.into_iter().flat_map(|cached| {
            let bytes = cached.bytes;
            cached.models.into_iter().map(move |name| Offer {
                name,
                bytes,
                modified: 0,
                family: String::new(),
                parameters: 0,
                format: String::new(),
                pictures: false,
            })
        });
        *self.fetched.lock().unwrap_or_else(PoisonError::into_inner) = offers.collect();
    }

    fn try_load(&self, name: &str) -> Result<Served> {
        let named = self.named.iter().find(|n| n.offer.name == name);
        let source = match named {
            Some(named) => named.source.as_deref(),
            None => Some(name),
        };
        if let Some(Named { adapter: Some(dir), offer, .. }) = named {
            return self.load_beside_the_first(source, dir, offer);
        }
        let (loaded, chat) = load_on(&self.device, &self.load, source, Room::Conversation, chat_model)?;
        if named.is_some_and(|n| std::ptr::eq(n, &self.named[0])) {
            let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
            *first = (Arc::downgrade(&loaded.decoder), loaded.context);
        }
        let offer = match named {
            Some(named) => named.offer.clone(),
            None => describe(&source::locate(source)?, name, &self.load, &self.device)?,
        };
        let defaults = loaded.model.defaults()?;
        Ok(Served { offer, chat, defaults, engine: start_engine(loaded, self.draft, self.cache_tokens)? })
    }

    /// The first model with an adapter: over the same weights while that is loaded, else over its own.
    fn load_beside_the_first(&self, source: Option<&str>, dir: &Path, offer: &Offer) -> Result<Served> {
        let (shared, context) = self.first.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (loaded, chat) = match shared.upgrade() {
            None => {
                let load = LoadArgs { adapter: vec![dir.to_owned()], ..self.load.clone() };
                load_on(&self.device, &load, source, Room::Conversation, chat_model)?
            }
            Some(weights) => {
                let start = Instant::now();
                let model = source::locate(source)?.open(&self.load.read.options())?;
                let mut decoder = Decoder::clone(&weights);
                decoder.adapt(Some(&Adapter::open(dir, &model.spec)?))?;
                let (kv, chat) = (self.load.kv_dtype(self.device.backend.precision()), chat_model(&model)?);
                let (name, decoder) = (offer.name.clone(), Arc::new(decoder));
                (Loaded { name, model, decoder, kv, context, took: start.elapsed(), packed: 0 }, chat)
            }
        };
        let defaults = loaded.model.defaults()?;
        let engine = start_engine(loaded, self.draft, self.cache_tokens)?;
        Ok(Served { offer: offer.clone(), chat, defaults, engine })
    }
}

/// The text side of a model.
fn chat_model(model: &Model) -> Result<ChatModel> {
    Ok(ChatModel::new(&model.vocab()?)?.seeing(model.spec.pictures.as_ref()))
}

/// A name for clients: as it was written, or the file's or directory's own.
fn called(source: Option<&str>, path: &Path) -> String {
    match source {
        Some(name) if !Path::new(name).exists() => name.to_owned(),
        None => source::BUILT_IN.to_owned(),
        Some(_) => {
            let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            let last = if path.is_dir() { path.file_name() } else { path.file_stem() };
            last.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
        }
    }
}

/// What a model is, from its description alone.
fn describe(place: &Place, name: &str, load: &LoadArgs, device: &Device) -> Result<Offer> {
    let model = place.open(&load.read.options())?;
    let kv: DType = load.kv_dtype(device.backend.precision());
    let context = crate::load::context(&model, kv, load, Room::Conversation)?;
    let cache = (model.spec.kv_bytes_per_token(kv) * context) as u64;
    let modified =
        std::fs::metadata(place.path()).ok().and_then(|m| m.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    let mut formats = std::collections::BTreeMap::<String, u64>::new();
    for tensor in model.archive.names().filter_map(|name| model.archive.tensor(name).ok().flatten()) {
        *formats.entry(tensor.format.name().to_owned()).or_default() += tensor.bytes.len() as u64;
    }
    let format = formats.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(name, _)| name);
    Ok(Offer {
        name: name.to_owned(),
        bytes: model.archive.total_bytes() + cache,
        modified: modified.map_or(0, |d| d.as_secs()),
        family: model.spec.family.to_owned(),
        parameters: model.spec.parameters().total,
        format: format.unwrap_or_default(),
        pictures: model.spec.pictures.is_some(),
    })
}

fn failed(error: &anyhow::Error) -> Refusal {
    Refusal::Failed(crate::explain(error))
}

impl Store for Models {
    fn offers(&self) -> Vec<Offer> {
        let mut offers: Vec<Offer> = self.named.iter().map(|n| n.offer.clone()).collect();
        let fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        for offer in fetched.iter() {
            if offers.iter().all(|o| o.name != offer.name) {
                offers.push(offer.clone());
            }
        }
        offers
    }

    fn load(&self, name: &str) -> Result<Served, Refusal> {
        self.try_load(name).map_err(|e| failed(&e))
    }

    fn pull(&self, name: &str, progress: &mut dyn FnMut(&str, u64, u64)) -> Result<(), Refusal> {
        self.may_change()?;
        let hub = Hub::from_env().map_err(|e| Refusal::Failed(e.to_string()))?;
        let pulled = hub.pull(name, &mut |p| {
            progress(p.file, p.done_bytes, p.total_bytes);
            ControlFlow::Continue(())
        });
        pulled.map_err(|e| match e {
            fathom_hub::Error::Invalid { .. } => Refusal::field("model", e.to_string()),
            other => Refusal::Failed(other.to_string()),
        })?;
        self.refresh();
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), Refusal> {
        self.may_change()?;
        let hub = Hub::from_env().map_err(|e| Refusal::Failed(e.to_string()))?;
        let freed = hub.delete(name).map_err(|e| Refusal::field("model", e.to_string()))?;
        self.refresh();
        if freed == 0 { Err(Refusal::NoModel(name.to_owned())) } else { Ok(()) }
    }
}

impl Models {
    fn may_change(&self) -> Result<(), Refusal> {
        if self.pulls {
            return Ok(());
        }
        Err(Refusal::Forbidden("fetching and deleting models is off; the server's `--allow-pull` allows it".into()))
    }
}
