//! Where conversations are kept: `$XDG_DATA_HOME/fathom` (XDG Base Directory Specification), one file each.

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use fathom_engine::Session;

/// The directory.
pub(super) struct Store {
    dir: PathBuf,
}

impl Store {
    /// Finds the directory; nothing is made yet.
    pub(super) fn open() -> Result<Self> {
        // The specification says that a relative path is to be ignored.
        let given = env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
        let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
        match given.or_else(home) {
            Some(data) => Ok(Store { dir: data.join("fathom") }),
            None => bail!("neither XDG_DATA_HOME nor HOME is set, so there is no place for conversations"),
        }
    }

    /// The file of the editor's history, in a directory that exists.
    pub(super) fn history(&self) -> Result<PathBuf> {
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        Ok(self.dir.join("history.txt"))
    }

    fn conversations(&self) -> PathBuf {
        self.dir.join("conversations")
    }

    /// The file of a conversation. A name is part of a path, so it is letters, digits, `-`, `_` and dots inside.
    fn path(&self, name: &str) -> Result<PathBuf> {
        let plain = name.chars().all(|c| c.is_alphanumeric() || "._-".contains(c));
        ensure!(
            plain && !name.is_empty() && name.len() <= 100 && !name.starts_with('.'),
            "`{name}` is no name for a conversation: take letters, digits, - and _"
        );
        Ok(self.conversations().join(format!("{name}.json")))
    }

    /// Keeps a conversation.
    pub(super) fn save(&self, name: &str, session: &Session) -> Result<PathBuf> {
        let path = self.path(name)?;
        let dir = self.conversations();
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        session.save(&path)?;
        Ok(path)
    }

    /// Reads one back.
    pub(super) fn load(&self, name: &str) -> Result<Session> {
        let path = self.path(name)?;
        if !path.exists() {
            let names = self.names()?;
            let there = if names.is_empty() {
                "nothing was saved yet".into()
            } else {
                format!("there is: {}", names.join(", "))
            };
            bail!("no conversation is called {name}; {there}");
        }
        Ok(Session::load(&path)?)
    }

    /// Names of all kept conversations, sorted.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let dir = self.conversations();
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            names.extend(name.strip_suffix(".json").filter(|n| !n.starts_with('.')).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store { dir: dir.path().join("fathom") };
        assert!(store.names().unwrap().is_empty());
        assert!(store.load("a").unwrap_err().to_string().contains("nothing was saved"));
        store.save("a-1", &Session { model: "m".into(), messages: Vec::new() }).unwrap();
        assert_eq!(store.names().unwrap(), ["a-1"]);
        assert_eq!(store.load("a-1").unwrap().model, "m");
        assert!(store.load("b").unwrap_err().to_string().contains("there is: a-1"));
    }

    #[test]
    fn names_stay_in_the_directory() {
        let store = Store { dir: PathBuf::from("/nowhere") };
        for name in ["", "..", "../x", "a/b", "a b", ".hidden", &"x".repeat(101)] {
            assert!(store.path(name).is_err(), "{name}");
        }
    }
}
