//! `verify`: the table of errors, and its verdict.

use std::fs;

use super::fathom::{fathom, testdata};

#[test]
fn recordings_are_met_on_every_backend() {
    for backend in [&["--backend", "reference"][..], &[], &["--isa", "portable", "--threads", "1"]] {
        let ran = fathom(&[&["verify", &testdata("models/qwen2")], backend].concat());
        assert!(ran.ok().contains("0 beyond"), "{ran:#?}");
        assert!(ran.out.contains("Qwen2") && ran.out.contains("Q5_0"), "{ran:#?}");
    }
    let json = fathom(&["verify", "--json", &testdata("models/deepseek_v2_lite")]).json();
    let whole = &json["goldens"][0];
    assert_eq!(whole["architecture"], "DeepSeek-V2");
    assert_eq!(whole["experts"]["recorded"], whole["experts"]["equal"]);
    assert!(whole["logits_max_abs"].as_f64().unwrap() <= 2e-4);
    assert_eq!(whole["faults"], serde_json::json!([]));
    fathom(&["verify", "--precision", "fast", &testdata("models/qwen3")]).ok();
}

/// Both readings of R1-0528-Qwen3-8B's open question are recorded; asked for one, the others are left out and said so.
#[test]
fn the_reading_of_attn_factor_may_be_chosen() {
    let qwen3 = testdata("models/qwen3");
    let left_out = |more: &[&str]| {
        let json = fathom(&[&["verify", "--json", &qwen3], more].concat()).json();
        json["goldens"].as_array().unwrap().iter().filter(|g| g["left_out"].is_string()).count()
    };
    assert_eq!(left_out(&[]), 0);
    assert_eq!(left_out(&["--rope-attn-factor", "honour"]), 2);
    assert_eq!(left_out(&["--rope-attn-factor", "ignore"]), 1);
}

#[test]
fn a_model_that_computes_something_else_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let model = testdata("models/qwen2");
    for entry in fs::read_dir(&model).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let config = dir.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    let other = text.replace("\"rope_theta\": 10000", "\"rope_theta\": 10010");
    assert_ne!(text, other);
    fs::write(&config, other).unwrap();
    let ran = fathom(&["verify", dir.path().to_str().unwrap()]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.out.contains("BEYOND: logits") && ran.out.contains("1 beyond"), "{ran:#?}");
}

#[test]
fn nothing_to_verify_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fathom(&["verify", dir.path().to_str().unwrap()]).fails(1, &["no golden.safetensors"]);
    fathom(&["verify", "/nowhere"]).fails(1, &["/nowhere"]);
    let qwen3 = testdata("models/qwen3");
    fathom(&["verify", &qwen3, "--context", "9"]).fails(1, &["tokens needed here"]);
    fathom(&["verify", &qwen3, "--memory", "1K"]).fails(1, &["1.00 KiB may be used"]);
    fathom(&["verify"]).fails(1, &["name a directory"]);
}
