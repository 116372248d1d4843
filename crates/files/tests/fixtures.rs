//! Every golden model and vocabulary opens: the set in `../shared` when it is there.

use std::path::{Path, PathBuf};

use fathom_files::{Archive, Kind, Sidecar};

fn shared() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    root.is_dir().then_some(root)
}

fn find(dir: &Path, extension: &str, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find(&path, extension, out);
        } else if path.extension().is_some_and(|e| e == extension) {
            out.push(path);
        }
    }
}

#[test]
fn every_gguf_fixture_opens() {
    let Some(root) = shared() else { return println!("skipped: no ../shared") };
    let mut files = Vec::new();
    find(&root, "gguf", &mut files);
    assert!(files.len() > 20, "the fixtures hold more than 20 GGUF files, found {}", files.len());
    for path in files {
        let started = std::time::Instant::now();
        let archive = Archive::open(&path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(archive.kind(), Kind::Gguf);
        let m = archive.metadata().unwrap();
        let arch: &str = m.need("general.architecture").unwrap();
        let mut unread = 0;
        for name in archive.names() {
            match archive.tensor(name) {
                Ok(t) => assert!(!t.unwrap().bytes.is_empty()),
                Err(_) => unread += 1,
            }
        }
        let bytes = std::fs::metadata(&path).unwrap().len();
        assert!(archive.total_bytes() <= bytes);
        println!(
            "{} {arch} {} tensors, {unread} unread, {:?}",
            path.display(),
            archive.names().count(),
            started.elapsed()
        );
    }
}

#[test]
fn every_hugging_face_fixture_opens() {
    let Some(root) = shared() else { return println!("skipped: no ../shared") };
    let mut count = 0;
    for entry in std::fs::read_dir(root.join("fixtures")).unwrap() {
        let dir = entry.unwrap().path();
        if !dir.join("config.json").exists() || dir.ends_with("janus_original") {
            continue;
        }
        let archive = Archive::open(&dir).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(archive.kind(), Kind::HuggingFace);
        assert!(archive.config().unwrap().get("model_type").is_some());
        assert!(archive.sidecar(Sidecar::TokenizerConfig).unwrap().is_some() || dir.ends_with("janus"));
        println!("{} {} tensors, {} bytes", dir.display(), archive.names().count(), archive.total_bytes());
        count += 1;
    }
    assert!(count >= 10, "found {count}");
    let error = Archive::open(&root.join("fixtures/janus_original")).err().unwrap().to_string();
    assert!(error.contains("pickle"), "{error}");
}
