#![forbid(unsafe_code)]
//! Models from the Hugging Face Hub, into the hub's own cache layout, and out of it again.
//!
//! The one crate below floor 4 that may use the network and the environment. It knows names,
//! licences and sizes of models, and nothing of what is inside their files. Start at [`Hub`]: it
//! pulls, resolves a name that was fetched before (no network), lists and deletes.
//!
//! Promises: a file gets its final name only after its checksum was right, so a process killed at
//! any moment leaves nothing half-written under a name that anything would load; what was fetched
//! is kept and resumed. The token goes to the configured endpoint and to no other host. Pickle
//! files are never fetched.

mod cache;
mod config;
mod distils;
mod error;
mod fetch;
mod http;
mod name;
mod pull;
mod select;

pub use cache::Cached;
pub use config::{Config, Token};
pub use distils::{DISTILS, Distil};
pub use error::{Error, Result};
pub use name::{ModelName, Selector};
pub use pull::{Progress, Pulled, Stage};

use cache::Repo;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// A model hub and the cache on this machine.
#[derive(Debug)]
pub struct Hub {
    config: Config,
    client: http::Client,
}

impl Hub {
    /// A hub with this configuration. Nothing is contacted or created yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the endpoint is not an http or https address.
    pub fn new(config: Config) -> Result<Self> {
        let client = http::Client::new(&config)?;
        Ok(Hub { config, client })
    }

    /// The hub that the environment describes; see [`Config::from_env`].
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the variable at fault.
    pub fn from_env() -> Result<Self> {
        Hub::new(Config::from_env()?)
    }

    /// Fetches the model called `name` (see [`ModelName`]) unless it is here already, and says where it lies.
    ///
    /// `progress` is called at least once per file and every few hundred KiB; returning
    /// [`ControlFlow::Break`] cancels. Several processes may pull the same model at once: each file
    /// is fetched by one of them while the others wait for it.
    ///
    /// # Errors
    /// Any [`Error`]. What was fetched so far stays and the next call resumes it.
    pub fn pull(&self, name: &str, progress: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>) -> Result<Pulled> {
        pull::pull(&self.config, &self.client, &ModelName::parse(name)?, progress)
    }

    /// Where the model called `name` lies, if it was fetched completely: a GGUF file (the first
    /// part, if it is split) or the directory of a Hugging Face model. Never uses the network.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `name` cannot be a model's name, [`Error::Ambiguous`] if several
    /// models here answer to it, [`Error::Io`] if the cache cannot be read.
    pub fn resolve(&self, name: &str) -> Result<Option<PathBuf>> {
        let name = ModelName::parse(name)?;
        Repo::new(&self.config.cache, &name.repo).resolve(&name)
    }

    /// Every model repository in the cache, sorted by name.
    ///
    /// # Errors
    /// [`Error::Io`] if the cache cannot be read.
    pub fn list(&self) -> Result<Vec<Cached>> {
        cache::list(&self.config.cache)
    }

    /// Deletes what `name` selects (without a selector: the whole repository) and returns the bytes
    /// freed; 0 if it is not here. Files that another snapshot still uses stay.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::Ambiguous`] about the name, [`Error::Io`] if something cannot be removed.
    pub fn delete(&self, name: &str) -> Result<u64> {
        let name = ModelName::parse(name)?;
        Repo::new(&self.config.cache, &name.repo).delete(&name)
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }
}
