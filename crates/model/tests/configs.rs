//! Broken and unsupported `config.json` files: each gives an error that names the file and the key; none panics.

use std::path::Path;

use fathom_model::families::keys::Source;
use fathom_model::families::read_spec;
use fathom_model::{Error, ModelSpec, Options};
use serde_json::{Map, Value, json};

const PUBLISHED: &str = include_str!("../../../testdata/configs/deepseek-v3-r1.config.json");

fn published() -> Map<String, Value> {
    serde_json::from_str(PUBLISHED).unwrap()
}

fn read(config: Map<String, Value>) -> Result<ModelSpec, Error> {
    read_spec(Source::Hf(&Value::Object(config)), Path::new("some/config.json"), &Options::default())
}

/// Changes one key (`a.b` is nested); null removes it.
fn with(key: &str, value: Value) -> Map<String, Value> {
    let mut config = published();
    let (object, key) = match key.split_once('.') {
        Some((outer, inner)) => (config[outer].as_object_mut().unwrap(), inner),
        None => (&mut config, key),
    };
    if value.is_null() {
        object.remove(key)
    } else {
        object.insert(key.into(), value)
    };
    config
}

#[test]
fn every_fault_names_file_and_key() {
    for (key, value) in [
        ("hidden_size", Value::Null),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-7168)),
        ("hidden_size", json!(1.5)),
        ("hidden_size", json!("7168")),
        ("hidden_size", json!(1u64 << 40)),
        ("vocab_size", json!([])),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(1e18)),
        ("num_attention_heads", Value::Null),
        ("num_key_value_heads", json!(3)),
        ("rms_norm_eps", json!("tiny")),
        ("rms_norm_eps", json!(-1.0)),
        ("kv_lora_rank", Value::Null),
        ("qk_rope_head_dim", json!(63)),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("tie_word_embeddings", json!("yes")),
        ("n_group", json!(7)),
        ("topk_group", json!(9)),
        ("topk_method", json!("best")),
        ("scoring_func", json!("sqrtsoftplus")),
        ("num_experts_per_tok", json!(257)),
        ("num_nextn_predict_layers", json!(4)),
        ("rope_theta", json!(0)),
        ("rope_scaling.type", json!("ntk")),
        ("rope_scaling.factor", Value::Null),
        ("rope_scaling.factor", json!(0.0)),
        ("rope_scaling.original_max_position_embeddings", Value::Null),
        ("architectures", json!([])),
        ("architectures", json!("DeepseekV3ForCausalLM")),
    ] {
        let error = read(with(key, value.clone())).expect_err(key).to_string();
        let place = if key == "qk_rope_head_dim" { "head_dim" } else { key };
        assert!(error.contains("some/config.json") && error.contains(place), "{key} = {value}: {error}");
    }
}

#[test]
fn all_faults_come_at_once() {
    let mut config = with("hidden_size", json!("wide"));
    config.remove("vocab_size");
    config.insert("rms_norm_eps".into(), json!(7));
    let error = read(config).unwrap_err().to_string();
    for key in ["hidden_size", "vocab_size", "rms_norm_eps"] {
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn unknown_and_refused_architectures_are_told_apart() {
    let unknown = read(with("architectures", json!(["MambaForCausalLM"]))).unwrap_err().to_string();
    assert!(unknown.contains("MambaForCausalLM") && unknown.contains("DeepseekV3ForCausalLM"), "{unknown}");
    for name in ["DeepseekV32ForCausalLM", "DeepseekV4ForCausalLM"] {
        let refused = read(with("architectures", json!([name]))).unwrap_err();
        assert!(matches!(refused, Error::Refused { .. }), "{refused}");
        assert!(refused.to_string().contains(name));
    }
}

/// Whatever a value is replaced by, reading ends in a spec or an error.
#[test]
fn no_value_makes_it_panic() {
    let strange = [
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(1e300),
        json!(u64::MAX),
        json!("x"),
        json!([1, 2]),
        json!({"type": "yarn"}),
    ];
    let keys: Vec<String> = published().keys().cloned().collect();
    let nested: Vec<String> =
        published()["rope_scaling"].as_object().unwrap().keys().map(|k| format!("rope_scaling.{k}")).collect();
    for architecture in
        ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "DeepseekForCausalLM", "DeepseekV3ForCausalLM"]
    {
        for key in keys.iter().chain(&nested) {
            for value in &strange {
                let mut config = with(key, value.clone());
                if key != "architectures" {
                    config.insert("architectures".into(), json!([architecture]));
                }
                if let Ok(spec) = read(config) {
                    spec.parameters();
                    spec.rope.freqs();
                }
            }
        }
    }
}
