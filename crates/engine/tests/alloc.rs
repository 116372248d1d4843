//! Decoding does not allocate: once warm, a step of the worker takes no memory, whatever the sampling.

use fathom_engine::{
    Event, Flow, Id, Meter, Request, RunnerInfo, Sampling, ScriptedRunner, Speculation, Worker, WorkerOptions,
};
use fathom_testkit::alloc::{CountingAllocator, on_this_thread};

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

#[test]
fn a_decoding_step_takes_no_memory() {
    for speculation in [Speculation::Off, Speculation::Head, Speculation::Lookup { ngram: 1, ahead: 3 }] {
        let info = RunnerInfo { vocab: 500, context: 4096, block_tokens: 64, blocks: 300, latent: true, drafts: true };
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
