//! Policy optimisation: the derivative is that of the written objective, and rewards move what is drawn.

use std::sync::Arc;

use fathom_cpu::{Cpu, Pool, Products};
use fathom_train::policy::{Bounds, Rollout, logprobs};
use fathom_train::recipe::Recipe;
use fathom_train::{Optimiser, Params, Trainer};

fn cpu() -> Arc<Cpu> {
    Cpu::training(Pool::new(2).unwrap(), None, Products::F32).unwrap()
}

fn params(seed: u64) -> Params {
    let recipe = r#"
        name = "tiny"
        [model]
        dim = 32
        layers = 2
        dense_layers = 1
        heads = 2
        kv_rank = 16
        nope = 8
        rope = 8
        v_dim = 8
        hidden = 48
        experts = 4
        top_k = 2
        expert_hidden = 16
        shared_experts = 1
        mtp = true
        context = 64
        [eval]
        max_tokens = 32
    "#;
    Params::init(&Recipe::parse(recipe, "tiny.toml".as_ref()).unwrap().spec(40), seed)
}

fn rollouts(p: &Params) -> Vec<Rollout> {
    let one = |tokens: &[u32], from, advantage| Rollout {
        tokens: tokens.to_vec(),
        from,
        advantage,
        old: vec![0.0; tokens.len() - from],
        reference: vec![],
    };
    let mut all =
        vec![one(&[1, 5, 9, 3, 7, 2], 2, 1.0), one(&[1, 5, 9, 4, 4], 3, -1.5), one(&[8, 2, 30, 31, 32], 1, 0.5)];
    // Drawn by a slightly different model, held back by another.
    let (old, reference) = (params(3), params(4));
    let old = logprobs(&old.decoder(cpu()).unwrap(), &all, 64).unwrap();
    let reference = logprobs(&reference.decoder(cpu()).unwrap(), &all, 64).unwrap();
    let now = logprobs(&p.decoder(cpu()).unwrap(), &all, 64).unwrap();
    for ((r, (old, now)), reference) in all.iter_mut().zip(old.into_iter().zip(now)).zip(reference) {
        r.old = now.iter().zip(old).map(|(n, o)| n + 0.8 * (o - n)).collect();
        r.reference = reference;
    }
    all
}

const BOUNDS: Bounds = Bounds { ratio: 0.2, kl: 0.05 };

/// The objective in words of the paper, from log-probabilities alone (DeepSeekMath, equations 3 and 4).
fn objective(p: &Params, rollouts: &[Rollout]) -> f64 {
    let now = logprobs(&p.decoder(cpu()).unwrap(), rollouts, 64).unwrap();
    let mut sum = 0.0;
    for (r, now) in rollouts.iter().zip(now) {
        let token = |i: usize| {
            let ratio = f64::from(now[i] - r.old[i]).exp();
            let a = f64::from(r.advantage);
            let gain = (ratio * a).min(ratio.clamp(0.8, 1.2) * a);
            let apart = f64::from(r.reference[i] - now[i]);
            gain - 0.05 * (apart.exp() - apart - 1.0)
        };
        sum += (0..now.len()).map(token).sum::<f64>() / now.len() as f64;
    }
    -sum / rollouts.len() as f64
}

/// A plain step against the derivative: the loss falls by the step times the derivative's square, to first order.
#[test]
fn a_small_step_lowers_the_objective_as_its_derivative_says() {
    let start = params(1);
    let rollouts = rollouts(&start);
    let before = objective(&start, &rollouts);
    let mut optimiser = Optimiser::new(&start, false);
    // With a large epsilon AdamW's first step is the derivative divided by epsilon.
    (optimiser.adamw.eps, optimiser.clip) = (1e4, 1e9);
    let mut trainer = Trainer::new(start, optimiser, cpu());
    let step = 2e-4f32;
    let report = trainer.policy_step(&rollouts, step * 1e4, BOUNDS).unwrap();
    assert!((report.loss - before).abs() < 1e-5, "{} {before}", report.loss);
    assert!(report.clipped > 0.0 && report.clipped < 1.0, "some ratios are clipped: {}", report.clipped);
    let after = objective(&trainer.params, &rollouts);
    let predicted = f64::from(step) * report.norm * report.norm;
    let ratio = (before - after) / predicted;
    assert!((0.9..1.1).contains(&ratio), "fell by {}, predicted {predicted}", before - after);
}

#[test]
fn rewards_move_what_is_drawn() {
    let start = params(1);
    let mut all = rollouts(&start);
    let mut trainer = Trainer::new(start, Optimiser::new(&params(1), false), cpu());
    let mean = |p: &Params, r: &Rollout| -> f32 {
        let l = logprobs(&p.decoder(cpu()).unwrap(), std::slice::from_ref(r), 64).unwrap();
        l[0].iter().sum::<f32>() / l[0].len() as f32
    };
    let before: Vec<f32> = all.iter().map(|r| mean(&trainer.params, r)).collect();
    for _ in 0..5 {
        let now = logprobs(&trainer.decoder(cpu()).unwrap(), &all, 64).unwrap();
        all.iter_mut().zip(now).for_each(|(r, now)| r.old = now);
        let report = trainer.policy_step(&all, 2e-3, BOUNDS).unwrap();
        assert!(report.gap_max < 1e-4, "the same weights give the same probabilities: {}", report.gap_max);
    }
    let after: Vec<f32> = all.iter().map(|r| mean(&trainer.params, r)).collect();
    assert!(after[0] > before[0] && after[1] < before[1] && after[2] > before[2], "{before:?} {after:?}");
}
