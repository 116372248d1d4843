//! `pull`, `list`, `rm`, and what is said where there is no model.

use super::fathom::{fathom, fathom_in};

#[test]
fn help_teaches() {
    let help = fathom(&["--help"]);
    for words in ["fathom pull r1-1.5b", "fathom -m r1-1.5b", "Exit status", "show", "tokenize"] {
        assert!(help.ok().contains(words), "{words}");
    }
    for command in ["show", "tokenize", "pull", "list", "rm", "completions"] {
        let help = fathom(&[command, "--help"]);
        assert!(help.ok().contains("Usage: fathom"), "{command}");
    }
    assert!(fathom(&["--version"]).ok().starts_with("fathom 0."));
    assert!(!help.ok().contains("  man"), "the manual's maker is hidden");
}

#[test]
fn a_wrong_command_line_is_status_2() {
    fathom(&["frobnicate"]).fails(2, &["frobnicate"]);
    fathom(&["show", "--kv-type", "f8", "x"]).fails(2, &["f8", "f16, f32, q8_0"]);
    fathom(&["show", "--context", "0", "x"]).fails(2, &["--context"]);
}

#[test]
fn without_a_model_the_miniature_is_meant() {
    let home = tempfile::tempdir().unwrap();
    let shown = fathom_in(home.path(), &["show"], b"");
    assert!(shown.ok().starts_with("model       DeepSeek-V3 (mini-r1, GGUF)\n"), "{shown:#?}");
}

#[test]
fn a_model_that_is_not_there() {
    fathom(&["show", "./nowhere"]).fails(1, &["./nowhere: there is no such file or directory"]);
    fathom(&["show", "nowhere.gguf"]).fails(1, &["nowhere.gguf: there is no such file or directory"]);
    fathom(&["show", "a/b"]).fails(1, &["was not fetched yet", "fathom pull a/b"]);
    fathom(&["show", "a b"]).fails(1, &["a b: there is no such file", "ORG/REPO"]);
    fathom(&["show", "r1-7b"]).fails(1, &["fathom pull r1-7b"]);
}

#[test]
fn an_empty_cache() {
    let list = fathom(&["list"]);
    assert_eq!(list.ok(), "");
    assert!(list.err.contains("fathom pull r1-1.5b"), "{list:#?}");
    assert_eq!(fathom(&["list", "--json"]).json(), serde_json::json!([]));
    fathom(&["rm", "a/b"]).fails(1, &["a/b is not in"]);
}

#[test]
fn a_cached_model_is_listed_found_and_deleted() {
    let home = tempfile::tempdir().unwrap();
    let repo = home.path().join("hf/hub/models--a--b");
    let snapshot = repo.join("snapshots/0123456789012345678901234567890123456789");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), "0123456789012345678901234567890123456789").unwrap();
    std::fs::create_dir_all(repo.join("blobs")).unwrap();
    std::fs::write(repo.join("blobs/0123"), b"not a model").unwrap();
    std::os::unix::fs::symlink("../../blobs/0123", snapshot.join("m.gguf")).unwrap();
    let list = fathom_in(home.path(), &["list", "--json"], b"").json();
    assert_eq!(list[0]["repo"], "a/b", "{list}");
    // It is found by its name, and what is wrong with it is said.
    assert_eq!(list[0]["models"], serde_json::json!(["a/b:m.gguf"]));
    for name in ["a/b", "a/b:m.gguf"] {
        fathom_in(home.path(), &["show", name], b"").fails(1, &["snapshots", "m.gguf"]);
    }
    assert!(fathom_in(home.path(), &["rm", "a/b"], b"").ok().contains("freed"));
    assert_eq!(fathom_in(home.path(), &["list", "--json"], b"").json(), serde_json::json!([]));
}

#[test]
fn a_hub_that_does_not_answer() {
    let home = tempfile::tempdir().unwrap();
    fathom_in(home.path(), &["pull", "a b"], b"").fails(1, &["`a b`", "ORG/REPO"]);
    fathom_in(home.path(), &["pull", "a/b:pytorch_model.bin"], b"").fails(1, &["pickle"]);
}

#[test]
fn completions_and_manual_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = fathom(&["completions", shell]);
        assert!(script.ok().contains("tokenize"), "{shell}");
    }
    assert!(fathom(&["man"]).ok().contains(".TH fathom 1"));
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("man");
    fathom(&["man", dir.to_str().unwrap()]).ok();
    assert!(dir.join("fathom-show.1").exists());
}
