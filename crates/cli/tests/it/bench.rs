//! `bench`: the keys that others read.

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
