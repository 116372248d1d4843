//! A converted model computes what the original computes: every architecture and both layouts of pictures, on the reference backend.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fathom_core::reference::Reference;
use fathom_core::{DType, FormatId, LatentForm, Tensor, format};
use fathom_files::Archive;
use fathom_model::convert::convert;
use fathom_model::{BLOCK, Batch, Decoder, Logits, Model, NoProbe, Options};
use fathom_picture::Picture;

fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(path)
}

fn decoder(model: &Model) -> Decoder {
    model.load(Arc::new(Reference::new()), &mut |_, _| {}).unwrap()
}

fn read(d: &Decoder, x: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; x.shape.numel()];
    d.backend.read(x, &mut values).unwrap();
    values
}

/// Logits of a few tokens at positions that every scaling of rotations tells apart.
fn logits(d: &Decoder) -> Vec<f32> {
    let tokens: Vec<u32> = (0..40).map(|i| (i * 7 + 3) % 250).collect();
    let mut batch = Batch::new(BLOCK);
    batch.push(&tokens, 0, &[0], LatentForm::Plain, Logits::All);
    let mut kv = d.kv_pool(1, DType::F32).unwrap();
    let h = d.trunk(d.inputs(&batch).unwrap(), &batch, &mut kv, &mut NoProbe).unwrap();
    read(d, &d.head(&h).unwrap())
}

/// Converts, and opens what came out.
fn converted(model: &Model, format: FormatId, to: &Path) -> Model {
    let done = convert(model, format, to, 2, &mut |read, total| assert!(read <= total)).unwrap();
    assert!(done.tensors > 10 && done.bytes_out > 0);
    let again = Model::open(to, &Options::default()).unwrap();
    assert_eq!(again.check().unwrap(), Vec::<String>::new(), "tensors without a use");
    again
}

/// Root mean square of the difference over that of `b`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum = |f: &dyn Fn(usize) -> f32| (0..a.len()).map(|i| f64::from(f(i)).powi(2)).sum::<f64>();
    (sum(&|i| a[i] - b[i]) / sum(&|i| b[i])).sqrt()
}

#[test]
fn every_architecture_computes_the_same_from_its_gguf() {
    let dir = tempfile::tempdir().unwrap();
    let names = [
        "qwen2",
        "qwen3",
        "llama",
        "deepseek_coder",
        "deepseek_moe",
        "deepseek_v2",
        "deepseek_v2_lite",
        "deepseek_v3_fp8_mtp",
        "janus",
    ];
    for name in names {
        let model = Model::open(&testdata(&format!("models/{name}")), &Options::default()).unwrap();
        let before = logits(&decoder(&model));
        let to = dir.path().join(format!("{name}.gguf"));
        let again = converted(&model, format::F32, &to);
        assert_eq!(again.spec.layers, model.spec.layers, "{name}");
        assert_eq!(again.spec.pictures, model.spec.pictures, "{name}");
        let exact = distance(&logits(&decoder(&again)), &before);
        // GGUF holds some factors in 32 bit.
        assert!(exact < 1e-5, "{name}: {exact:e}");
        let (old, new) = (model.vocab().unwrap(), again.vocab().unwrap());
        let (old_ids, new_ids) =
            (fathom_text::Tokenizer::new(&old).unwrap(), fathom_text::Tokenizer::new(&new).unwrap());
        assert_eq!(old_ids.end_tokens(), new_ids.end_tokens(), "{name}");
        assert_eq!((old_ids.bos(), old_ids.pad()), (new_ids.bos(), new_ids.pad()), "{name}");
        assert_eq!(old.templates, new.templates, "{name}");
        let text = "Hello, 1234 <|User|> Wörter";
        assert_eq!(old_ids.encode_prompt(text).unwrap(), new_ids.encode_prompt(text).unwrap(), "{name}");
        // Once more from the new file, into a block format.
        let small = converted(&again, format::Q8_0, &dir.path().join(format!("{name}-q8.gguf")));
        let rounded = distance(&logits(&decoder(&small)), &before);
        assert!(rounded < 0.2, "{name}: {rounded}");
    }
}

#[test]
fn pictures_come_out_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::open(&testdata("models/janus"), &Options::default()).unwrap();
    let picture = Picture { width: 3, height: 2, rgb: (0..18).map(|i| i * 14).collect() };
    let both = |d: &Decoder| {
        let ids: Vec<u32> = (0..36).map(|i| i * 5 % 64).collect();
        let pixels = d.pictures().codec.decode(&*d.backend, &ids, 6, 6).unwrap();
        (read(d, &d.see(&picture).unwrap()), read(d, &pixels))
    };
    let before = both(&decoder(&model));
    let plain = converted(&model, format::BF16, &dir.path().join("plain.gguf"));
    assert_eq!(both(&decoder(&plain)), before, "nothing is rounded");
    for wanted in [format::Q8_0, format::Q4_K] {
        let small = converted(&model, wanted, &dir.path().join("small.gguf"));
        let after = both(&decoder(&small));
        assert!(distance(&after.0, &before.0) < 0.05, "{wanted}");
        assert_eq!(after.1, before.1, "the codec keeps its numbers");
    }
}

#[test]
fn the_makers_own_files_are_the_same_model() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures/janus_original");
    if !shared.exists() {
        println!("skipped: {} is not here", shared.display());
        return;
    }
    let original = Model::from_archive(Archive::open_unsafe_kinds(&shared).unwrap(), &Options::default()).unwrap();
    let twin = Model::open(&testdata("models/janus"), &Options::default()).unwrap();
    assert_eq!(original.spec.pictures, twin.spec.pictures);
    let unused = original.check().unwrap();
    assert!(unused.iter().all(|name| name.contains("codebook_used") || name.contains("attn_pool")), "{unused:?}");
    let (a, b) = (decoder(&original), decoder(&twin));
    assert_eq!(logits(&a), logits(&b));
    let picture = Picture::filled(24, 24, [200, 30, 90]);
    assert_eq!(read(&a, &a.see(&picture).unwrap()), read(&b, &b.see(&picture).unwrap()));
    let ids = [7; 36];
    let codec = |d: &Decoder| read(d, &d.pictures().codec.decode(&*d.backend, &ids, 6, 6).unwrap());
    assert_eq!(codec(&a), codec(&b));
    let half = |d: &Decoder| {
        let x = d.backend.tensor(fathom_core::Shape::new(&[1, 24, 24, 3]), &[0.3; 24 * 24 * 3]).unwrap();
        d.pictures().codec.encode(&*d.backend, &x).unwrap()
    };
    assert_eq!(half(&a), half(&b));
}
