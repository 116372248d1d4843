//! `show` and `tokenize`.

use super::fathom::{fathom, testdata};

/// The figures that the published description must give.
#[test]
fn the_published_r1_comes_out_as_published() {
    let config = testdata("configs/deepseek-v3-r1.config.json");
    let text = fathom(&["show", &config]);
    for words in [
        "671.03 B",
        "36.6 B touched per token",
        "correction range 10–23",
        "scale 0.1352338",
        "70,272 bytes per token in 16 bit",
        "without weights",
    ] {
        assert!(text.ok().contains(words), "{words}: {text:#?}");
    }
    let json = fathom(&["show", &config, "--json", "--context", "32768", "--kv-type", "f32"]).json();
    assert_eq!(json["parameters"], 671_026_419_200_u64);
    assert_eq!(json["rope"]["correction_range"], serde_json::json!([10.0, 23.0]));
    assert_eq!(json["cache_bytes_per_token"]["f16"], 70_272);
    assert_eq!(json["cache_bytes_per_token"]["q8_0"], 37_332);
    assert!((json["softmax_scale"].as_f64().unwrap() - 0.135_233_8).abs() < 1e-7);
    assert_eq!(json["memory"]["cache_bytes"], 140_544_u64 * 32_768);
    assert_eq!(json["memory"]["weights_bytes"], serde_json::Value::Null);
    assert_eq!(json["layers"].as_array().unwrap().len(), 2, "three dense layers, then all alike");
    assert_eq!(json["layers"][1]["from"], 3);
    assert_eq!(json["layers"][1]["ffn"]["experts"], 256);
    assert!(json["mtp"].is_object() && json["tokenizer"].is_null() && json["tensors"].is_null());
}

#[test]
fn a_broken_description_names_every_fault() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let config = std::fs::read_to_string(testdata("configs/deepseek-v3-r1.config.json")).unwrap();
    std::fs::write(&path, config.replace("7168", "-1").replace("163840", "\"long\"")).unwrap();
    let path = path.to_str().unwrap();
    fathom(&["show", path]).fails(1, &[path, "hidden_size", "max_position_embeddings"]);
    std::fs::write(path, "{").unwrap();
    fathom(&["show", path]).fails(1, &[path, "JSON"]);
    std::fs::write(path, config.replace("DeepseekV3ForCausalLM", "BertModel")).unwrap();
    fathom(&["show", path]).fails(1, &["BertModel", "known are"]);
    fathom(&["tokenize", path, "x"]).fails(1, &["BertModel"]);
}
