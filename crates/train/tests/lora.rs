//! Adapters: what a quantised model learns with one, it does not know without; derivatives, files, and what does not fit.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fathom_core::reference::Reference;
use fathom_core::rng::Rng;
use fathom_core::{Backend, Grad, LatentForm, Precision, format};
use fathom_cpu::{Cpu, CpuOptions};
use fathom_model::adapter::targets;
use fathom_model::{Adapter, BLOCK, Batch, Decoder, Logits, Model, NoProbe, Options};
use fathom_train::lora::{Lora, Settings};
use fathom_train::merge::merge;
use fathom_train::{Example, Optimiser, Params, Trainer};

fn open(name: &str) -> Model {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    Model::open(&models.join(name), &Options::default()).unwrap()
}

fn cpu(threads: usize, precision: Precision) -> Arc<Cpu> {
    let options = CpuOptions { threads: Some(threads), isa: None, precision, repack: false };
    Cpu::new(options).unwrap()
}

/// All projections, rank 4, scale 2; the second matrices random instead of zero if `random`.
fn params(model: Model, random: bool) -> Params {
    let modules: Vec<String> = targets(&model.spec).into_iter().map(|(name, _)| name).collect();
    let mut params = Params::lora(model, &modules, 4, 8.0, 3);
    if random {
        let mut rng = Rng::new(7, 7);
        for pair in params.all.chunks_exact_mut(2) {
            pair[1].values_mut().iter_mut().for_each(|v| *v = 0.1 * rng.normal() as f32);
        }
    }
    params
}

fn trainer(model: Model, random: bool, backend: Arc<dyn Grad>) -> Trainer {
    let params = params(model, random);
    let optimiser = Optimiser::new(&params, false);
    Trainer::new(params, optimiser, backend)
}

/// Logits of every row, through a cache as serving has it.
fn logits(decoder: &Decoder, tokens: &[u32]) -> Vec<f32> {
    let mut kv = decoder.kv_pool(tokens.len().div_ceil(BLOCK), fathom_core::DType::F32).unwrap();
    let table: Vec<u32> = (0..tokens.len().div_ceil(BLOCK) as u32).collect();
    let mut batch = Batch::new(BLOCK);
    batch.push(tokens, 0, &table, LatentForm::Absorbed, Logits::All);
    let h = decoder.trunk(decoder.embed(tokens).unwrap(), &batch, &mut kv, &mut NoProbe).unwrap();
    let z = decoder.head(&h).unwrap();
    let mut values = vec![0.0; z.shape.numel()];
    decoder.backend.read(&z, &mut values).unwrap();
    values
}

/// What the model goes on with.
fn greedy(decoder: &Decoder, prompt: &[u32], n: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..n {
        let z = logits(decoder, &tokens);
        let last = &z[z.len() - decoder.spec.vocab..];
        let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        tokens.push(best as u32);
    }
    tokens.split_off(prompt.len())
}

const FACT: [u32; 12] = [17, 4, 256, 99, 180, 31, 7, 300, 12, 45, 201, 8];

/// Learns to answer seven tokens with five others; knows it with the adapter that was saved, and not without.
fn learns_and_forgets(name: &str, precision: Precision) {
    let backend = cpu(2, precision);
    let mut trainer = trainer(open(name), false, backend.clone());
    trainer.recompute = true;
    let example = Example { tokens: FACT.to_vec(), from: 7 };
    let first = trainer.step(std::slice::from_ref(&example), 2e-3).unwrap().loss;
    let mut loss = first;
    for _ in 0..60 {
        loss = trainer.step(std::slice::from_ref(&example), 2e-3).unwrap().loss;
    }
    assert!(first > 3.0 && loss < 0.05, "{name}: {first} -> {loss}");

    let dir = tempfile::tempdir().unwrap();
    let adapter = trainer.params.adapter().unwrap();
    adapter.save(dir.path(), &trainer.params.spec, name, &[("step", "61")]).unwrap();
    let mut model = open(name);
    let plain = model.load(backend.clone(), &mut |_, _| {}).unwrap();
    assert_ne!(greedy(&plain, &FACT[..7], 5), FACT[7..], "{name} without the adapter");
    model.adapt(dir.path()).unwrap();
    let adapted = model.load(backend, &mut |_, _| {}).unwrap();
    assert_eq!(greedy(&adapted, &FACT[..7], 5), FACT[7..], "{name} with the adapter");
}

#[test]
fn a_quantised_model_learns_and_forgets() {
    for name in
        ["qwen2/gguf/qwen2-q5_0.gguf", "kquant/kquant_qwen2/kquant_qwen2-Q2_K.gguf", "llama/gguf/llama-q4_0.gguf"]
    {
        learns_and_forgets(name, Precision::Exact);
        learns_and_forgets(name, Precision::Fast);
    }
}

/// Latent attention and experts, in files that split the latent's expansion.
#[test]
fn a_quantised_model_with_latent_attention_learns_and_forgets() {
    for name in
        ["kquant/kquant_deepseek_v3/kquant_deepseek_v3-Q4_K_M.gguf", "deepseek_v2_lite/gguf/deepseek_v2_lite-q8_0.gguf"]
    {
        learns_and_forgets(name, Precision::Exact);
    }
}

/// Derivatives by both matrices of every projection, over a quantised model, against differences of the loss. The derivative is
/// the first moment after a step without momentum and clipping; a learning rate of zero leaves the weights.
#[test]
fn derivatives_over_quantised_weights() {
    for name in ["qwen2/gguf/qwen2-q5_1.gguf", "deepseek_v2_lite/gguf/deepseek_v2_lite-q8_0.gguf"] {
        let mut rng = Rng::new(4, 4);
        let examples = [Example { tokens: (0..9).map(|_| rng.below(500)).collect(), from: 3 }];
        let mut trainer = trainer(open(name), true, Arc::new(Reference::new()));
        (trainer.optimiser.adamw.beta1, trainer.optimiser.clip) = (0.0, f32::INFINITY);
        trainer.step(&examples, 0.0).unwrap();
        let grads: Vec<Vec<f32>> = trainer.optimiser.moments.iter().map(|m| m.m.clone()).collect();
        for (i, g) in grads.iter().enumerate() {
            let at = trainer.params.all[i].values().to_vec();
            let norm = g.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
            assert!(norm > 1e-6, "{name}, {}: no derivative at all", trainer.params.all[i].name);
            let step = (3e-3 / norm) as f32;
            let mut shifted = |sign: f32| {
                let values = trainer.params.all[i].values_mut();
                values.iter_mut().zip(at.iter().zip(g)).for_each(|(v, (a, g))| *v = a + sign * step * g);
                trainer.step(&examples, 0.0).unwrap().loss
            };
            let difference = (shifted(1.0) - shifted(-1.0)) / (2.0 * f64::from(step));
            trainer.params.all[i].values_mut().copy_from_slice(&at);
            let slope = norm * norm;
            let label = &trainer.params.all[i].name;
            assert!((difference - slope).abs() < 0.01 * slope + 1e-5, "{name}, {label}: {slope} against {difference}");
        }
    }
}

/// Blocks computed again give the bits of blocks kept, and one thread those of two.
#[test]
fn recomputing_and_threads_change_no_bit() {
    let run = |threads, recompute| {
        let backend = cpu(threads, Precision::Exact);
        let mut trainer = trainer(open("kquant/kquant_deepseek_v3/kquant_deepseek_v3-Q4_K_M.gguf"), true, backend);
        trainer.recompute = recompute;
        let example = Example { tokens: FACT.to_vec(), from: 2 };
        (0..4).for_each(|_| _ = trainer.step(std::slice::from_ref(&example), 1e-3).unwrap());
        trainer.params.all.iter().map(|p| p.values().to_vec()).collect::<Vec<_>>()
    };
    let expected = run(1, false);
    assert!(expected == run(2, false), "two threads");
    assert!(expected == run(2, true), "recomputed");
}

/// The same adapter beside a GGUF file, whose Llama rows are interleaved, and beside the Hugging Face files it was made from:
/// equal logits, so PEFT reads what we write.
#[test]
fn rows_lie_in_peft_s_order() {
    let b: Arc<dyn Backend> = cpu(2, Precision::Exact);
    let gguf = open("llama/gguf/llama-f16.gguf");
    let spec = gguf.spec.clone();
    let params = params(gguf, true);
    let dir = tempfile::tempdir().unwrap();
    params.adapter().unwrap().save(dir.path(), &spec, "llama", &[]).unwrap();
    let adapted = |name: &str| {
        let mut model = open(name);
        let without = logits(&model.load(b.clone(), &mut |_, _| {}).unwrap(), &FACT);
        model.adapt(dir.path()).unwrap();
        (without, logits(&model.load(b.clone(), &mut |_, _| {}).unwrap(), &FACT))
    };
    let (found, expected) = (adapted("llama/gguf/llama-f16.gguf"), adapted("llama"));
    let worst = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst(&found.0, &expected.0) < 2e-3, "the files themselves agree");
    assert!(worst(&found.1, &expected.1) < 2e-3, "{}", worst(&found.1, &expected.1));
    assert!(worst(&found.0, &found.1) > 0.1, "the adapter changes something");

    // Live and saved are one adapter.
    let live = logits(&params.decoder(b.clone()).unwrap(), &FACT);
    assert!(worst(&live, &found.1) < 1e-4, "{}", worst(&live, &found.1));
}

/// Merged into the weights, an adapter computes what it computes beside them.
#[test]
fn merging_is_adding() {
    let model = open("qwen2/gguf/qwen2-f32.gguf");
    let params = params(model, true);
    let b: Arc<dyn Backend> = Arc::new(Reference::new());
    let beside = logits(&params.decoder(b.clone()).unwrap(), &FACT);
    let adapter = params.adapter().unwrap();
    let base = open("qwen2/gguf/qwen2-f32.gguf");
    let mut merged = Params::from_source(&base.spec, &base.archive).unwrap();
    let changed = merged.all.iter_mut().filter(|p| adapter.get(p.demand.id).is_some());
    let n = changed.map(|p| adapter.merge(p.demand.id, 0, p.values_mut())).filter(|done| *done).count();
    assert_eq!(n, adapter.pairs.len());
    let inside = logits(&merged.decoder(b).unwrap(), &FACT);
    let worst = beside.iter().zip(&inside).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst < 1e-4, "{worst}");
}

/// A merged GGUF file computes what model and adapter do, as far as its format holds it; metadata and all other tensors stay.
#[test]
fn a_merged_file_knows_what_the_adapter_knew() {
    let name = "llama/gguf/llama-q4_0.gguf";
    let b: Arc<dyn Backend> = cpu(2, Precision::Exact);
    let params = params(open(name), true);
    let adapter = params.adapter().unwrap();
    let beside = logits(&params.decoder(b.clone()).unwrap(), &FACT);
    let dir = tempfile::tempdir().unwrap();
    let mut errors = Vec::new();
    for format in [None, Some(format::Q8_0), Some(format::F32)] {
        let base = open(name);
        let out = dir.path().join(format!("{format:?}.gguf"));
        let mut last = (0, 0);
        let report = merge(&base, &adapter, format, &out, &mut |done, total| last = (done, total)).unwrap();
        assert!(last.0 == last.1 && report.tensors == adapter.pairs.len(), "{last:?} {report:?}");
        let merged = Model::open(&out, &Options::default()).unwrap();
        assert_eq!(merged.spec, base.spec);
        assert_eq!(merged.archive.metadata().unwrap().iter().count(), base.archive.metadata().unwrap().iter().count());
        let norm = |m: &Model| m.archive.tensor("output_norm.weight").unwrap().unwrap().bytes.as_slice().to_vec();
        assert_eq!(norm(&merged), norm(&base));
        let inside = logits(&merged.load(b.clone(), &mut |_, _| {}).unwrap(), &FACT);
        let squares = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x * x)).sum::<f64>();
        let off = squares(&mut inside.iter().zip(&beside).map(|(a, b)| a - b));
        errors.push((off / squares(&mut beside.iter().copied())).sqrt());
    }
    assert!(errors[2] < 1e-4 && errors[1] < 0.1 && errors[0] > errors[1], "{errors:?}");
    let hf = merge(&open("qwen2"), &adapter, None, &dir.path().join("x.gguf"), &mut |_, _| {}).unwrap_err().to_string();
    assert!(hf.contains("merge_and_unload"), "{hf}");
}

/// The same seed gives the same adapter, whatever the threads; another seed another one.
#[test]
fn a_seed_repeats() {
    let run = |seed, threads| {
        let settings = Settings { rank: 2, batch: 2, epochs: 2, seed, rows: 16, ..Settings::default() };
        let mut lora = Lora::new(open("qwen2/gguf/qwen2-q5_0.gguf"), settings, cpu(threads, Precision::Fast)).unwrap();
        let examples: Vec<Example> = (0..5).map(|i| Example { tokens: FACT[i..i + 6].to_vec(), from: 2 }).collect();
        let mut steps = 0;
        assert!(lora.learn(&examples, |p| (steps += 1, p.steps == 6).1).unwrap());
        assert_eq!(steps, 6);
        let dir = tempfile::tempdir().unwrap();
        lora.save(dir.path(), "qwen2").unwrap();
        std::fs::read(dir.path().join("adapter_model.safetensors")).unwrap()
    };
    let first = run(1, 2);
    assert!(first == run(1, 1) && first != run(2, 2));
    let settings = Settings { modules: vec!["c_attn".into()], ..Settings::default() };
    let error = Lora::new(open("qwen2"), settings, cpu(1, Precision::Exact)).err().unwrap().to_string();
    assert!(error.contains("modules is c_attn, it must be one of q_proj, k_proj"), "{error}");
}

/// A saved adapter, with a file of it changed.
fn broken(change: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let model = open("qwen2");
    let spec = model.spec.clone();
    params(model, true).adapter().unwrap().save(dir.path(), &spec, "qwen2", &[]).unwrap();
    Adapter::open(dir.path(), &spec).expect("it was whole");
    change(dir.path());
    Adapter::open(dir.path(), &spec).expect_err("it is broken").to_string()
}

fn replace(dir: &Path, from: &str, to: &str) {
    let path: PathBuf = dir.join("adapter_config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn what_does_not_fit_is_named() {
    let rank = broken(|dir| replace(dir, "\"r\": 4", "\"r\": 8"));
    for words in ["layers.0.self_attn.q_proj.lora_A.weight", "expected [8, 64]", "found [4, 64]", "lora_B", "[64, 8]"] {
        assert!(rank.contains(words), "{words}: {rank}");
    }
    let dora =
        broken(|dir| replace(dir, "\"r\": 4", "\"r\": 4, \"use_dora\": true, \"modules_to_save\": [\"lm_head\"]"));
    assert!(dora.contains("key use_dora") && dora.contains("key modules_to_save"), "{dora}");
    let kind = broken(|dir| replace(dir, "LORA", "IA3"));
    assert!(kind.contains("key peft_type") && kind.contains("IA3"), "{kind}");
    assert!(
        broken(|dir| std::fs::remove_file(dir.join("adapter_model.safetensors")).unwrap()).contains("adapter_model")
    );
    assert!(
        broken(|dir| std::fs::write(dir.join("adapter_config.json"), "{").unwrap()).contains("adapter_config.json")
    );

    // An adapter of another model: every tensor is named with both shapes.
    let dir = tempfile::tempdir().unwrap();
    let llama = open("llama");
    let spec = llama.spec.clone();
    params(llama, true).adapter().unwrap().save(dir.path(), &spec, "llama", &[]).unwrap();
    let error = Adapter::open(dir.path(), &open("qwen2").spec).err().unwrap().to_string();
    assert!(error.contains("k_proj.lora_B.weight: expected [32, 4] for this model, found [16, 4]"), "{error}");
    let error = Adapter::open(dir.path(), &open("deepseek_v2").spec).err().unwrap().to_string();
    assert!(error.contains("self_attn.k_proj.lora_A.weight: expected base_model.model.model.layers.N."), "{error}");
}
