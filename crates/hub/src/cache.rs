//! The hub's cache on disk: `models--ORG--REPO/{blobs,snapshots/COMMIT,refs}` and `.locks`.
//!
//! Layout: "Hub Local Cache" in the hub's documentation. A blob is named by its checksum; a snapshot
//! holds relative links to blobs; a ref holds the commit of a branch. We write them in that order,
//! so each step makes visible only what is complete.

use crate::error::{Error, IoContext, Result};
use crate::http::{Etag, is_hex};
use crate::name::{ModelName, Selector};
use crate::pull::{Stage, Watch};
use crate::select::{Selection, gguf_models, select};
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A model repository in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// `ORG/REPO`.
    pub repo: String,
    /// Names of the complete models in it, each of which [`crate::Hub::resolve`] finds.
    pub models: Vec<String>,
    /// Bytes of complete files.
    pub bytes: u64,
    /// Bytes of files that a pull has not finished.
    pub unfinished_bytes: u64,
    /// Its directory.
    pub path: PathBuf,
}

/// Paths of one repository.
pub(crate) struct Repo {
    /// `ORG/REPO`.
    pub(crate) name: String,
    dir: PathBuf,
    locks: PathBuf,
}

impl Repo {
    pub(crate) fn new(cache: &Path, name: &str) -> Self {
        let folder = format!("models--{}", name.replace('/', "--"));
        Repo { name: name.into(), dir: cache.join(&folder), locks: cache.join(".locks").join(folder) }
    }

    pub(crate) fn blob(&self, etag: &Etag) -> PathBuf {
        self.dir.join("blobs").join(etag.as_str())
    }

    /// Where a blob grows until it is complete and checked.
    pub(crate) fn unfinished(&self, etag: &Etag) -> PathBuf {
        self.dir.join("blobs").join(format!("{}.incomplete", etag.as_str()))
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    /// Creates the blob directory.
    pub(crate) fn create(&self) -> Result<()> {
        create_dir(&self.dir.join("blobs"))
    }

    /// Waits until no other process fetches this blob; the lock ends with the returned file.
    pub(crate) fn lock(&self, etag: &Etag, watch: &mut Watch<'_>) -> Result<File> {
        create_dir(&self.locks)?;
        let path = self.locks.join(format!("{}.lock", etag.as_str()));
        let file = File::options().create(true).truncate(false).write(true).open(&path).on("open", &path)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => watch.sleep(Stage::Waiting, Duration::from_millis(50))?,
                Err(TryLockError::Error(source)) => return Err(Error::Io { doing: "lock", path, source }),
            }
        }
    }

    /// Puts `file` into the snapshot of `commit` as a link to its blob.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &Etag) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        let dir = path.parent().expect("a file in a snapshot has a directory");
        create_dir(dir)?;
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{}", etag.as_str()));
        if fs::read_link(&path).is_ok_and(|old| old == target) {
            return Ok(());
        }
        // By way of a second name, so that an old link is replaced in one step.
        let fresh = fresh(&path);
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).on("remove", &fresh),
            _ => {}
        }
        symlink(&target, &fresh).on("create", &fresh)?;
        fs::rename(&fresh, &path).on("create", &path)
    }

    /// Records the commit of a revision; a commit needs no record.
    pub(crate) fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.dir.join("refs").join(revision);
        create_dir(path.parent().expect("a ref has a directory"))?;
        let fresh = fresh(&path);
        fs::write(&fresh, commit).on("write", &fresh)?;
        fs::rename(&fresh, &path).on("write", &path)
    }

    /// The commit of a revision, if it was fetched.
    fn commit(&self, revision: &str) -> Result<Option<String>> {
        let is_commit = |text: &str| text.len() == 40 && is_hex(text);
        if is_commit(revision) {
            return Ok(Some(revision.into()));
        }
        let path = self.dir.join("refs").join(revision);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|t| is_commit(t))),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory) =>
            {
                Ok(None)
            }
            Err(error) => Err(error).on("read", &path),
        }
    }

    /// See [`crate::Hub::resolve`].
    pub(crate) fn resolve(&self, name: &ModelName) -> Result<Option<PathBuf>> {
        let Some(commit) = self.commit(&name.revision)? else { return Ok(None) };
        let files = self.files(&commit)?;
        let selection = match select(name, &files) {
            Ok(selection) => selection,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let snapshot = self.snapshot(&commit);
        Ok(match &selection {
            Selection::Directory(files) => is_complete(&snapshot, files).then_some(snapshot),
            Selection::Gguf(files) => Some(snapshot.join(&files[0])),
            Selection::Files(files) if files.len() == 1 => Some(snapshot.join(&files[0])),
            Selection::Files(_) => Some(snapshot),
        })
    }

    /// Files of a snapshot whose blobs are there.
    fn files(&self, commit: &str) -> Result<Vec<String>> {
        let mut files = vec![];
        walk(&self.snapshot(commit), "", &mut |relative, path| {
            // exists() follows the link.
            if path.exists() {
                files.push(relative);
            }
        })?;
        files.sort();
        Ok(files)
    }

    /// See [`crate::Hub::delete`].
    pub(crate) fn delete(&self, name: &ModelName) -> Result<u64> {
        if name.selector == Selector::Default && name.revision == "main" {
            let (done, unfinished) = self.sizes()?;
            // Refs first, then links: at no moment does a name lead to something half-deleted.
            for part in [self.dir.join("refs"), self.dir.join("snapshots"), self.dir.clone(), self.locks.clone()] {
                match fs::remove_dir_all(&part) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).on("delete", &part),
                    _ => {}
                }
            }
            return Ok(done + unfinished);
        }
        let Some(commit) = self.commit(&name.revision)? else { return Ok(0) };
        let selection = match select(name, &self.files(&commit)?) {
            Ok(selection) => selection,
            Err(Error::NotFound { .. }) => return Ok(0),
            Err(error) => return Err(error),
        };
        let snapshot = self.snapshot(&commit);
        let mut orphans = BTreeSet::new();
        for file in selection.files() {
            let link = snapshot.join(file);
            orphans.extend(fs::read_link(&link).ok().and_then(blob_name));
            fs::remove_file(&link).on("delete", &link)?;
        }
        walk(&self.dir.join("snapshots"), "", &mut |_, link| {
            if let Some(used) = fs::read_link(link).ok().and_then(blob_name) {
                orphans.remove(&used);
            }
        })?;
        let mut freed = 0;
        for orphan in orphans {
            let blob = self.dir.join("blobs").join(orphan);
            freed += fs::metadata(&blob).on("read", &blob)?.len();
            fs::remove_file(&blob).on("delete", &blob)?;
        }
        Ok(freed)
    }

    /// Bytes of complete and of unfinished blobs.
    fn sizes(&self) -> Result<(u64, u64)> {
        let (mut done, mut unfinished) = (0, 0);
        walk(&self.dir.join("blobs"), "", &mut |name, path| {
            let size = fs::metadata(path).map_or(0, |m| m.len());
            *if name.ends_with(".incomplete") { &mut unfinished } else { &mut done } += size;
        })?;
        Ok((done, unfinished))
    }

    /// Names that resolve to something complete.
    fn models(&self) -> Result<Vec<String>> {
        let mut revisions = vec![];
        walk(&self.dir.join("refs"), "", &mut |revision, _| revisions.push(revision))?;
        revisions.sort();
        let mut names = vec![];
        for revision in revisions {
            let name = ModelName { repo: self.name.clone(), revision, selector: Selector::Default };
            let Some(commit) = self.commit(&name.revision)? else { continue };
            let files = self.files(&commit)?;
            let directory = select(&name, &files).is_ok_and(|s| matches!(s, Selection::Directory(_)));
            if directory && self.resolve(&name)?.is_some() {
                names.push(name.to_string());
            }
            for model in gguf_models(&files).into_values().filter(|m| m.is_whole()) {
                let selector = Selector::File(model.files[0].clone());
                names.push(ModelName { selector, ..name.clone() }.to_string());
            }
        }
        Ok(names)
    }
}

/// See [`crate::Hub::list`].
pub(crate) fn list(cache: &Path) -> Result<Vec<Cached>> {
    let mut found = vec![];
    let entries = match fs::read_dir(cache) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
        entries => entries.on("read", cache)?,
    };
    for entry in entries {
        let entry = entry.on("read", cache)?;
        let folder = entry.file_name().to_string_lossy().into_owned();
        let Some((org, name)) = folder.strip_prefix("models--").and_then(|f| f.split_once("--")) else { continue };
        // Folders of other programs may hold names that we would not take.
        let Ok(name) = ModelName::parse(&format!("{org}/{name}")) else { continue };
        let repo = Repo::new(cache, &name.repo);
        let (bytes, unfinished_bytes) = repo.sizes()?;
        found.push(Cached { models: repo.models()?, repo: repo.name, bytes, unfinished_bytes, path: repo.dir });
    }
    found.sort_by(|a, b| a.repo.cmp(&b.repo));
    Ok(found)
}

/// Whether every shard is here that the index, or the numbering, speaks of.
fn is_complete(snapshot: &Path, files: &[String]) -> bool {
    let here = |file: &str| files.iter().any(|f| f == file);
    if here("model.safetensors.index.json") {
        let index = fs::read(snapshot.join("model.safetensors.index.json")).unwrap_or_default();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap_or_default();
        let map = index["weight_map"].as_object();
        return map.is_some_and(|m| !m.is_empty() && m.values().all(|v| v.as_str().is_some_and(here)));
    }
    // Without an index, `-00001-of-00002` says how many there should be.
    files.iter().filter_map(|f| f.strip_suffix(".safetensors")?.rsplit_once("-of-")).all(|(first, total)| {
        let prefix = first.trim_end_matches(|c: char| c.is_ascii_digit());
        let suffix = format!("-of-{total}.safetensors");
        let count = files.iter().filter(|f| f.starts_with(prefix) && f.ends_with(&suffix)).count();
        total.parse() == Ok(count)
    })
}

/// Calls `each` with the relative and the full path of every file and link below `dir`, if it exists.
/// Hidden names are our own temporary ones.
fn walk(dir: &Path, prefix: &str, each: &mut dyn FnMut(String, &Path)) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.on("read", dir)?,
    };
    for entry in entries {
        let entry = entry.on("read", dir)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let relative = format!("{prefix}{name}");
        if entry.file_type().on("read", &entry.path())?.is_dir() {
            walk(&entry.path(), &format!("{relative}/"), each)?;
        } else {
            each(relative, &entry.path());
        }
    }
    Ok(())
}

fn blob_name(target: PathBuf) -> Option<String> {
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// A name beside `path` that no other process and no other thread uses.
fn fresh(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    path.with_file_name(format!(".{}.{}", std::process::id(), COUNT.fetch_add(1, Relaxed)))
}

fn create_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).on("create", dir)
}

#[cfg(unix)]
use std::os::unix::fs::symlink;
#[cfg(windows)]
use std::os::windows::fs::symlink_file as symlink;
