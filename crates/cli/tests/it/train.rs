//! `fathom train`: from a recipe to a model that answers, killed on the way as often as one likes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::fathom::{fathom, fathom_in};

const RECIPE: &str = r#"
name = "tiny"
save_every = 0
products = "f32"
[model]
dim = 32
layers = 2
dense_layers = 1
heads = 2
kv_rank = 16
nope = 8
rope = 8
v_dim = 8
hidden = 48
experts = 4
top_k = 2
expert_hidden = 32
shared_experts = 1
mtp = true
context = 512
[tokenizer]
words = 50
[sft]
tokens = 12000
batch = 300
lr = 3e-3
warmup = 1000
[grpo]
steps = 4
problems = 2
group = 3
lr = 1e-4
max_tokens = 8
weights = { add = 1.0 }
[eval]
problems = 1
max_tokens = 8
few = 1
"#;

/// Every step's loss, without what time adds.
fn losses(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let one = |line: &str| {
        let v: serde_json::Value = serde_json::from_str(line).unwrap();
        format!("{} {} {} {}", v["stage"], v["step"], v["loss"], v["norm"])
    };
    text.lines().map(one).collect()
}

#[test]
fn a_killed_run_goes_on_to_the_same_model() {
    let home = tempfile::tempdir().unwrap();
    let recipe = home.path().join("tiny.toml");
    std::fs::write(&recipe, RECIPE).unwrap();
    let (whole, cut) = (home.path().join("whole"), home.path().join("cut"));
    let args = |out: &Path| {
        ["train", recipe.to_str().unwrap(), "--threads", "1", "--out", out.to_str().unwrap()].map(str::to_owned)
    };
    let ran = fathom_in(home.path(), &args(&whole).each_ref().map(String::as_str), b"");
    ran.ok();
    assert!(ran.err.contains("stage sft") && ran.err.contains("mean"), "{ran:#?}");

    for wait in [300, 700, 450, 900, 250] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_fathom"))
            .args(args(&cut))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        // Not a request: the process is gone at once.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    fathom_in(home.path(), &args(&cut).each_ref().map(String::as_str), b"").ok();
    assert_eq!(losses(&whole), losses(&cut));
    assert!(losses(&whole).len() > 30);

    // What was learned can be used and shown, however little it is.
    let file = home.path().join("tiny.gguf");
    let export =
        ["train", recipe.to_str().unwrap(), "--out", cut.to_str().unwrap(), "--export", file.to_str().unwrap()];
    fathom(&export).ok();
    let shown = fathom(&["show", file.to_str().unwrap(), "--json"]).json();
    assert_eq!(shown["family"], "DeepSeek-V3");
    fathom(&["run", "-m", file.to_str().unwrap(), "--max-tokens", "4", "Was ist 1+1?"]);
}

/// A file may not grow beyond 24 KiB, as if the disk were full: the run says which file and stops, and goes on from its last
/// checkpoint when there is room again.
#[test]
fn a_full_disk_is_said_and_costs_nothing_that_was_saved() {
    let home = tempfile::tempdir().unwrap();
    let recipe = home.path().join("tiny.toml");
    std::fs::write(&recipe, RECIPE).unwrap();
    let (whole, full) = (home.path().join("whole"), home.path().join("full"));
    let train = |out: &Path, more: &[&str]| {
        let args = ["train", recipe.to_str().unwrap(), "--threads", "1", "--out", out.to_str().unwrap()];
        fathom_in(home.path(), &[&args, more].concat(), b"")
    };
    let stages = ["--stage", "tokenizer,sft"];
    train(&whole, &stages).ok();
    train(&full, &["--stage", "tokenizer"]).ok();
    let limited = r#"trap "" XFSZ; ulimit -f 48; exec "$0" "$@""#;
    let ran = Command::new("sh")
        .args([
            "-c",
            limited,
            env!("CARGO_BIN_EXE_fathom"),
            "train",
            recipe.to_str().unwrap(),
            "--threads",
            "1",
            "--out",
        ])
        .arg(&full)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(1), "{said}");
    assert!(said.contains(".safetensors") && said.contains("File too large") && !said.contains("panicked"), "{said}");
    train(&full, &stages).ok();
    assert_eq!(losses(&whole), losses(&full));
}

#[test]
fn bad_recipes_and_folders_are_explained() {
    let home = tempfile::tempdir().unwrap();
    let recipe = home.path().join("r.toml");
    let path = recipe.to_str().unwrap();
    std::fs::write(&recipe, RECIPE.replace("top_k = 2", "top_k = 9")).unwrap();
    fathom(&["train", path]).fails(1, &["r.toml", "model.top_k is 9", "1 to 4"]);
    fathom(&["train", "nothing.toml"]).fails(1, &["nothing.toml"]);
    fathom(&["train"]).fails(2, &["RECIPE"]);
    fathom(&["train", path, "--format", "f32"]).fails(2, &["--export"]);
    fathom(&["train", path, "--stage", "dance"]).fails(2, &["tokenizer", "grpo"]);
}
