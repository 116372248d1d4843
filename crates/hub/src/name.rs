//! What a person types for a model, taken apart: `ORG/REPO[@REVISION][:FILE or TYPE]` or a short name.
//!
//! Everything here ends up in a path or an address, so each part is checked against a small
//! alphabet before anything else sees it (Ollama's CVE-2024-37032 was a digest used as a path).

use crate::distils::Distil;
use crate::error::{Error, Result};
use std::fmt;

/// A model's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    /// `ORG/REPO`.
    pub repo: String,
    /// Branch, tag or commit; `main` unless named.
    pub revision: String,
    /// Which of the repository's files.
    pub selector: Selector,
}

/// Which files of a repository make the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The safetensors with what belongs to them; else the GGUF, if there is one or a Q4_K_M.
    Default,
    /// The GGUF file of this type, all its parts: `Q4_K_M`.
    Type(String),
    /// This file, or all that a pattern with `*` matches (`*` stops at no slash).
    File(String),
}

/// File name endings that mean pickle, which runs code when loaded.
const PICKLE: &[&str] = &["bin", "pt", "pth", "ckpt", "pkl", "pickle", "npy", "npz", "msgpack", "h5"];

impl ModelName {
    /// Takes a name apart. `r1-7b` is a distil's GGUF, `r1-7b:Q8_0` another type of it,
    /// `r1-7b:safetensors` the publisher's own files.
    ///
    /// # Errors
    /// [`Error::Invalid`] saying which rule the name breaks.
    pub fn parse(text: &str) -> Result<Self> {
        let (place, selector) = match text.split_once(':') {
            Some((place, selector)) => (place, Some(selector)),
            None => (text, None),
        };
        if let Some(distil) = Distil::find(place) {
            let (repo, selector) = match selector {
                Some("safetensors") => (distil.original, Selector::Default),
                Some(other) => (distil.gguf, parse_selector(text, other)?),
                None => (distil.gguf, Selector::Type(distil.gguf_type.into())),
            };
            return Ok(ModelName { repo: repo.into(), revision: "main".into(), selector });
        }
        let (repo, revision) = place.split_once('@').unwrap_or((place, "main"));
        let Some((org, name)) = repo.split_once('/') else {
            return Err(refused(
                text,
                "a model is ORG/REPO, ORG/REPO:FILE, ORG/REPO:TYPE or a short name such as r1-7b",
            ));
        };
        for part in [org, name] {
            check_repo_part(text, part)?;
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        if !revision.chars().all(plain) || check_path(revision).is_err() {
            return Err(refused(text, "a revision is a branch, tag or commit"));
        }
        let selector = selector.map_or(Ok(Selector::Default), |s| parse_selector(text, s))?;
        Ok(ModelName { repo: repo.into(), revision: revision.into(), selector })
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        match &self.selector {
            Selector::Default => Ok(()),
            Selector::Type(text) | Selector::File(text) => write!(f, ":{text}"),
        }
    }
}

/// A name of the hub's alphabet that cannot climb out of a directory or be mistaken for another repository's.
fn check_repo_part(name: &str, part: &str) -> Result<()> {
    let plain = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if part.is_empty() || part.len() > 96 || !plain {
        return Err(refused(name, "ORG and REPO are 1 to 96 letters, digits, dots, dashes or underscores"));
    }
    // `--` joins ORG and REPO in the cache, so inside a part it would make two names one.
    if part.contains("..") || part.contains("--") || part.starts_with(['.', '-']) || part.ends_with(['.', '-']) {
        return Err(refused(name, "ORG and REPO hold no `..` or `--` and neither start nor end with a dot or dash"));
    }
    Ok(())
}

fn parse_selector(name: &str, text: &str) -> Result<Selector> {
    if text.contains(['.', '/', '*']) {
        check_path(text).map_err(|why| refused(name, why))?;
        if is_pickle(text) {
            return Err(refused(name, "only safetensors and GGUF files are fetched: pickle runs code when loaded"));
        }
        return Ok(Selector::File(text.into()));
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b)) {
        return Err(refused(name, "after the colon comes a file of the repository or a GGUF type such as Q4_K_M"));
    }
    Ok(Selector::Type(text.into()))
}

/// Whether a file may hold pickled or otherwise executable weights.
pub(crate) fn is_pickle(path: &str) -> bool {
    let ending = path.rsplit_once('.').map_or("", |p| p.1);
    PICKLE.iter().any(|p| ending.eq_ignore_ascii_case(p))
}

/// Checks that a relative path stays inside the directory that it is joined to, on any system.
pub(crate) fn check_path(path: &str) -> std::result::Result<(), &'static str> {
    if path.len() > 1024 {
        return Err("a path has at most 1024 bytes");
    }
    if path.chars().any(|c| c.is_control() || "\\:<>|?\"".contains(c)) {
        return Err("a path holds no control character and none of \\ : < > | ? \"");
    }
    if path.split('/').any(|part| part.is_empty() || part == "." || part == ".." || part.len() > 255) {
        return Err("a path is relative, without empty, `.`, `..` or overlong parts");
    }
    Ok(())
}

fn refused(name: &str, why: &'static str) -> Error {
    Error::Invalid { what: "model name", value: name.into(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (String, String, Selector) {
        let name = ModelName::parse(text).unwrap();
        (name.repo, name.revision, name.selector)
    }

    #[test]
    fn names_come_apart() {
        let own = |a: &str, b: &str, s| (a.to_owned(), b.to_owned(), s);
        let file = |f: &str| Selector::File(f.into());
        assert_eq!(parse("deepseek-ai/DeepSeek-R1"), own("deepseek-ai/DeepSeek-R1", "main", Selector::Default));
        assert_eq!(parse("a/b@v1.0:c/d.gguf"), own("a/b", "v1.0", file("c/d.gguf")));
        assert_eq!(parse("a/b:*Q8_0*"), own("a/b", "main", file("*Q8_0*")));
        assert_eq!(parse("a/b:q4_k_m"), own("a/b", "main", Selector::Type("q4_k_m".into())));
    }

    #[test]
    fn short_names_lead_to_the_table() {
        let (repo, _, selector) = parse("r1-1.5b");
        assert_eq!(repo, "bartowski/DeepSeek-R1-Distill-Qwen-1.5B-GGUF");
        assert_eq!(selector, Selector::Type("Q4_K_M".into()));
        assert_eq!(parse("R1-70B:Q8_0").2, Selector::Type("Q8_0".into()));
        assert_eq!(parse("r1-32b:safetensors").0, "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B");
        for distil in crate::DISTILS {
            for repo in [distil.original, distil.gguf] {
                assert_eq!(ModelName::parse(repo).unwrap().repo, repo);
            }
        }
    }

    #[test]
    fn a_name_prints_as_it_is_typed() {
        for text in ["a/b", "a/b@v2", "a/b:Q4_K_M", "a/b@v2:x.gguf"] {
            assert_eq!(ModelName::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn names_that_could_do_harm_are_refused() {
        let bad = [
            "",
            "a",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "a/b..c",
            "a--b/c",
            "a/.git",
            "a/b@",
            "a/b@../x",
            "a/b@x y",
            "a/b:",
            "a/b:../x.gguf",
            "a/b:/etc/passwd",
            "a/b:x//y.gguf",
            "a/b:..\\x.gguf",
            "a/b:x\0.gguf",
            "a/b:c:\\x.gguf",
            "a/b:pytorch_model.bin",
            "a/b:model.PT",
            "ä/b",
            "https://evil.example/a/b",
            "a b/c",
            "r1-7b:../x.gguf",
        ];
        for text in bad {
            assert!(matches!(ModelName::parse(text), Err(Error::Invalid { .. })), "{text:?} was taken");
        }
    }
}
