//! Learning as a whole: a batch can be learned by heart, the same step gives the same bits with any number of threads, and what is
//! served is what was trained.

use std::sync::Arc;

use fathom_core::rng::Rng;
use fathom_core::{DType, LatentForm, Precision, RopeLayout, RouteSpec, Score, Tensor};
use fathom_cpu::{Cpu, CpuOptions, Pool, Products};
use fathom_model::spec::{Ffn, LayerSpec, Mixer, RopeScaling, RopeSpec};
use fathom_model::{BLOCK, Batch, Logits, ModelSpec, NoProbe};
use fathom_train::{Example, Optimiser, Params, Trainer};

const VOCAB: usize = 40;

/// A tiny model of V3's architecture: latent attention, shared and routed experts, prediction block.
fn spec() -> ModelSpec {
    let mixer = Mixer::Mla { heads: 2, q_rank: Some(16), kv_rank: 16, nope: 8, rope: 8, v_dim: 8, scale: 0.25 };
    let route = RouteSpec {
        experts: 4,
        top_k: 2,
        score: Score::Sigmoid,
        groups: 1,
        groups_kept: 1,
        group_top: 2,
        normalise: true,
        scale: 1.0,
    };
    let dense = LayerSpec { mixer: mixer.clone(), ffn: Ffn::Dense { hidden: 48 } };
    let ffn = Ffn::Moe { route, bias_corrected: true, hidden: 24, shared_hidden: 24 };
    let moe = LayerSpec { mixer, ffn };
    ModelSpec {
        pictures: None,
        family: "DeepSeek-V3",
        vocab: VOCAB,
        dim: 32,
        eps: 1e-6,
        context: 128,
        rope: RopeSpec { dim: 8, theta: 1e4, layout: RopeLayout::Interleaved, scaling: RopeScaling::None },
        layers: vec![dense, moe.clone()],
        tied: true,
        mtp: Some(moe),
    }
}

fn cpu(threads: usize) -> Arc<Cpu> {
    let options = CpuOptions { threads: Some(threads), isa: None, precision: Precision::Exact, repack: false };
    Cpu::new(options).unwrap()
}

fn examples(seed: u64) -> Vec<Example> {
    let mut rng = Rng::new(seed, 0);
    let one = |n: usize, rng: &mut Rng| (0..n).map(|_| rng.below(VOCAB as u32)).collect();
    [(9, 3), (14, 5), (6, 1)].map(|(n, from)| Example { tokens: one(n, &mut rng), from }).to_vec()
}

fn trained(threads: usize, steps: usize, muon: bool, products: Products) -> (Trainer, Vec<f64>) {
    let params = Params::init(&spec(), 1);
    let optimiser = Optimiser::new(&params, muon);
    let backend = Cpu::training(Pool::new(threads).unwrap(), None, products).unwrap();
    let mut trainer = Trainer::new(params, optimiser, backend);
    let batch = examples(5);
    let losses = (0..steps).map(|_| trainer.step(&batch, 1e-2).unwrap().loss).collect();
    (trainer, losses)
}

#[test]
fn a_batch_is_learned_by_heart() {
    for (muon, products) in
        [(false, Products::F32), (true, Products::F32), (false, Products::Bf16), (true, Products::Bf16)]
    {
        let (_, losses) = trained(2, 80, muon, products);
        assert!(losses[0] > 3.0, "a new model knows nothing: {}", losses[0]);
        assert!(losses[79] < 0.05, "muon {muon}, {products:?}: after 80 steps the loss is {}", losses[79]);
    }
}

#[test]
fn one_thread_and_two_give_the_same_bits() {
    for products in [Products::F32, Products::Bf16] {
        let ((one, a), (two, b)) = (trained(1, 6, true, products), trained(2, 6, true, products));
        assert_eq!(a, b);
        for (x, y) in one.params.all.iter().zip(&two.params.all) {
            assert!(x.values() == y.values(), "{}", x.name);
        }
    }
}

#[test]
fn experts_with_too_little_load_become_likelier() {
    let (trainer, _) = trained(2, 3, false, Products::F32);
    let bias = trainer.params.all.iter().find(|p| p.name.contains("exp_probs_b")).unwrap();
    assert!(bias.values().iter().any(|b| *b > 0.0) && bias.values().iter().any(|b| *b < 0.0), "{:?}", bias.values());
}

/// More rows than the head takes at a time: the derivatives of two long sequences together are the mean of those of each
/// alone, by as many tokens as counted.
#[test]
fn the_head_in_chunks_is_the_head() {
    let mut rng = Rng::new(8, 0);
    let examples: Vec<Example> = [(700, 1), (900, 200)]
        .map(|(n, from)| Example { tokens: (0..n).map(|_| rng.below(VOCAB as u32)).collect(), from })
        .to_vec();
    // Without momentum and clipping, first moments are derivatives.
    let run = |examples: &[Example]| {
        let params = Params::init(&spec(), 1);
        let mut optimiser = Optimiser::new(&params, false);
        (optimiser.adamw.beta1, optimiser.clip) = (0.0, f32::INFINITY);
        let mut trainer = Trainer::new(params, optimiser, cpu(2));
        trainer.draft_weight = 0.0;
        let report = trainer.step(examples, 1e-3).unwrap();
        (report, trainer.optimiser.moments)
    };
    let (both, found) = run(&examples);
    let ((a, first), (b, second)) = (run(&examples[..1]), run(&examples[1..]));
    assert_eq!((a.counted, b.counted, both.counted), (699, 700, 1399));
    let share = a.counted as f32 / both.counted as f32;
    for ((found, a), b) in found.iter().zip(&first).zip(&second) {
        let peak = a.m.iter().chain(&b.m).fold(1e-9f32, |m, v| m.max(v.abs()));
        for ((found, a), b) in found.m.iter().zip(&a.m).zip(&b.m) {
            let expected = share * a + (1.0 - share) * b;
            assert!((found - expected).abs() < 1e-4 * peak, "{found} against {expected}");
        }
    }
}

/// The decoder that learns has no cache and expands keys and values; the one that serves has a cache of latents. Their logits
/// agree.
#[test]
fn served_is_trained() {
    let (trainer, _) = trained(2, 10, true, Products::F32);
    let decoder = trainer.decoder(cpu(2)).unwrap();
    let tokens = &examples(5)[1].tokens;
    let read = |t: &Tensor| {
        let mut v = vec![0.0; t.shape.numel()];
        decoder.backend.read(t, &mut v).unwrap();
        v
    };
    let mut batch = Batch::new(BLOCK);
    batch.push(tokens, 0, &[0], LatentForm::Plain, Logits::All);
    let fresh = decoder.trunk_fresh(decoder.embed(tokens).unwrap(), &batch, &mut NoProbe).unwrap();
    let fresh = read(&decoder.head(&fresh).unwrap());
    for form in [LatentForm::Plain, LatentForm::Absorbed] {
        let mut kv = decoder.kv_pool(1, DType::F32).unwrap();
        let mut batch = Batch::new(BLOCK);
        batch.push(tokens, 0, &[0], form, Logits::All);
        let h = decoder.trunk(decoder.embed(tokens).unwrap(), &batch, &mut kv, &mut NoProbe).unwrap();
        let served = read(&decoder.head(&h).unwrap());
        let worst = served.iter().zip(&fresh).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst < 2e-5, "{form:?}: {worst}");
    }
}

/// A step that is too large for the memory is cut; the derivatives are the same but for the order of sums.
#[test]
fn parts_of_a_step_add_up() {
    let step = |rows: usize| {
        let params = Params::init(&spec(), 1);
        let mut optimiser = Optimiser::new(&params, false);
        // The first step of AdamW would only show signs.
        optimiser.adamw.eps = 1e3;
        optimiser.clip = 1e9;
        let mut trainer = Trainer::new(params, optimiser, cpu(2));
        trainer.step_rows = rows;
        let report = trainer.step(&examples(5), 1.0).unwrap();
        (report, trainer.params)
    };
    let ((whole, a), (cut, b)) = (step(1 << 20), step(10));
    assert!((whole.loss - cut.loss).abs() < 1e-6 && (whole.norm - cut.norm).abs() < 1e-5 * whole.norm);
    assert_eq!((whole.counted, &whole.load), (cut.counted, &cut.load));
    for (x, y) in a.all.iter().zip(&b.all) {
        let worst = x.values().iter().zip(y.values()).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst < 1e-7, "{}: {worst}", x.name);
    }
}
