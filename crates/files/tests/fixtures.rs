//! Every golden model and vocabulary opens and every tensor of it can be used: those of `testdata/` always, those of
//! `../shared` when they are there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fathom_files::{Archive, Kind, Sidecar};

/// Directories and files below the roots that `wanted` picks.
fn find(wanted: fn(&Path) -> bool) -> Vec<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut open = vec![workspace.join("testdata")];
    let shared = workspace.join("../shared");
    if shared.is_dir() {
        open.push(shared)
    } else {
        println!("skipped: no ../shared")
    }
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        if wanted(&path) {
            found.push(path.clone());
        }
        if path.is_dir() {
            open.extend(std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    found
}

/// Uses every tensor; returns the formats met.
fn use_all(archive: &Archive) -> BTreeSet<&'static str> {
    let mut formats = BTreeSet::new();
    for name in archive.names() {
        match archive.tensor(name) {
            Ok(t) => {
                let t = t.expect("a name that the archive gave");
                let f = t.format.get();
                let elems = t.shape.iter().product::<usize>();
                assert_eq!(t.bytes.len(), elems / f.block_elems() * f.block_bytes(), "{name}");
                formats.insert(t.format.name());
            }
            // Hash routing tables, token ids: read by nobody yet, and named.
            Err(fault) => assert!(["I64", "I32"].contains(&&*fault.found), "{fault}"),
        }
    }
    formats
}

#[test]
fn every_gguf_file_opens() {
    let files = find(|p| p.extension().is_some_and(|e| e == "gguf"));
    let mut formats = BTreeSet::new();
    for path in &files {
        let archive = Archive::open(path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(archive.kind(), Kind::Gguf);
        let arch: &str = archive.metadata().unwrap().need("general.architecture").unwrap();
        assert!(!arch.is_empty());
        assert!(archive.total_bytes() <= std::fs::metadata(path).unwrap().len());
        formats.extend(use_all(&archive));
    }
    let expected =
        "BF16 F16 F32 IQ4_XS Q2_K Q3_K Q4_0 Q4_1 Q4_K Q5_0 Q5_1 Q5_K Q6_K Q8_0".split(' ').collect::<BTreeSet<_>>();
    assert!(formats.is_superset(&expected), "{} files hold only {formats:?}", files.len());
}

#[test]
fn every_hugging_face_directory_opens() {
    let mut formats = BTreeSet::new();
    for dir in find(|p| p.join("config.json").exists()) {
        if dir.parent().is_some_and(|p| p.ends_with("kquant")) {
            continue; // GGUF files with a config.json beside them for reference.
        }
        if dir.join("pytorch_model.bin").exists() {
            let error = Archive::open(&dir).err().unwrap().to_string();
            assert!(error.contains("pickle"), "{error}");
            continue;
        }
        let archive = Archive::open(&dir).unwrap_or_else(|e| panic!("{e}"));
        assert!(archive.config().unwrap().get("model_type").is_some());
        if archive.kind() == Kind::HuggingFace {
            assert!(archive.sidecar(Sidecar::Tokenizer).unwrap().is_some(), "{}", dir.display());
            formats.extend(use_all(&archive));
        }
    }
    for expected in ["BF16", "F16", "F32", "F8_E4M3"] {
        assert!(formats.contains(expected), "only {formats:?}");
    }
}
