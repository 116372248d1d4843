//! `fathom convert`: the new file says what the old one said.

use std::path::Path;

use super::fathom::{fathom, testdata};

fn text(model: &str, more: &[&str]) -> String {
    let args = ["run", "-m", model, "Hello", "--max-tokens", "12", "--temperature", "0", "--precision", "exact"];
    fathom(&[&args, more].concat()).ok().to_owned()
}

fn convert(model: &str, to: &Path, format: &str) {
    let to = to.to_str().unwrap();
    let ran = fathom(&["convert", model, to, "--format", format]);
    assert_eq!(ran.ok().trim(), to);
    assert!(ran.err.contains("tensors"), "{ran:#?}");
}

#[test]
fn text_models_say_the_same_before_and_after() {
    let dir = tempfile::tempdir().unwrap();
    // Grouped-query, with paired rows, with norms; latent, with experts, with a prediction block in FP8.
    for name in ["qwen2", "qwen3", "llama", "deepseek_v2_lite", "deepseek_v3_fp8_mtp"] {
        let model = testdata(&format!("models/{name}"));
        let file = dir.path().join(format!("{name}.gguf"));
        convert(&model, &file, "F32");
        let plain: &[&str] = if name == "qwen3" { &["--rope-attn-factor", "honour"] } else { &[] };
        assert_eq!(text(file.to_str().unwrap(), plain), text(&model, plain), "{name}");
    }
}

#[test]
fn a_picture_model_draws_and_sees_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (model, image) = (testdata("models/janus"), testdata("models/janus/image_2.png"));
    let draw = |model: &str, name: &str| {
        let to = dir.path().join(name);
        let args =
            ["draw", "a red fox", "-m", model, "-o", to.to_str().unwrap(), "--seed", "4", "--precision", "exact"];
        fathom(&args).ok();
        let bytes = std::fs::read(to).unwrap();
        fathom_picture::decode(&bytes, &fathom_picture::Limits::default()).unwrap()
    };
    let plain = dir.path().join("plain.gguf");
    convert(&model, &plain, "BF16");
    let plain = plain.to_str().unwrap();
    assert_eq!(draw(plain, "a.png"), draw(&model, "b.png"));
    assert_eq!(text(plain, &["--image", &image]), text(&model, &["--image", &image]));
    // Smaller formats fall back where rows are no whole blocks; the file loads and draws.
    for format in ["Q8_0", "Q4_K"] {
        let small = dir.path().join(format!("{format}.gguf"));
        convert(&model, &small, format);
        assert_eq!(draw(small.to_str().unwrap(), "c.png").width, 24);
    }
}

#[test]
fn the_makers_own_pickle_is_read_here_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures/janus_original");
    if !shared.exists() {
        println!("skipped: {} is not here", shared.display());
        return;
    }
    let model = dir.path().join("original");
    std::fs::create_dir(&model).unwrap();
    for from in [shared.as_path(), Path::new(&testdata("models/janus"))] {
        for name in
            ["config.json", "preprocessor_config.json", "pytorch_model.bin", "tokenizer.json", "tokenizer_config.json"]
        {
            if from.join(name).exists() && !model.join(name).exists() {
                std::fs::copy(from.join(name), model.join(name)).unwrap();
            }
        }
    }
    let model = model.to_str().unwrap();
    fathom(&["run", "-m", model, "x"]).fails(1, &["a pickle", "fathom convert"]);
    let file = dir.path().join("x.gguf");
    convert(model, &file, "BF16");
    let (file, hf) = (file.to_str().unwrap(), testdata("models/janus"));
    let image = testdata("models/janus/image_1.png");
    assert_eq!(text(file, &["--image", &image]), text(&hf, &["--image", &image]));
    assert_eq!(text(file, &[]), text(&hf, &[]));
    fathom(&["convert", model, file]).fails(1, &["exists already", "--force"]);
}
