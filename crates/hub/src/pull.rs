//! A whole pull: list, choose, ask for sizes, check the disk, fetch, link, and last the ref.
//!
//! Also the `Watch`, through which everything slow reports progress and learns of a cancel.

use crate::cache::Repo;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::fetch::{Wanted, fetch};
use crate::http::{Client, Meta};
use crate::name::{ModelName, check_path};
use crate::select::select;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a pull is doing right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Asking the hub what there is.
    Asking,
    /// Another process fetches this file; we wait for it.
    Waiting,
    /// Receiving.
    Fetching,
    /// Computing the checksum of what came.
    Checking,
    /// Something transient went wrong; the given attempt follows after the wait.
    Retrying {
        /// Number of the attempt to come.
        attempt: u32,
        /// Time until then.
        wait: Duration,
    },
}

/// How far a pull is. Speed and time left follow from `received_bytes` and a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What is happening.
    pub stage: Stage,
    /// The file at hand, empty while asking for the list.
    pub file: &'a str,
    /// Bytes of this file that are on disk (fetching) or checked (checking).
    pub file_bytes: u64,
    /// Size of this file.
    pub file_total_bytes: u64,
    /// Bytes of the whole pull that are on disk, those of earlier pulls included.
    pub done_bytes: u64,
    /// Size of the whole pull; 0 until the hub has told.
    pub total_bytes: u64,
    /// Bytes that came over the network in this call.
    pub received_bytes: u64,
}

/// A model that a pull has made available.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// `ORG/REPO`.
    pub repo: String,
    /// The commit fetched.
    pub commit: String,
    /// What to load: a GGUF file (the first part), or a directory in Hugging Face's form.
    pub path: PathBuf,
    /// All files of the model.
    pub files: Vec<PathBuf>,
    /// Size of all files.
    pub total_bytes: u64,
    /// Bytes that came over the network in this call; 0 if all was here.
    pub received_bytes: u64,
}

/// The progress callback with the state that it shows.
pub(crate) struct Watch<'a> {
    callback: &'a mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
    file: String,
    file_total: u64,
    file_bytes: u64,
    finished: u64,
    total: u64,
    received: u64,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(callback: &'a mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>) -> Self {
        Watch { callback, file: String::new(), file_total: 0, file_bytes: 0, finished: 0, total: 0, received: 0 }
    }

    /// Turns to a file.
    fn file(&mut self, file: &str, size: u64) {
        self.file = file.into();
        (self.file_total, self.file_bytes) = (size, 0);
    }

    /// Counts bytes from the network.
    pub(crate) fn received(&mut self, bytes: u64) {
        self.received += bytes;
    }

    /// Reports that the file at hand has come to `bytes`.
    pub(crate) fn at(&mut self, stage: Stage, bytes: u64) -> Result<()> {
        self.file_bytes = bytes;
        self.tell(stage)
    }

    fn tell(&mut self, stage: Stage) -> Result<()> {
        // While checking, the whole file is on disk.
        let on_disk = if stage == Stage::Checking { self.file_total } else { self.file_bytes };
        let progress = Progress {
            stage,
            file: &self.file,
            file_bytes: self.file_bytes,
            file_total_bytes: self.file_total,
            done_bytes: self.finished + on_disk,
            total_bytes: self.total,
            received_bytes: self.received,
        };
        match (self.callback)(&progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }

    /// Waits, reporting now and then so that a cancel is heard.
    pub(crate) fn sleep(&mut self, stage: Stage, time: Duration) -> Result<()> {
        const TURN: Duration = Duration::from_millis(100);
        let until = Instant::now() + time;
        loop {
            self.tell(stage)?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TURN));
        }
    }
}

/// See [`crate::Hub::pull`].
pub(crate) fn pull(
    config: &Config,
    client: &Client,
    name: &ModelName,
    progress: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Result<Pulled> {
    let watch = &mut Watch::new(progress);
    watch.tell(Stage::Asking)?;
    let listing = client.retry(watch, |_| client.listing(&name.repo, &name.revision))?;
    let commit = listing.commit.clone();
    let selection = select(name, &listing.files())?;
    for file in selection.files() {
        check_path(file).map_err(|why| Error::Invalid { what: "file of the hub", value: file.clone(), why })?;
    }

    let repo = Repo::new(&config.cache, &name.repo);
    let snapshot = repo.snapshot(&commit);
    let mut todo = vec![];
    let mut here = 0;
    for file in selection.files() {
        watch.file(file, 0);
        watch.tell(Stage::Asking)?;
        // A snapshot never changes, so what it holds need not be asked for again.
        match fs::metadata(snapshot.join(file)) {
            Ok(found) => here += found.len(),
            Err(_) => {
                let url = client.file_url(&name.repo, &commit, file);
                let meta = client.retry(watch, |_| client.meta(&url))?;
                todo.push((file, url, meta));
            }
        }
    }
    let missing = todo.iter().map(|(_, _, meta)| meta.size).try_fold(0u64, u64::checked_add);
    let total = missing.and_then(|m| m.checked_add(here)).ok_or_else(|| Error::Protocol {
        url: config.endpoint.clone(),
        what: "sizes of the files",
        expected: "a sum below 2^64".into(),
        found: "more".into(),
    })?;
    (watch.total, watch.finished) = (total, here);

    repo.create()?;
    check_space(&config.cache, &repo, todo.iter().map(|t| &t.2))?;
    for (file, url, meta) in &todo {
        watch.file(file, meta.size);
        fetch(client, &repo, &Wanted { url: url.clone(), file, meta }, watch)?;
        repo.link(&commit, file, &meta.etag)?;
        watch.finished += meta.size;
    }
    repo.write_ref(&name.revision, &commit)?;
    let path = repo.resolve(name)?.ok_or_else(|| Error::NotFound {
        what: "every shard that the model's index names".into(),
        place: name.repo.clone(),
        available: selection.files().to_vec(),
    })?;
    let files = selection.files().iter().map(|f| snapshot.join(f)).collect();
    Ok(Pulled { repo: name.repo.clone(), commit, path, files, total_bytes: total, received_bytes: watch.received })
}

/// Fails if the disk cannot take what is still to come.
fn check_space<'a>(cache: &Path, repo: &Repo, todo: impl Iterator<Item = &'a Meta>) -> Result<()> {
    let length = |path: PathBuf| fs::metadata(path).map_or(0, |m| m.len());
    let left = |meta: &Meta| match length(repo.blob(&meta.etag)) {
        done if done == meta.size => 0,
        _ => meta.size.saturating_sub(length(repo.unfinished(&meta.etag))),
    };
    let needed_bytes = todo.map(left).sum();
    match free_bytes(cache) {
        Some(free_bytes) if free_bytes < needed_bytes => {
            Err(Error::Space { dir: cache.into(), needed_bytes, free_bytes })
        }
        _ => Ok(()),
    }
}

/// Bytes free to this user on the disk of `dir`; `None` where the system does not tell, and then
/// a full disk shows as a failed write.
#[cfg(unix)]
fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

#[cfg(not(unix))]
fn free_bytes(_dir: &Path) -> Option<u64> {
    None
}
