//! The models that a server offers: by name, loaded when wanted, unloaded when idle or when memory is short.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fathom_engine::{ChatModel, Engine};
use fathom_model::Defaults;
use fathom_text::Thinking;
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

use crate::Refusal;

/// A model that can be offered.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// What clients call it.
    pub name: String,
    /// Bytes that it takes once loaded, weights and cache.
    pub bytes: u64,
    /// When its file was last changed, seconds since 1970.
    pub modified: u64,
    /// Architecture family.
    pub family: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Number format of most of its weights.
    pub format: String,
    /// Whether it is known to see and draw pictures.
    pub pictures: bool,
}

/// A model that answers.
pub struct Served {
    /// What it is.
    pub offer: Offer,
    /// Its text side.
    pub chat: ChatModel,
    /// Its engine.
    pub engine: Engine,
    /// How its makers say it should be sampled.
    pub defaults: Defaults,
}

/// Where models come from. The command line implements it over files and backends, tests without any.
pub trait Store: Send + Sync {
    /// What there is. Called often, so it must be quick.
    fn offers(&self) -> Vec<Offer>;

    /// Loads one. Called on a thread of its own.
    ///
    /// # Errors
    /// If it cannot be loaded, or not now.
    fn load(&self, name: &str) -> Result<Served, Refusal>;

    /// Fetches a model, telling about it in between: what is being done, bytes done, bytes in all.
    ///
    /// # Errors
    /// If that is not allowed or fails.
    fn pull(&self, name: &str, progress: &mut dyn FnMut(&str, u64, u64)) -> Result<(), Refusal>;

    /// Removes a fetched model.
    ///
    /// # Errors
    /// If that is not allowed or fails.
    fn remove(&self, name: &str) -> Result<(), Refusal>;
}

/// Another name for a model, perhaps with a switch.
#[derive(Clone, Debug)]
pub struct Alias {
    /// What clients say.
    pub name: String,
    /// The model.
    pub model: String,
    /// Thinking, where the request does not say.
    pub thinking: Thinking,
}

/// How models come and go.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Loaded at the start and kept.
    pub kept: Vec<String>,
    /// Other names.
    pub aliases: Vec<Alias>,
    /// How long others stay without a request.
    pub keep_alive: Duration,
    /// Bytes that all loaded models may take together.
    pub memory: Option<u64>,
    /// How long a request waits for its model to load.
    pub load_wait: Duration,
}

#[derive(Default)]
struct Slot {
    state: Arc<tokio::sync::Mutex<Option<Arc<Served>>>>,
    use_: Mutex<Use>,
}

/// When it was last wanted, and how long it is to stay after that.
#[derive(Clone, Copy, Default)]
struct Use {
    last: Option<Instant>,
    keep: Option<Duration>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See the module.
pub(crate) struct Models {
    pub(crate) store: Arc<dyn Store>,
    options: ModelOptions,
    slots: Mutex<BTreeMap<String, Arc<Slot>>>,
    /// One at a time makes room and loads.
    loading: tokio::sync::Mutex<()>,
    ready: AtomicBool,
}

impl Models {
    pub(crate) fn new(store: Arc<dyn Store>, options: ModelOptions) -> Self {
        Models {
            store,
            options,
            slots: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            ready: AtomicBool::new(false),
        }
    }

    /// What there is, the kept ones first.
    pub(crate) fn offers(&self) -> Vec<Offer> {
        let mut offers = self.store.offers();
        offers.sort_by_key(|o| self.options.kept.iter().position(|k| *k == o.name).unwrap_or(usize::MAX));
        offers
    }

    pub(crate) fn aliases(&self) -> &[Alias] {
        &self.options.aliases
    }

    /// The model meant where none is named.
    pub(crate) fn first(&self) -> &str {
        self.options.kept.first().map_or("", String::as_str)
    }

    /// The model meant by a name, and what an alias says of thinking.
    pub(crate) fn resolve(&self, name: &str) -> Result<(String, Thinking), Refusal> {
        let (model, thinking) = match self.options.aliases.iter().find(|a| a.name == name) {
            Some(alias) => (alias.model.as_str(), alias.thinking),
            None => (name, Thinking::Default),
        };
        let offers = self.store.offers();
        // Ollama's clients add a tag.
        let named = |n: &str| offers.iter().any(|o| o.name == n).then(|| n.to_owned());
        let found = named(model).or_else(|| model.strip_suffix(":latest").and_then(named));
        found.map(|model| (model, thinking)).ok_or_else(|| Refusal::NoModel(name.to_owned()))
    }

    fn slot(&self, name: &str) -> Arc<Slot> {
        Arc::clone(lock(&self.slots).entry(name.to_owned()).or_default())
    }

    /// The loaded model of that (resolved) name; loads it if need be.
    pub(crate) async fn get(self: &Arc<Self>, name: &str) -> Result<Arc<Served>, Refusal> {
        let slot = self.slot(name);
        lock(&slot.use_).last = Some(Instant::now());
        let loading = |_| Refusal::Unavailable(format!("{name} is being loaded; try again soon"));
        let wait = self.options.load_wait;
        let guard = timeout(wait, Arc::clone(&slot.state).lock_owned()).await.map_err(loading)?;
        if let Some(served) = &*guard {
            return Ok(Arc::clone(served));
        }
        // A task of its own, so that loading goes on when this client leaves.
        let (models, name_) = (Arc::clone(self), name.to_owned());
        let task = tokio::spawn(async move { models.load(&name_, guard).await });
        match timeout(wait, task).await.map_err(loading)? {
            Ok(result) => result,
            Err(_) => Err(Refusal::Failed(format!("loading {name} broke off"))),
        }
    }

    async fn load(&self, name: &str, mut guard: OwnedMutexGuard<Option<Arc<Served>>>) -> Result<Arc<Served>, Refusal> {
        let _one = self.loading.lock().await;
        self.make_room(name).await?;
        let (store, name_) = (Arc::clone(&self.store), name.to_owned());
        let loaded = tokio::task::spawn_blocking(move || store.load(&name_)).await;
        let served = Arc::new(loaded.map_err(|_| Refusal::Failed(format!("loading {name} broke off")))??);
        *guard = Some(Arc::clone(&served));
        lock(&self.slot(name).use_).last = Some(Instant::now());
        Ok(served)
    }

    /// Unloads idle models, the longest idle first, until `name` fits.
    async fn make_room(&self, name: &str) -> Result<(), Refusal> {
        let Some(budget) = self.options.memory else { return Ok(()) };
        let bytes = self.store.offers().into_iter().find(|o| o.name == name).map_or(0, |o| o.bytes);
        loop {
            let loaded = self.loaded();
            let taken: u64 = loaded.iter().map(|(served, _)| served.offer.bytes).sum();
            if taken.saturating_add(bytes) <= budget {
                return Ok(());
            }
            // Two handles: the slot's and this list's.
            let idle = loaded.into_iter().filter(|(served, _)| Arc::strong_count(served) <= 2);
            let Some((victim, _)) = idle.min_by_key(|(_, used)| *used) else {
                return Err(Refusal::Unavailable(format!(
                    "{name} needs {bytes} bytes beside {taken} in use, {budget} are allowed, and no loaded model is idle"
                )));
            };
            let victim_name = victim.offer.name.clone();
            drop(victim);
            if !self.unload(&victim_name).await {
                return Err(Refusal::Unavailable(format!("{victim_name} is in use, so there is no room for {name}")));
            }
        }
    }

    /// The loaded models and when they were last wanted.
    pub(crate) fn loaded(&self) -> Vec<(Arc<Served>, Option<Instant>)> {
        let slots = lock(&self.slots);
        let ready = slots.values().filter_map(|slot| {
            let served = Arc::clone(slot.state.try_lock().ok()?.as_ref()?);
            Some((served, lock(&slot.use_).last))
        });
        ready.collect()
    }

    /// How long a model stays after its last request; none = for good.
    pub(crate) fn keep(&self, name: &str) -> Option<Duration> {
        let own = lock(&self.slot(name).use_).keep;
        own.or_else(|| (!self.options.kept.iter().any(|k| k == name)).then_some(self.options.keep_alive))
    }

    /// Sets how long a model stays after its last request.
    pub(crate) fn set_keep(&self, name: &str, keep: Duration) {
        lock(&self.slot(name).use_).keep = Some(keep);
    }

    /// Unloads a model unless it is in use. Returns whether it is gone.
    pub(crate) async fn unload(&self, name: &str) -> bool {
        let slot = self.slot(name);
        let Ok(mut state) = slot.state.try_lock() else { return false };
        let Some(served) = state.take() else { return true };
        match Arc::try_unwrap(served) {
            // Ends a thread and gives back memory: not on this runtime's threads.
            Ok(served) => tokio::task::spawn_blocking(move || drop(served)).await.is_ok(),
            Err(served) => {
                *state = Some(served);
                false
            }
        }
    }

    /// Unloads what was not wanted for long enough.
    pub(crate) async fn unload_idle(&self) {
        for (served, used) in self.loaded() {
            let name = served.offer.name.clone();
            drop(served);
            let idle = used.map_or(Duration::ZERO, |used| used.elapsed());
            if self.keep(&name).is_some_and(|keep| idle >= keep) {
                self.unload(&name).await;
            }
        }
    }

    /// Whether the models that are kept have been loaded. One that later made room for another is loaded again on demand.
    pub(crate) fn ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Loads what is kept. Returns what could not be loaded, and why.
    pub(crate) async fn load_kept(self: &Arc<Self>) -> Vec<(String, Refusal)> {
        let mut faults = Vec::new();
        for name in &self.options.kept {
            // A request's patience is not enough for the largest models.
            let result = loop {
                match self.get(name).await {
                    Err(Refusal::Unavailable(_)) if self.slot(name).state.try_lock().is_err() => {}
                    result => break result,
                }
            };
            faults.extend(result.err().map(|refusal| (name.clone(), refusal)));
        }
        self.ready.store(faults.is_empty(), Ordering::Relaxed);
        faults
    }
}
