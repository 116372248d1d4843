//! `logits`: against the recordings, as JSON and as NumPy's file.

use serde_json::Value;

use super::fathom::{fathom, fathom_in, testdata};

/// The prompt `mid` of a fixture: its ids, and the best token at every position.
fn recorded(model: &str) -> (String, Vec<usize>) {
    let text = std::fs::read_to_string(testdata(&format!("{model}/golden.json"))).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let mid = &json["prompts"]["mid"];
    let list =
        |key: &str| mid[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect::<Vec<_>>();
    let ids: Vec<String> = list("input_ids").iter().map(ToString::to_string).collect();
    (ids.join(","), list("argmax_each"))
}

fn rows(json: &Value, key: &str) -> Vec<Vec<f32>> {
    serde_json::from_value(json[key].clone()).unwrap()
}

#[test]
fn the_best_tokens_are_those_recorded() {
    for model in ["models/qwen2", "models/deepseek_v2_lite", "models/deepseek_v3_fp8_mtp"] {
        let (ids, best) = recorded(model);
        for backend in ["reference", "cpu"] {
            let json = fathom(&["logits", &testdata(model), "--tokens", &ids, "--backend", backend]).json();
            let rows = rows(&json, "logits");
            assert_eq!(json["shape"], serde_json::json!([rows.len(), rows[0].len()]));
            let found = rows.iter().map(|row| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap());
            assert_eq!(found.collect::<Vec<_>>(), best, "{model} on {backend}");
        }
    }
}

#[test]
fn json_and_numpy_say_the_same_to_the_last_bit() {
    let model = testdata("models/qwen2");
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("out.npy");
    let args = ["logits", "-m", &model, "--tokens", "-"];
    let json = fathom_in(home.path(), &args, b"[1, 2, 3]\n").json();
    let npy = fathom_in(home.path(), &[&args[..], &["--out", path.to_str().unwrap()]].concat(), b"1 2 3");
    assert_eq!(npy.ok(), "");
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let header = String::from_utf8(bytes[10..128].to_vec()).unwrap();
    assert!(header.contains("'descr': '<f4'") && header.contains("'shape': (3, 528)"), "{header}");
    let numbers: Vec<f32> = bytes[128..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(rows(&json, "logits").concat(), numbers);
}

#[test]
fn intermediates_are_to_be_had() {
    let model = testdata("models/qwen2");
    let probe = |name: &str| fathom(&["logits", &model, "--tokens", "1,2", "--probe", name]);
    let embed = rows(&probe("embed").json(), "values");
    assert_eq!((embed.len(), embed[0].len()), (2, 64));
    let out: Vec<f32> = rows(&probe("blk.0.out").json(), "values").concat();
    // The residual stream is what went in and what attention and feed-forward network added.
    let parts = ["embed", "blk.0.attn_out", "blk.0.ffn_out"].map(|name| rows(&probe(name).json(), "values").concat());
    for (i, x) in out.iter().enumerate() {
        let sum: f32 = parts.iter().map(|p| p[i]).sum();
        assert!((x - sum).abs() <= 1e-5 * x.abs().max(1.0), "{i}: {x} {sum}");
    }
    probe("blk.3.out").fails(1, &["layers 0 to 2"]);
    probe("blk.0.nose").fails(1, &["no such intermediate", "attn_out"]);
}

#[test]
fn bad_tokens_are_named() {
    let model = testdata("models/qwen2");
    let said = |ids: &str, words: &[&str]| fathom(&["logits", &model, "--tokens", ids]).fails(1, words);
    said("1,528", &["528", "vocabulary of 528"]);
    said("1,x", &["`x` is no token id"]);
    said("-1", &["`-1`"]);
    said("", &["no token ids"]);
    said(&vec!["1"; 513].join(","), &["513", "made for 512"]);
    fathom(&["logits", &model]).fails(2, &["--tokens"]);
    fathom(&["logits", &model, "-m", &model, "--tokens", "1"]).fails(1, &["named twice"]);
    fathom(&["logits", &model, "--tokens", "1", "--out", "/nowhere/x.npy"]).fails(1, &["/nowhere/x.npy"]);
}
