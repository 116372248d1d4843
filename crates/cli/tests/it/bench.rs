//! `bench`: the keys that others read.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::fathom::{fathom, testdata};

#[test]
fn the_keys_are_there_and_make_sense() {
    let model = testdata("models/qwen2");
    let json = fathom(&["bench", &model, "-p", "8", "-n", "4", "-d", "16", "-r", "2", "--json"]).json();
    for rates in ["prefill_tokens_per_s", "decode_tokens_per_s"] {
        let [min, median, max] = ["min", "median", "max"].map(|key| json[rates][key].as_f64().unwrap());
        assert!(0.0 < min && min <= median && median <= max, "{json}");
    }
    for key in ["load_s", "peak_memory_bytes", "read_bandwidth_bytes_per_s", "decode_bandwidth_fraction"] {
        assert!(json[key].as_f64().unwrap() > 0.0, "{key}: {json}");
    }
    // A token reads the matrices of three layers and the head once, and eighteen tokens' cache; the embedding but a row.
    let matrices = 4 * (3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160) + 64 * 528);
    let read = json["decode_bytes_per_token"].as_u64().unwrap();
    assert!((matrices..matrices + 30_000).contains(&read), "{matrices} {read}");
    assert_eq!(json["decode_flops_per_token"].as_u64().unwrap() / 2, {
        let scores_and_values = 3 * 4 * 2 * 16 * 19;
        matrices / 4 + scores_and_values
    });
}

#[test]
fn a_part_may_be_left_out() {
    let model = testdata("models/qwen2");
    let text = fathom(&["bench", &model, "-p", "0", "-n", "2", "-r", "1"]);
    assert!(text.ok().contains("decode") && !text.out.contains("prefill"), "{text:#?}");
    let json = fathom(&["bench", &model, "-p", "2", "-n", "0", "-r", "1", "--json"]).json();
    assert!(json["decode_tokens_per_s"].is_null() && json["decode_bandwidth_fraction"].is_null(), "{json}");
    fathom(&["bench", &model, "-p", "0", "-n", "0"]).fails(1, &["nothing to measure"]);
    fathom(&["bench", &model, "-p", "600"]).fails(1, &["600", "made for 512"]);
}

#[test]
fn pictures_are_measured_part_by_part() {
    let model = testdata("models/janus");
    let json = fathom(&["bench", &model, "--pictures", "-n", "6", "-r", "2", "--json"]).json();
    for key in ["see_s", "encode_s", "decode_s", "prompt_s", "step_s", "step_of_four_s", "step_bandwidth_fraction"] {
        assert!(json[key].as_f64().unwrap() > 0.0, "{key}: {json}");
    }
    let f = |key: &str| json[key].as_f64().unwrap();
    assert_eq!(json["steps"], 36);
    assert!((f("picture_s") - f("prompt_s") - 36.0 * f("step_s") - f("decode_s")).abs() < 1e-9, "{json}");
    let text = fathom(&["bench", &model, "--pictures", "-n", "6", "-r", "1"]);
    assert!(text.ok().contains("36 steps"), "{text:#?}");
    fathom(&["bench", &testdata("models/qwen2"), "--pictures"]).fails(1, &["neither sees nor draws"]);
}

#[test]
fn sweeps_measure_every_depth_with_every_batch() {
    let model = testdata("models/qwen2");
    let args = ["bench", &model, "-p", "8", "-n", "4", "-d", "64,0", "-b", "1,3", "-r", "2", "--threads", "1"];
    let json = fathom(&[&args[..], &["--json"]].concat()).json();
    let list = |what: &str, key: &str| -> Vec<u64> {
        json[what].as_array().unwrap().iter().map(|f| f[key].as_u64().unwrap()).collect()
    };
    assert_eq!(list("prefill", "depth_tokens"), [0, 64]);
    assert_eq!(list("decode", "depth_tokens"), [0, 0, 64, 64]);
    assert_eq!(list("decode", "sequences"), [1, 3, 1, 3]);
    assert!(json["decode_tokens_per_s"].is_null(), "which of four would it be? {json}");
    for figure in json["prefill"].as_array().unwrap().iter().chain(json["decode"].as_array().unwrap()) {
        let f = |path: &str| figure.pointer(path).unwrap().as_f64().unwrap();
        assert!(f("/tokens_per_s/min") > 0.0 && f("/roofline/reached_fraction") > 0.0, "{figure}");
        let each = f("/tokens_per_s/median") / f("/sequences");
        assert!((f("/tokens_per_s_each") - each).abs() < 1e-6, "{figure}");
    }
    // Three sequences read the weights once and three caches; deeper ones read more of these.
    let bytes: Vec<u64> = (0..4).map(|i| json["decode"][i]["roofline"]["bytes"].as_u64().unwrap()).collect();
    let cache = |depth: u64| 3 * 2 * 32 * 2 * (depth + 3 + 1);
    assert_eq!(bytes[1] - bytes[0], 2 * (cache(0) + 64 * 4), "{bytes:?}");
    assert_eq!(bytes[2] - bytes[0], cache(64) - cache(0), "{bytes:?}");
    let text = fathom(&args);
    assert_eq!(text.ok().lines().filter(|l| l.starts_with("decode") && l.ends_with('%')).count(), 4, "{text:#?}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let model = testdata("models/qwen2");
    let bench = |more: &[&str]| fathom(&[&["bench", &model, "-r", "1"], more].concat());
    bench(&["-b", "0"]).fails(1, &["-b 0", "1 to 64"]);
    bench(&["-b", "1,65"]).fails(1, &["-b 1,65", "1 to 64"]);
    bench(&["-n", "0", "-b", "4"]).fails(1, &["-n 0 leaves decoding out"]);
    bench(&["-d", "0,500"]).fails(1, &["1,012", "made for 512"]);
    bench(&["-d", "x"]).fails(2, &["--depth", "invalid digit"]);
    bench(&["-d", "18446744073709551615"]).fails(1, &["made for 512"]);
    bench(&["-p", "8", "-n", "8", "-b", "64", "--memory", "1K"]).fails(1, &["4,096 tokens", "--memory"]);
    bench(&["--against-args", "-rtr 1"]).fails(2, &["--against"]);
    bench(&["--profile", "--against", "/x"]).fails(2, &["cannot be used with"]);
    bench(&["--repack", "on", "--precision", "exact"]).fails(1, &["--repack on has no effect in exact precision"]);
    bench(&["--repack", "off", "--backend", "reference"]).fails(1, &["--repack off has no effect on the reference"]);
}

#[test]
fn a_profile_accounts_for_all_of_the_time() {
    let model = testdata("models/deepseek_v2_lite/gguf/deepseek_v2_lite-q8_0.gguf");
    let args = ["bench", &model, "--profile", "-p", "8", "-n", "4", "-r", "2", "--threads", "1"];
    let json = fathom(&[&args[..], &["--json"]].concat()).json();
    for what in ["prefill", "decode"] {
        let profile = &json[what][0]["profile"];
        let kinds = profile["kinds"].as_array().unwrap();
        let share: f64 = kinds.iter().map(|k| k["share"].as_f64().unwrap()).sum();
        assert!((share - 1.0).abs() < 1e-6, "{profile}");
        for kind in ["products", "head", "attention", "cache", "norms", "rotation", "additions", "routing"] {
            assert!(kinds.iter().any(|k| k["kind"] == kind && k["s"].as_f64().unwrap() > 0.0), "{kind}: {profile}");
        }
    }
    let text = fathom(&args);
    assert!(text.ok().contains("outside matrix products") && text.out.contains("moe, 64 wide"), "{text:#?}");
}

#[test]
fn packing_is_switched_and_told() {
    let model = testdata("models/llama/gguf/llama-q4_0.gguf");
    let bench = |more: &[&str]| fathom(&[&["bench", &model, "-p", "4", "-n", "2", "-r", "1"], more].concat());
    let packed = |more: &[&str]| bench(&[more, &["--json"]].concat()).json()["packed_bytes"].as_u64().unwrap();
    assert!(packed(&[]) > 50_000 && packed(&["--repack", "auto"]) == packed(&["--repack", "on"]));
    assert_eq!(packed(&["--repack", "off"]), 0);
    let off = bench(&["--repack", "off"]);
    assert!(off.ok().contains("nothing packed") && off.err.is_empty(), "{off:#?}");
    // Less memory than the weights have: they stay in the file, and that is said; unless someone insists.
    let tight = bench(&["--memory", "100K"]);
    assert!(tight.ok().contains("nothing packed"), "{tight:#?}");
    for words in ["stay as they lie in the file", "100.00 KiB may be used", "--repack on"] {
        assert!(tight.err.contains(words), "{words}: {tight:#?}");
    }
    let insisted = bench(&["--memory", "100K", "--repack", "on"]);
    assert!(insisted.ok().contains("of weights packed") && insisted.err.is_empty(), "{insisted:#?}");
}

/// A stand-in for `llama-bench`.
struct FakePeer(tempfile::TempDir);

/// What the option lists of llama.cpp 0c1e570 and of ik_llama.cpp look like, shortened.
const HELP: &str = "usage: llama-bench [options]\n  -r, --repetitions <n>\n  -o, --output <csv|json|jsonl|md|sql>\n  -m, --model <filename>\n  \
    -p, --n-prompt <n>\n  -n, --n-gen <n>\n  -pg <pp,tg>\n  -d, --n-depth <n>\n  -t, --threads <n>\n  -fa, --flash-attn <on|off|auto>\n  --repack <0|1>";
const IK_HELP: &str = "usage: llama-bench [options]\n  -m, --model <filename>\n  -p, --n-prompt <n>\n  -n, --n-gen <n>\n  -gp <pp,tg>\n  \
    -t, --threads <n>\n  -fa, --flash-attn <0|1>\n  -r, --repetitions <n>\n  -o, --output <csv|json|md|sql>\n  -rtr, --run-time-repack <0|1>";

/// An answer as llama.cpp 0c1e570 prints it, shortened.
fn answer(prompt: usize, generate: usize, depth: usize, rate: f64) -> String {
    format!(
        r#"  {{
    "build_commit": "0c1e570", "build_number": 1, "cpu_info": "AMD EPYC", "gpu_info": "", "backends": "CPU",
    "model_filename": "a.gguf", "n_batch": 2048, "n_threads": 1, "type_k": "f16", "flash_attn": 1,
    "n_prompt": {prompt}, "n_gen": {generate}, "n_depth": {depth},
    "avg_ns": 2696937094, "stddev_ns": 0, "avg_ts": {rate}, "stddev_ts": 0.000000,
    "samples_ns": [ 2696937094 ], "samples_ts": [ {rate} ]
  }}"#
    )
}

impl FakePeer {
    /// Prints `help` if asked for it, else does `work`.
    fn new(help: &str, work: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("help"), help).unwrap();
        let at = dir.path().display();
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = --help ]; then exec cat '{at}/help'; fi\necho \"$@\" >> '{at}/asked'\ncd '{at}'\n{work}\n"
        );
        let peer = FakePeer(dir);
        fs::write(peer.path(), script).unwrap();
        fs::set_permissions(peer.path(), fs::Permissions::from_mode(0o755)).unwrap();
        peer
    }

    /// Prints these answers.
    fn answering(help: &str, answers: &[String]) -> Self {
        let peer = FakePeer::new(help, "exec cat answer");
        fs::write(peer.0.path().join("answer"), format!("[\n{}\n]\n", answers.join(",\n"))).unwrap();
        peer
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("llama-bench")
    }

    fn asked(&self) -> Vec<String> {
        fs::read_to_string(self.0.path().join("asked")).unwrap().lines().map(str::to_owned).collect()
    }
}

/// Measures a miniature beside a peer.
fn against(peer: &Path, more: &[&str]) -> super::fathom::Ran {
    let model = testdata("models/llama/gguf/llama-q4_0.gguf");
    let args = ["bench", &model, "-n", "4", "--threads", "1", "-r", "2", "--against", peer.to_str().unwrap()];
    let prompt: &[&str] = if more.contains(&"-p") { &[] } else { &["-p", "8"] };
    fathom(&[&args[..], prompt, more].concat())
}

#[test]
fn a_peer_runs_in_turn_and_is_compared() {
    let answers = [answer(8, 0, 0, 2.0), answer(0, 4, 0, 4.0), answer(8, 0, 16, 1.0), answer(0, 4, 16, 0.5)];
    let peer = FakePeer::answering(HELP, &answers);
    let json = against(&peer.path(), &["-d", "0,16", "--against-args", "--repack 0", "--json"]).json();
    let asked = peer.asked();
    assert_eq!(asked.len(), 2, "once per round");
    assert!(asked[0].ends_with("llama-q4_0.gguf -t 1 -fa 1 -r 1 -o json -p 8 -n 4 -d 0,16 --repack 0"), "{asked:?}");
    let compared = &json["against"][0];
    assert_eq!(compared["build"], "0c1e570");
    let figures = compared["figures"].as_array().unwrap();
    let peer_rates: Vec<f64> = figures.iter().map(|f| f["peer_tokens_per_s"]["median"].as_f64().unwrap()).collect();
    assert_eq!(peer_rates, [2.0, 4.0, 1.0, 0.5]);
    for figure in figures {
        let f = |path: &str| figure.pointer(path).unwrap().as_f64().unwrap();
        let ratio = f("/fathom_tokens_per_s/median") / f("/peer_tokens_per_s/median");
        assert!((f("/ratio_of_medians") / ratio - 1.0).abs() < 1e-9, "{figure}");
        assert!((f("/median_of_ratios") / ratio - 1.0).abs() < 1e-9, "two rounds against a constant: {figure}");
    }
    let text = against(&peer.path(), &["-d", "0,16"]);
    assert!(text.ok().contains("llama-bench (build 0c1e570), in turn"), "{text:#?}");
    assert!(text.out.contains("decode 4 tokens behind 16"), "{text:#?}");
}

#[test]
fn a_fork_is_asked_in_its_own_words() {
    let behind = answer(16, 4, 0, 3.0).replace("\"n_depth\": 0,", "\"cuda\": false,");
    let peer = FakePeer::answering(IK_HELP, std::slice::from_ref(&behind));
    let json = against(&peer.path(), &["-d", "16", "-p", "0", "--json"]).json();
    assert!(peer.asked()[0].ends_with("-p 0 -n 0 -gp 16,4"), "{:?}", peer.asked());
    assert_eq!(json["against"][0]["figures"][0]["peer_tokens_per_s"]["median"], 3.0);
    against(&peer.path(), &["-d", "16"]).fails(1, &["it has no -d", "-p 0"]);
    let gpu = FakePeer::answering(IK_HELP, &[behind.replace("false", "true")]);
    against(&gpu.path(), &["-d", "16", "-p", "0"]).fails(1, &["built for cuda"]);
}

#[test]
fn a_peer_that_fails_is_named_with_its_command() {
    against(Path::new("/no/llama-bench"), &[]).fails(1, &["--against /no/llama-bench", "No such file"]);
    let odd = FakePeer::answering("usage: another program\n  -m  model", &[]);
    against(&odd.path(), &[]).fails(1, &["does not tell of -p, -n", "no llama-bench"]);
    let failing = FakePeer::new(HELP, "echo 'error: failed to load model' >&2; exit 3");
    against(&failing.path(), &[]).fails(1, &["llama-q4_0.gguf -t 1", "exit status: 3", "failed to load model"]);
    let garbage = FakePeer::new(HELP, "echo '| model | size |'");
    against(&garbage.path(), &[]).fails(1, &["-o json", "did not print the JSON list"]);
    let partial = FakePeer::answering(HELP, &[answer(8, 0, 0, 2.0)]);
    against(&partial.path(), &[]).fails(1, &["gave no rate for decode of 4 tokens"]);
    let busy = FakePeer::answering(HELP, &[answer(8, 0, 0, 2.0).replace("\"n_threads\": 1", "\"n_threads\": 2")]);
    against(&busy.path(), &[]).fails(1, &["cannot be compared", "threads"]);
    against(&partial.path(), &["-b", "2"]).fails(1, &["leave out -b"]);
    against(&partial.path(), &["--kv-type", "f32"]).fails(1, &["leave out", "--kv-type"]);
    against(&partial.path(), &["--against-args", "-t 2"]).fails(1, &["-t is set by fathom"]);
    let directory =
        ["bench", &testdata("models/qwen2"), "--against", partial.path().to_str().unwrap()].map(str::to_owned);
    fathom(&directory.each_ref().map(String::as_str)).fails(1, &["reads a GGUF file", "fathom convert"]);
}

#[test]
fn a_peer_that_hangs_is_killed() {
    let peer = FakePeer::new(HELP, "exec sleep 600");
    let start = Instant::now();
    against(&peer.path(), &["--against-timeout", "1"]).fails(1, &["after 1 s and was killed", "--against-timeout"]);
    assert!(start.elapsed() < Duration::from_secs(120));
}
