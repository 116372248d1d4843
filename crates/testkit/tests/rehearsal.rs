//! Dress rehearsal of published models on sparse files: every tensor is found, none is left over, and one decode
//! step runs. It shows neither speed nor quality.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fathom_core::null::Null;
use fathom_core::{DType, LatentForm};
use fathom_model::spec::Mixer;
use fathom_model::{BLOCK, Batch, Logits, Model, NoProbe, Options};
use fathom_picture::Picture;
use fathom_testkit::picture_models::{Layout, Size, published};
use fathom_testkit::rehearsal::{self, KvB, Published};

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("fathom-rehearsal-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn rehearse_hf(name: &str, published: &Published, parameters: &str) {
    let dir = Scratch::new(name);
    published.write_hf(&dir.0, 5 << 30).unwrap();
    rehearse(name, &dir.0, parameters);
}

/// Opens, checks, and takes a step on a backend without data.
fn rehearse(name: &str, path: &Path, parameters: &str) {
    let model = Model::open(path, &Options::default()).unwrap();
    assert_eq!(format!("{:.2}", model.spec.parameters().total as f64 / 1e9), parameters, "{name}");
    assert_eq!(model.check().unwrap(), Vec::<String>::new(), "{name}: tensors without a use");

    let decoder = model.load(Arc::new(Null::new()), &mut |_, _| {}).unwrap();
    let mut kv = decoder.kv_pool(1, DType::F16).unwrap();
    let mut batch = Batch::new(BLOCK);
    batch.push(&[1], 0, &[0], LatentForm::Absorbed, Logits::All);
    let h = decoder.embed(&batch.tokens).unwrap();
    let h = decoder.trunk(h, &batch, &mut kv, &mut NoProbe).unwrap();
    assert_eq!(decoder.head(&h).unwrap().cols(), model.spec.vocab);
    if decoder.mtp.is_some() {
        decoder.draft(&h, &batch, &mut kv, &mut NoProbe).unwrap();
    }
}

/// Janus-Pro in both layouts: the language model's parameters as published (1.65 B, 6.91 B), a seen and a drawn picture.
#[test]
fn picture_models_in_both_layouts() {
    for (size, parameters) in [(Size::Pro1B, "1.65"), (Size::Pro7B, "6.91")] {
        for layout in [Layout::HuggingFace, Layout::Original] {
            let name = format!("{size:?}-{layout:?}");
            let dir = Scratch::new(&name);
            published(size, layout).write_hf(&dir.0, 5 << 30).unwrap();
            rehearse(&name, &dir.0, parameters);
            let null = Arc::new(Null::new());
            let decoder = Model::open(&dir.0, &Options::default()).unwrap().load(null.clone(), &mut |_, _| {}).unwrap();
            let spec = decoder.spec.pictures.clone().unwrap();
            assert_eq!((spec.rows(), spec.steps()), (576, 576));
            let rows = decoder.see(&Picture::filled(640, 480, [9; 3])).unwrap();
            assert_eq!((rows.rows(), rows.cols()), (576, decoder.spec.dim));
            let ids = [0; 576];
            let h = decoder.pictures().embed(&*null, &ids).unwrap();
            assert_eq!(decoder.picture_head(&h).unwrap().cols(), 16_384);
            null.reset();
            let pixels = decoder.pictures().codec.decode(&*null, &ids, 24, 24).unwrap();
            assert_eq!(pixels.shape.dims(), [1, 384, 384, 3]);
            // What a picture costs, by hand: see docs/pictures.md.
            let tera = null.counts().total().flops as f64 / 1e12;
            assert!((0.5..0.7).contains(&tera), "{tera} tera-operations to decode a picture");
        }
    }
}

#[test]
fn distils_in_both_layouts() {
    let expected = ["1.78", "7.62", "14.77", "32.76", "8.03", "70.55", "6.91"];
    let dir = Scratch::new("gguf");
    for ((name, dense), parameters) in rehearsal::DENSE.iter().zip(expected) {
        rehearse_hf(name, &dense.published(), parameters);
        let file = dir.0.join(format!("{name}.gguf"));
        dense.write_gguf(&file).unwrap();
        rehearse(name, &file, parameters);
    }
}

#[test]
fn r1_in_old_and_new_gguf() {
    let dir = Scratch::new("r1-gguf");
    for (name, kv_b, mtp) in [("old", KvB::Fused, false), ("new", KvB::Split, false), ("mtp", KvB::Split, true)] {
        let file = dir.0.join(format!("{name}.gguf"));
        rehearsal::write_r1_gguf(&file, kv_b, mtp).unwrap();
        rehearse(name, &file, "671.03");
        let spec = Model::open(&file, &Options::default()).unwrap().spec;
        let Mixer::Mla { nope, v_dim, scale, .. } = spec.layers[0].mixer else { panic!("latent attention") };
        assert_eq!((nope, v_dim, spec.layers.len(), spec.mtp.is_some()), (128, 128, 61, mtp), "{name}");
        assert!((scale - 0.1352338).abs() < 1e-6, "{name}: {scale}");
    }
}

#[test]
fn r1_in_hugging_face_layout() {
    let config = serde_json::from_str(include_str!("../../../testdata/configs/deepseek-v3-r1.config.json")).unwrap();
    let published = rehearsal::r1(config);
    // The published index says 688,586,727,753 bytes.
    assert!((published.bytes() as f64 / 688_586_727_753.0 - 1.0).abs() < 1e-3, "{}", published.bytes());
    rehearse_hf("R1", &published, "671.03");
}

/// A tensor too few, one too many, one of another shape: all are named at once.
#[test]
fn what_is_missing_and_what_is_left_over_is_named() {
    let mut published = rehearsal::DENSE[0].1.published();
    published.tensors.retain(|t| t.name != "model.layers.3.mlp.up_proj.weight");
    for t in &mut published.tensors {
        match t.name.as_str() {
            "model.layers.5.self_attn.k_proj.bias" => t.shape = vec![255],
            "model.norm.weight" => t.name = "model.final_norm.weight".into(),
            _ => {}
        }
    }
    let dir = Scratch::new("faults");
    published.write_hf(&dir.0, 5 << 30).unwrap();
    let error = Model::open(&dir.0, &Options::default()).unwrap().check().unwrap_err().to_string();
    for name in ["layers.3.mlp.up_proj.weight", "layers.5.self_attn.k_proj.bias", "model.norm.weight", "[256]", "[255]"]
    {
        assert!(error.contains(name), "{name} in:\n{error}");
    }
}
