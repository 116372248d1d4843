//! Which files make a model: the same rule for the hub's listing and for what lies in the cache.
//!
//! A Hugging Face model is its top-level safetensors with config, tokenizer, template and
//! generation defaults; a GGUF model is one file or all its `-00001-of-00009` parts. Pickle never.

use crate::error::{Error, Result};
use crate::name::{ModelName, Selector, is_pickle};
use std::collections::BTreeMap;

/// The type taken from a repository of many GGUF files when none is named.
const DEFAULT_TYPE: &str = "Q4_K_M";

/// The files of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selection {
    /// A directory in Hugging Face's form, all files at its top.
    Directory(Vec<String>),
    /// A GGUF file, its parts in order.
    Gguf(Vec<String>),
    /// Files that were named themselves.
    Files(Vec<String>),
}

impl Selection {
    pub(crate) fn files(&self) -> &[String] {
        match self {
            Selection::Directory(files) | Selection::Gguf(files) | Selection::Files(files) => files,
        }
    }
}

/// Picks the model's files out of `listing` (paths in the repository).
pub(crate) fn select(name: &ModelName, listing: &[String]) -> Result<Selection> {
    let ggufs = gguf_models(listing);
    match &name.selector {
        Selector::Default => {
            let files: Vec<String> = listing.iter().filter(|f| belongs_to_directory(f)).cloned().collect();
            if files.iter().any(|f| f.ends_with(".safetensors")) {
                return require_config(name, files);
            }
            match ggufs.len() {
                0 => Err(not_found(name, "safetensors or GGUF file".into(), listing)),
                1 => whole(name, ggufs.into_values().next().expect("there is one")),
                _ => by_type(name, DEFAULT_TYPE, &ggufs),
            }
        }
        Selector::Type(wanted) => by_type(name, wanted, &ggufs),
        Selector::File(pattern) => {
            let model = ggufs.values().find(|m| m.files.iter().any(|f| f == pattern));
            if let Some(model) = model {
                return whole(name, model.clone());
            }
            let hits: Vec<String> = listing.iter().filter(|f| matches(pattern, f) && !is_pickle(f)).cloned().collect();
            match ggufs.values().find(|m| m.files == hits) {
                Some(model) => whole(name, model.clone()),
                None if hits.is_empty() => Err(not_found(name, format!("file {pattern}"), listing)),
                None => Ok(Selection::Files(hits)),
            }
        }
    }
}

/// Every complete or incomplete GGUF model of a listing: by path without part number and ending.
pub(crate) fn gguf_models(listing: &[String]) -> BTreeMap<String, GgufModel> {
    let mut models: BTreeMap<String, GgufModel> = BTreeMap::new();
    for file in listing {
        let Some(stem) = file.strip_suffix(".gguf") else { continue };
        let base = stem.rsplit('/').next().unwrap_or(stem).to_ascii_lowercase();
        // Companions in the same form that are no language models.
        if base.starts_with("mmproj") || base.contains("imatrix") {
            continue;
        }
        let (stem, parts) = split_parts(stem);
        let model = models.entry(stem.to_owned()).or_insert(GgufModel { parts, files: vec![] });
        model.files.push(file.clone());
    }
    models.values_mut().for_each(|m| m.files.sort());
    models
}

/// A GGUF model in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GgufModel {
    /// How many files it says that it has.
    parts: usize,
    /// Those that are there, in order.
    pub(crate) files: Vec<String>,
}

impl GgufModel {
    pub(crate) fn is_whole(&self) -> bool {
        self.files.len() == self.parts
    }
}

/// `x-00002-of-00009` is part of a model `x` of nine files; anything else is whole.
fn split_parts(stem: &str) -> (&str, usize) {
    let find = || {
        let (rest, total) = stem.rsplit_once("-of-")?;
        let (name, part) = rest.rsplit_once('-')?;
        let number = |text: &str| (text.len() == 5).then(|| text.parse::<usize>().ok()).flatten();
        (number(part)? >= 1).then_some((name, number(total)?))
    };
    find().unwrap_or((stem, 1))
}

fn by_type(name: &ModelName, wanted: &str, ggufs: &BTreeMap<String, GgufModel>) -> Result<Selection> {
    let hits: Vec<(&String, &GgufModel)> = ggufs.iter().filter(|(stem, _)| has_type(stem, wanted)).collect();
    let names = |models: &mut dyn Iterator<Item = &GgufModel>| -> Vec<String> {
        models.map(|m| format!("{}:{}", name.repo, m.files[0])).collect()
    };
    match hits.as_slice() {
        [] => Err(Error::NotFound {
            what: format!("a GGUF file of type {wanted}"),
            place: name.repo.clone(),
            available: names(&mut ggufs.values()),
        }),
        [(_, model)] => whole(name, (*model).clone()),
        many => Err(Error::Ambiguous { name: name.to_string(), choices: names(&mut many.iter().map(|m| m.1)) }),
    }
}

/// Whether the path without ending names this type as a word of its own: `Q4_K` is not in `Q4_K_M`.
fn has_type(stem: &str, wanted: &str) -> bool {
    let (stem, wanted) = (stem.to_ascii_lowercase(), wanted.to_ascii_lowercase());
    stem.match_indices(&wanted).any(|(at, _)| {
        let before = stem[..at].chars().next_back();
        let after = stem[at + wanted.len()..].chars().next();
        before.is_none_or(|c| "-./".contains(c)) && after.is_none_or(|c| "-./".contains(c))
    })
}

fn whole(name: &ModelName, model: GgufModel) -> Result<Selection> {
    if !model.is_whole() {
        let what = format!("all {} parts of {}", model.parts, model.files[0]);
        return Err(Error::NotFound { what, place: name.repo.clone(), available: model.files });
    }
    Ok(Selection::Gguf(model.files))
}

fn require_config(name: &ModelName, files: Vec<String>) -> Result<Selection> {
    if !files.iter().any(|f| f == "config.json") {
        return Err(not_found(name, "config.json".into(), &files));
    }
    Ok(Selection::Directory(files))
}

/// The files of a Hugging Face model that a loader reads.
fn belongs_to_directory(file: &str) -> bool {
    const ALSO: &[&str] = &[
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "preprocessor_config.json",
        "processor_config.json",
        "special_tokens_map.json",
    ];
    let starts = ["tokenizer", "chat_template"].iter().any(|s| file.starts_with(s));
    let top = !file.contains('/');
    top && !is_pickle(file) && (file.ends_with(".safetensors") || ALSO.contains(&file) || starts)
}

/// Glob with `*` only, case as it is.
fn matches(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn not_found(name: &ModelName, what: String, listing: &[String]) -> Error {
    const SHOWN: usize = 20;
    let mut available: Vec<String> = listing.iter().take(SHOWN).cloned().collect();
    if listing.len() > SHOWN {
        available.push(format!("and {} more", listing.len() - SHOWN));
    }
    Error::NotFound { what, place: name.repo.clone(), available }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(name: &str, listing: &[&str]) -> Result<Selection> {
        let listing: Vec<String> = listing.iter().map(|f| f.to_string()).collect();
        select(&ModelName::parse(name).unwrap(), &listing)
    }

    fn gguf(files: &[&str]) -> Selection {
        Selection::Gguf(files.iter().map(|f| f.to_string()).collect())
    }

    const DISTIL: &[&str] = &[
        ".gitattributes",
        "LICENSE",
        "README.md",
        "config.json",
        "figures/benchmark.jpg",
        "generation_config.json",
        "model-00001-of-000002.safetensors",
        "model-00002-of-000002.safetensors",
        "model.safetensors.index.json",
        "original/x.safetensors",
        "pytorch_model.bin",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.pkl",
    ];

    #[test]
    fn a_directory_model_takes_what_a_loader_reads() {
        let Selection::Directory(files) = pick("a/b", DISTIL).unwrap() else { panic!("not a directory") };
        assert_eq!(
            files,
            [
                "config.json",
                "generation_config.json",
                "model-00001-of-000002.safetensors",
                "model-00002-of-000002.safetensors",
                "model.safetensors.index.json",
                "tokenizer.json",
                "tokenizer_config.json",
            ]
        );
        assert!(
            matches!(pick("a/b", &["model.safetensors"]), Err(Error::NotFound { what, .. }) if what == "config.json")
        );
        assert!(matches!(pick("a/b", &["config.json", "pytorch_model.bin"]), Err(Error::NotFound { .. })));
    }

    const GGUFS: &[&str] = &[
        "M-IQ4_XS.gguf",
        "M-Q4_K_M.gguf",
        "M-Q4_K_S.gguf",
        "Q8_0/M-Q8_0-00001-of-00002.gguf",
        "Q8_0/M-Q8_0-00002-of-00002.gguf",
        "M-f16-00001-of-00003.gguf",
        "M.imatrix.gguf",
        "mmproj-f16.gguf",
    ];

    #[test]
    fn a_type_takes_all_parts_of_one_model() {
        assert_eq!(pick("a/b", GGUFS).unwrap(), gguf(&["M-Q4_K_M.gguf"]));
        assert_eq!(pick("a/b:q4_k_s", GGUFS).unwrap(), gguf(&["M-Q4_K_S.gguf"]));
        let q8 = gguf(&["Q8_0/M-Q8_0-00001-of-00002.gguf", "Q8_0/M-Q8_0-00002-of-00002.gguf"]);
        assert_eq!(pick("a/b:Q8_0", GGUFS).unwrap(), q8);
        assert_eq!(pick("a/b:Q8_0/M-Q8_0-00002-of-00002.gguf", GGUFS).unwrap(), q8);
        assert_eq!(pick("a/b:Q8_0/*", GGUFS).unwrap(), q8);
        assert_eq!(pick("a/b", &["x.gguf", "README.md"]).unwrap(), gguf(&["x.gguf"]));
    }

    #[test]
    fn what_is_not_one_whole_model_is_an_error() {
        for name in ["a/b:Q4_K", "a/b:XS", "a/b:nothing.gguf", "a/b:f16"] {
            assert!(matches!(pick(name, GGUFS), Err(Error::NotFound { .. })), "{name}");
        }
        let twins = pick("a/b:Q4_K_M", &["UD/M-Q4_K_M.gguf", "M-Q4_K_M.gguf"]);
        assert!(matches!(twins, Err(Error::Ambiguous { choices, .. }) if choices.len() == 2));
        assert!(
            matches!(pick("a/b", &["x-Q8_0.gguf", "x-Q6_K.gguf"]), Err(Error::NotFound { available, .. }) if available.len() == 2)
        );
    }

    #[test]
    fn patterns_match_and_leave_pickle_alone() {
        for (pattern, text, hit) in [
            ("*.gguf", "a/b.gguf", true),
            ("a*c*e", "abcde", true),
            ("a*c", "abcd", false),
            ("ab*ba", "aba", false),
            ("x", "x", true),
        ] {
            assert_eq!(matches(pattern, text), hit, "{pattern} {text}");
        }
        let files = pick("a/b:*model*", &["pytorch_model.bin", "model.safetensors", "config.json"]).unwrap();
        assert_eq!(files, Selection::Files(vec!["model.safetensors".into()]));
    }
}
