//! Decoding does not allocate: once warm, neither the runner over a real model nor the sampler nor the engine around them
//! takes memory for a token.

use std::path::Path;

use fathom_core::rng::Rng;
use fathom_core::{DType, LatentForm, Precision};
use fathom_cpu::{Cpu, CpuOptions};
use fathom_engine::sampler::History;
use fathom_engine::{
    Event, Flow, Id, Meter, ModelRunner, Request, Runner, RunnerInfo, RunnerOptions, Sampler, Sampling, ScriptedRunner,
    Speculation, StepOutput, Worker, WorkerOptions,
};
use fathom_model::{BLOCK, Batch, Logits, Model, Options};
use fathom_testkit::alloc::{CountingAllocator, in_process, on_this_thread};

#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator;

fn sampled() -> Sampling {
    Sampling {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.9,
        min_p: 0.01,
        repetition_penalty: 1.1,
        presence_penalty: 0.1,
        frequency_penalty: 0.1,
        logit_bias: vec![(3, -1.0), (4, 1.0)],
    }
}

/// A greedy and a sampled sequence decode 100 tokens each on the real backend, worker threads counted too.
fn decode(name: &str, precision: Precision, kv: DType) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name);
    let model = Model::open(&dir, &Options::default()).unwrap();
    let cpu = Cpu::new(CpuOptions { threads: Some(2), precision, ..CpuOptions::default() }).unwrap();
    let decoder = model.load(cpu, &mut |_, _| {}).unwrap();
    let options = RunnerOptions { context: None, cache_tokens: Some(8 * BLOCK), kv, drafts: false };
    let mut runner = ModelRunner::new(decoder, options).unwrap();
    let vocab = runner.info().vocab;
    let (mut batch, mut out, mut sampler) = (Batch::new(BLOCK), StepOutput::default(), Sampler::new(vocab));
    let (mut rng, mut top) = (Rng::new(1, 0), Vec::with_capacity(20));
    let samplings = [Sampling::default(), sampled()];
    let mut histories = [History::new(vocab, &samplings[0], &[1]), History::new(vocab, &samplings[1], &[1])];
    let mut newest = [1, 2];
    let tables = [[0, 1, 2, 3], [4, 5, 6, 7]];
    let mut step = |position: usize| {
        batch.clear();
        for (token, table) in newest.iter().zip(&tables) {
            batch.push(&[*token], position, table, LatentForm::Absorbed, Logits::Last);
        }
        runner.step(&batch, &mut out).unwrap();
        for i in 0..2 {
            newest[i] = sampler.sample(out.row_mut(i), &histories[i], &samplings[i], &mut rng).unwrap();
            sampler.logprobs(out.row(i), newest[i], 20, &mut top).unwrap();
            histories[i].push(newest[i]);
        }
    };
    (0..130).for_each(&mut step);
    let ((), usage) = in_process(|| (130..230).for_each(&mut step));
    assert_eq!(usage.calls, 0, "{name}, {precision:?}, {}: allocations in 100 steps", kv.name());
}

#[test]
fn decoding_takes_no_memory() {
    // In one test, because the count is the process's.
    for name in ["qwen2", "deepseek_v2_lite", "deepseek_v3_fp8_mtp"] {
        decode(name, Precision::Exact, DType::F32);
        decode(name, Precision::Fast, DType::F16);
        decode(name, Precision::Fast, DType::Q8_0);
    }
    a_step_of_the_worker_takes_no_memory();
}

fn a_step_of_the_worker_takes_no_memory() {
    for speculation in [Speculation::Off, Speculation::Head, Speculation::Lookup { ngram: 1, ahead: 3 }] {
        let info = RunnerInfo {
            vocab: 500,
            context: 4096,
            block_tokens: 64,
            blocks: 300,
            latent: true,
            drafts: true,
            pictures: None,
        };
        let options = WorkerOptions { speculation, ..WorkerOptions::default() };
        let mut worker = Worker::new(Box::new(ScriptedRunner::new(info, 2)), options, Meter::none()).unwrap();
        for i in 0..3 {
            let request = Request {
                sampling: if i == 0 { Sampling::default() } else { sampled() },
                logprobs: (i > 1).then_some(5),
                ..Request::new((0..30).collect())
            };
            worker.submit(Id(i), request, Box::new(|_: Event<'_>| Flow::Continue)).unwrap();
        }
        (0..400).for_each(|_| assert!(worker.step().unwrap()));
        // Every 64th token a sequence fills a block, which is then entered in the prefix cache.
        let (mut quiet, mut calls) = (0, 0);
        for _ in 0..400 {
            let (worked, usage) = on_this_thread(|| worker.step().unwrap());
            assert!(worked);
            quiet += usize::from(usage.calls == 0);
            calls += usage.calls;
        }
        println!("{speculation:?}: {quiet} of 400 steps without, {calls} allocations");
        assert!(quiet >= 350, "{speculation:?}: {quiet} of 400 steps without, {calls} allocations");
        assert_eq!(worker.stats().running, 3);
    }
}
