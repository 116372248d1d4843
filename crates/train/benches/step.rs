//! Training speed: `cargo bench -p fathom-train --bench step -- [dense|latent|mini] [threads] [steps] [adamw|muon] [f32|bf16] [rows]`.
//!
//! Steps over random tokens: batches of 16 sequences of 256 for `dense` (Llama's shape) and `latent` (V3's), as `PERF.md` states them;
//! 28 of 74 for `mini`, the shape of the built-in model. Prints tokens per second by the clock and per
//! second of processor time (Linux), so that a figure from a busy machine says something.

use std::time::Instant;

use fathom_core::rng::Rng;
use fathom_core::{RopeLayout, RouteSpec, Score};
use fathom_cpu::{Cpu, Pool, Products};
use fathom_model::ModelSpec;
use fathom_model::spec::{Ffn, LayerSpec, Mixer, RopeScaling, RopeSpec};
use fathom_train::{Example, Optimiser, Params, Trainer};

/// 5.8 M parameters of Llama's shape.
fn dense() -> ModelSpec {
    let mixer = Mixer::Gqa { heads: 4, kv_heads: 4, head_dim: 64, qkv_bias: false, qk_norm: false };
    let layer = LayerSpec { mixer, ffn: Ffn::Dense { hidden: 704 } };
    ModelSpec {
        pictures: None,
        family: "bench",
        vocab: 4096,
        dim: 256,
        eps: 1e-6,
        context: 512,
        rope: RopeSpec { dim: 64, theta: 1e4, layout: RopeLayout::Halves, scaling: RopeScaling::None },
        layers: vec![layer; 6],
        tied: true,
        mtp: None,
    }
}

/// V3's architecture: a dense layer, then layers with two of `experts` and a shared one.
fn latent(vocab: usize, dim: usize, hidden: usize, experts: usize, mtp: bool) -> ModelSpec {
    let mixer =
        Mixer::Mla { heads: 4, q_rank: None, kv_rank: 64, nope: 32, rope: 16, v_dim: 32, scale: 48f32.powf(-0.5) };
    let route = RouteSpec {
        experts,
        top_k: 2,
        score: Score::Sigmoid,
        groups: 1,
        groups_kept: 1,
        group_top: 2,
        normalise: true,
        scale: 1.0,
    };
    let ffn = Ffn::Moe { route, bias_corrected: true, hidden, shared_hidden: hidden };
    let moe = LayerSpec { mixer: mixer.clone(), ffn };
    let mut layers = vec![LayerSpec { mixer, ffn: Ffn::Dense { hidden: 3 * hidden } }];
    layers.extend(vec![moe.clone(); 5]);
    ModelSpec {
        pictures: None,
        family: "bench",
        vocab,
        dim,
        eps: 1e-6,
        context: 512,
        rope: RopeSpec { dim: 16, theta: 1e4, layout: RopeLayout::Interleaved, scaling: RopeScaling::None },
        layers,
        tied: true,
        mtp: mtp.then_some(moe),
    }
}

/// Processor time of this process so far, in seconds; 0 where there is no `/proc`.
fn processor_time() -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name in brackets: state is field 3, user and system time 14 and 15.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
    ticks / TICKS_PER_SECOND
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let get = |i: usize, default: &str| args.get(i).cloned().unwrap_or_else(|| default.into());
    let name = get(0, "latent");
    let threads: usize = get(1, "2").parse().expect("a number of threads");
    let steps: usize = get(2, "6").parse().expect("a number of steps");
    let muon = get(3, "adamw") == "muon";
    let (spec, n, len) = match name.as_str() {
        "dense" => (dense(), 16, 256),
        "latent" => (latent(4096, 256, 192, 16, false), 16, 256),
        "mini" => (latent(1536, 192, 192, 8, true), 28, 74),
        other => panic!("dense, latent or mini, not {other}"),
    };
    let products = if get(4, "bf16") == "f32" { Products::F32 } else { Products::Bf16 };
    let params = Params::init(&spec, 1);
    let total: usize = params.all.iter().map(|p| p.values().len()).sum();
    println!("{name}: {total} parameters, {n} sequences of {len}, {threads} threads, {products:?}");
    let cpu = Cpu::training(Pool::new(threads).expect("threads"), None, products).expect("a CPU");
    let optimiser = Optimiser::new(&params, muon);
    let mut trainer = Trainer::new(params, optimiser, cpu);
    if let Some(rows) = args.get(5) {
        trainer.step_rows = rows.parse().expect("a number of rows");
    }
    let mut rng = Rng::new(1, 0);
    let (mut tokens, mut clock, mut work) = (0, 0.0, 0.0);
    for step in 0..=steps {
        let sequence = |rng: &mut Rng| (0..=len).map(|_| rng.below(spec.vocab as u32)).collect();
        let batch: Vec<Example> = (0..n).map(|_| Example { tokens: sequence(&mut rng), from: 1 }).collect();
        let (start, worked) = (Instant::now(), processor_time());
        let report = trainer.step(&batch, 1e-3).expect("a step");
        let t = start.elapsed().as_secs_f64();
        println!("step {step}: loss {:.4}, {:.0} tokens/s", report.loss, report.tokens as f64 / t);
        // The first step finds its memory.
        if step > 0 {
            (tokens, clock, work) = (tokens + report.tokens, clock + t, work + processor_time() - worked);
        }
    }
    let tokens = tokens as f64;
    println!("{:.0} tokens/s, {:.0} tokens per second of processor time", tokens / clock, tokens / work);
}
