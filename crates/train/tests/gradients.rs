//! Gradients of whole models: the tape against central differences of the loss, for every family in `testdata`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fathom_core::reference::Reference;
use fathom_core::rng::Rng;
use fathom_core::{Grad, LatentForm, Shape, Tensor};
use fathom_cpu::{Cpu, Level, Pool, Products};
use fathom_model::{BLOCK, Batch, Decoder, Logits, Model, NoProbe, Options};
use fathom_train::{Params, Tape};

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name)
}

/// Two sequences side by side, and the token after each row.
fn batch(vocab: usize) -> (Batch, Vec<u32>) {
    let mut rng = Rng::new(9, 9);
    let mut draw = |n: usize| (0..n).map(|_| rng.below(vocab as u32)).collect::<Vec<u32>>();
    let mut batch = Batch::new(BLOCK);
    let (a, b) = (draw(5), draw(4));
    batch.push(&a, 0, &[0], LatentForm::Plain, Logits::None);
    batch.push(&b, 0, &[1], LatentForm::Plain, Logits::None);
    (batch, draw(9))
}

/// Mean loss of the main head and, where there is one, of the prediction block; with it the values that derivatives start
/// from.
fn loss(
    decoder: &Decoder,
    batch: &Batch,
    targets: &[u32],
    b: &dyn Grad,
    open: impl Fn(&Tensor) -> Tensor,
) -> (f64, Vec<(Tensor, Tensor)>) {
    let weights = vec![1.0 / targets.len() as f32; targets.len()];
    let h = decoder.trunk_fresh(decoder.embed(&batch.tokens).unwrap(), batch, &mut NoProbe).unwrap();
    let mut all = vec![decoder.head(&h).unwrap()];
    if decoder.mtp.is_some() {
        let next = Batch { tokens: targets.to_vec(), ..batch.clone() };
        let h = decoder.draft_trunk(&h, &next, None, &mut NoProbe).unwrap();
        all.push(decoder.draft_head(&h).unwrap());
    }
    let mut sum = 0.0;
    let seeds = all
        .into_iter()
        .map(|z| {
            let (loss, d) = b.cross_entropy(&open(&z), targets, &weights).unwrap();
            sum += loss;
            (z, d)
        })
        .collect();
    (sum, seeds)
}

/// Derivatives of the loss by every parameter, as vectors.
fn gradients(params: &Params, batch: &Batch, targets: &[u32], b: Arc<dyn Grad>) -> Vec<Vec<f32>> {
    let tape = Arc::new(Tape::new(b.clone(), params.sources()));
    let mut grads: Vec<Option<Tensor>> =
        params.all.iter().map(|p| Some(b.zeros(Shape::matrix(p.demand.rows, p.demand.cols)).unwrap())).collect();
    let decoder = params.decoder(tape.clone()).unwrap();
    let (_, seeds) = loss(&decoder, batch, targets, &*b, |z| tape.open("loss", z).unwrap());
    let seeds: Vec<(&Tensor, Tensor)> = seeds.iter().map(|(z, d)| (z, d.clone())).collect();
    tape.backward(&seeds, &mut grads).unwrap();
    let read = |g: &Option<Tensor>| {
        let g = g.as_ref().unwrap();
        let mut values = vec![0.0; g.shape.numel()];
        b.read(g, &mut values).unwrap();
        values
    };
    grads.iter().map(read).collect()
}

/// The CPU's derivatives are the reference's, at every level of instructions and with any number of threads.
fn compare(name: &str) {
    let model = Model::open(&testdata(name), &Options::default()).unwrap();
    let params = Params::from_source(&model.spec, &model.archive).unwrap();
    let (batch, targets) = batch(model.spec.vocab);
    let expected = gradients(&params, &batch, &targets, Arc::new(Reference::new()));
    for isa in Level::present() {
        let one = |threads| {
            let pool = Pool::new(threads).unwrap();
            gradients(&params, &batch, &targets, Cpu::training(pool, Some(isa), Products::F32).unwrap())
        };
        let found = one(1);
        assert!(found == one(2), "{name} at {isa:?}: two threads give other bits than one");
        for ((p, found), expected) in params.all.iter().zip(&found).zip(&expected) {
            let peak = expected.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
            let worst = found.iter().zip(expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(worst <= 2e-4 * peak, "{name}, {} at {isa:?}: off by {worst} of {peak}", p.name);
        }
    }
}

#[test]
fn cpu_agrees_with_reference() {
    for name in ["qwen2", "llama", "qwen3", "deepseek_v2_lite", "deepseek_v2", "deepseek_v3_fp8_mtp"] {
        compare(name);
    }
}

fn check(name: &str) {
    let model = Model::open(&testdata(name), &Options::default()).unwrap();
    let mut params = Params::from_source(&model.spec, &model.archive).unwrap();
    let (batch, targets) = batch(model.spec.vocab);
    let b: Arc<Reference> = Arc::new(Reference::new());

    let grads = gradients(&params, &batch, &targets, b.clone());
    let mut rng = Rng::new(3, 1);
    let value = |params: &Params| {
        let decoder = params.decoder(b.clone()).unwrap();
        loss(&decoder, &batch, &targets, &*b, Tensor::clone).0
    };
    for (i, g) in grads.iter().enumerate() {
        let p = &params.all[i];
        let (name, largest) = (p.name.clone(), g.iter().fold(0f32, |m, v| m.max(v.abs())));
        if name.contains("exp_probs_b") {
            assert_eq!(largest, 0.0, "{name}: the correction bias counts only in the choice");
            continue;
        }
        // Along a random direction, so that one difference tests the whole tensor.
        let direction: Vec<f32> = g.iter().map(|v| v + largest * 0.3 * rng.normal() as f32).collect();
        let slope: f64 = g.iter().zip(&direction).map(|(a, b)| f64::from(a * b)).sum();
        let norm = direction.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
        assert!(norm > 0.0, "{name}: no derivative at all");
        let step = (2e-3 / norm) as f32;
        let at = params.all[i].values().to_vec();
        let mut shifted = |sign: f32| {
            let values = params.all[i].values_mut();
            values.iter_mut().zip(at.iter().zip(&direction)).for_each(|(v, (a, d))| *v = a + sign * step * d);
            value(&params)
        };
        let difference = (shifted(1.0) - shifted(-1.0)) / (2.0 * f64::from(step));
        params.all[i].values_mut().copy_from_slice(&at);
        let scale = slope.abs().max(difference.abs());
        assert!((difference - slope).abs() <= 0.03 * scale + 1e-5, "{name}: {slope} against {difference}");
    }
}

#[test]
fn qwen2() {
    check("qwen2");
}

#[test]
fn llama() {
    check("llama");
}

#[test]
fn qwen3() {
    check("qwen3");
}

#[test]
fn deepseek_v2_lite() {
    check("deepseek_v2_lite");
}

#[test]
fn deepseek_v2() {
    check("deepseek_v2");
}

#[test]
fn deepseek_v3_with_prediction_block() {
    check("deepseek_v3_fp8_mtp");
}
