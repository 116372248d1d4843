//! The engine over real decoders: whatever is batched, cut into chunks, cached, guessed ahead or preempted, tokens and
//! log-probabilities are those of a run alone, bit for bit; and greedy text is the recorded one.

use std::path::Path;
use std::sync::{Arc, Mutex};

use fathom_core::reference::Reference;
use fathom_core::{Backend, DType, Precision};
use fathom_cpu::{Cpu, CpuOptions};
use fathom_engine::golden::{Golden, find};
use fathom_engine::speculate::DraftPolicy;
use fathom_engine::{
    Event, Flow, Id, Meter, ModelRunner, Request, Reuse, Runner, RunnerInfo, RunnerOptions, Sampling, ScheduleOptions,
    Speculation, StepOutput, Usage, Worker, WorkerOptions,
};
use fathom_model::{Batch, Model};

fn golden(name: &str) -> Golden {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name);
    find(&dir).unwrap().into_iter().find(|g| g.model == dir).unwrap()
}

/// What computes, and the cache that goes with it.
#[derive(Clone)]
struct Device {
    name: &'static str,
    backend: Arc<dyn Backend>,
    kv: DType,
}

fn devices() -> [Device; 3] {
    let cpu = |precision| -> Arc<dyn Backend> {
        Cpu::new(CpuOptions { threads: Some(2), precision, ..CpuOptions::default() }).unwrap()
    };
    [
        Device { name: "reference", backend: Arc::new(Reference::new()), kv: DType::F32 },
        Device { name: "cpu, exact", backend: cpu(Precision::Exact), kv: DType::F32 },
        Device { name: "cpu, fast", backend: cpu(Precision::Fast), kv: DType::F16 },
    ]
}

struct Setting {
    step_tokens: usize,
    reuse: Reuse,
    speculation: Speculation,
    cache_tokens: usize,
}

impl Setting {
    /// Whole prompts, nothing shared, nothing guessed.
    fn plain() -> Self {
        Setting { step_tokens: 4096, reuse: Reuse::Off, speculation: Speculation::Off, cache_tokens: 4096 }
    }
}

fn worker(golden: &Golden, device: &Device, setting: &Setting) -> Worker {
    let model = Model::open(&golden.model, &golden.options).unwrap();
    let decoder = model.load(Arc::clone(&device.backend), &mut |_, _| {}).unwrap();
    let drafts = setting.speculation == Speculation::Head;
    let options = RunnerOptions { context: None, cache_tokens: Some(setting.cache_tokens), kv: device.kv, drafts };
    let runner = ModelRunner::new(decoder, options).unwrap();
    let schedule = ScheduleOptions { step_tokens: setting.step_tokens, sequences: 8, reuse: setting.reuse };
    // Drafts are never given up here, right or wrong.
    let drafts = DraftPolicy { sequences: 8, worth: 0.0, rest: 0 };
    let options = WorkerOptions { schedule, step_seconds: None, speculation: setting.speculation, drafts };
    Worker::new(Box::new(runner), options, Meter::none()).unwrap()
}

/// An answer: tokens, log-probabilities, usage.
#[derive(Clone, Debug, Default)]
struct Answer {
    tokens: Vec<u32>,
    bits: Vec<u32>,
    usage: Usage,
}

impl PartialEq for Answer {
    fn eq(&self, other: &Self) -> bool {
        (&self.tokens, &self.bits) == (&other.tokens, &other.bits)
    }
}

/// Runs requests, each submitted after as many steps as its place times `every`.
fn run(worker: &mut Worker, requests: &[Request], every: usize) -> Vec<Answer> {
    let answers: Vec<Arc<Mutex<(Answer, bool)>>> = requests.iter().map(|_| Arc::default()).collect();
    let mut step = 0;
    loop {
        for (i, request) in requests.iter().enumerate() {
            if i * every == step || (every == 0 && step == 0) {
                let answer = Arc::clone(&answers[i]);
                let sink = move |event: Event<'_>| {
                    let (answer, ended) = &mut *answer.lock().unwrap();
                    match event {
                        Event::Token { token, logprob, .. } => {
                            answer.tokens.push(token);
                            answer.bits.push(logprob.unwrap().to_bits());
                        }
                        Event::Finished { usage, .. } => (answer.usage, *ended) = (usage, true),
                        Event::Failed(error) => panic!("{error}"),
                        _ => {}
                    }
                    Flow::Continue
                };
                worker.submit(Id(i as u64), request.clone(), Box::new(sink)).unwrap();
            }
        }
        worker.step().unwrap();
        step += 1;
        if answers.iter().all(|a| a.lock().unwrap().1) {
            let stats = worker.stats();
            assert_eq!(stats.idle_blocks, stats.blocks, "no block leaked");
            return answers.iter().map(|a| a.lock().unwrap().0.clone()).collect();
        }
    }
}

/// Greedy and sampled continuations of the recorded prompts.
fn requests(golden: &Golden, tokens: usize) -> Vec<Request> {
    let mut all = Vec::new();
    for (i, prompt) in golden.prompts.iter().filter(|p| p.ids.len() > 1).enumerate() {
        let mut request = Request::new(prompt.ids.clone());
        (request.max_tokens, request.logprobs) = (Some(tokens), Some(0));
        all.push(request.clone());
        request.sampling = Sampling { temperature: 0.9, top_p: 0.95, repetition_penalty: 1.1, ..Sampling::default() };
        request.seed = Some(i as u64);
        all.push(request);
    }
    all
}

fn alone(golden: &Golden, device: &Device, requests: &[Request]) -> Vec<Answer> {
    let mut worker = worker(golden, device, &Setting::plain());
    requests.iter().map(|r| run(&mut worker, std::slice::from_ref(r), 1).remove(0)).collect()
}

#[test]
fn greedy_text_is_the_recorded_one() {
    let [reference, exact, _] = devices();
    for name in ["qwen2", "llama", "qwen3", "deepseek_v2_lite", "deepseek_v3_fp8_mtp"] {
        let golden = golden(name);
        for device in [&reference, &exact] {
            let setting = Setting { step_tokens: 50, reuse: Reuse::Exact, ..Setting::plain() };
            let mut worker = worker(&golden, device, &setting);
            let mut compared = 0;
            for prompt in &golden.prompts {
                let Some(greedy) = &prompt.greedy else { continue };
                let mut request = Request::new(prompt.ids.clone());
                (request.max_tokens, request.logprobs) = (Some(greedy.len()), Some(0));
                let got = run(&mut worker, &[request], 1);
                assert_eq!(&got[0].tokens, greedy, "{name}, {}, {}", prompt.name, device.name);
                compared += 1;
            }
            assert!(compared > 0, "{name} has recorded continuations");
        }
    }
}

/// Everything at once, on plain attention, on latent attention with experts, and with a drafting head.
#[test]
fn together_is_as_alone_bit_for_bit() {
    for name in ["qwen2", "deepseek_v2_lite", "deepseek_v3_fp8_mtp"] {
        for device in devices() {
            together_is_as_alone(name, &device);
        }
    }
}

fn together_is_as_alone(name: &str, device: &Device) {
    let golden = golden(name);
    let requests = requests(&golden, 20);
    let want = alone(&golden, device, &requests);
    let mut speculations = vec![Speculation::Off, Speculation::Lookup { ngram: 1, ahead: 3 }];
    if name.ends_with("mtp") {
        speculations.push(Speculation::Head);
    }
    for speculation in speculations {
        let what = format!("{name}, {}, {speculation:?}", device.name);
        // Chunks of odd length, shared prefixes; the second time everything is found in the cache.
        let setting = Setting { step_tokens: 37, reuse: Reuse::Exact, speculation, ..Setting::plain() };
        let mut worker = worker(&golden, device, &setting);
        assert!(run(&mut worker, &requests, 2) == want, "{what}");
        let again = run(&mut worker, &requests, 0);
        assert!(again == want, "{what}, cached");
        let sum = |count: fn(&Usage) -> usize| again.iter().map(|a| count(&a.usage)).sum::<usize>();
        assert!(sum(|u| u.cached) > sum(|u| u.prompt) / 2, "{what}: the cache was used");
        let (drafted, accepted) = (sum(|u| u.drafted), sum(|u| u.accepted));
        println!("{what}: {accepted} of {drafted} drafts right");
        assert_eq!(drafted > 0, speculation != Speculation::Off);
    }
}

/// A runner that keeps the logits of the last draft.
struct Listening(ModelRunner, Arc<Mutex<Vec<f32>>>);

impl Runner for Listening {
    fn info(&self) -> &RunnerInfo {
        self.0.info()
    }

    fn step(&mut self, batch: &Batch, out: &mut StepOutput) -> fathom_engine::Result<()> {
        self.0.step(batch, out)
    }

    fn hidden(&mut self, row: u32, out: &mut Vec<f32>) -> fathom_engine::Result<()> {
        self.0.hidden(row, out)
    }

    fn copy_block(&mut self, from: u32, to: u32, tokens: usize) -> fathom_engine::Result<()> {
        self.0.copy_block(from, to, tokens)
    }

    fn draft(&mut self, batch: &Batch, rows: &[u32], out: &mut StepOutput) -> fathom_engine::Result<()> {
        self.0.draft(batch, rows, out)?;
        *self.1.lock().unwrap() = (0..out.rows()).flat_map(|i| out.row(i).to_vec()).collect();
        Ok(())
    }
}

/// The engine drives the drafting head as the reference does: after a prompt in chunks and its greedy token, the recorded logits.
#[test]
fn the_first_draft_is_the_recorded_one() {
    let golden = golden("deepseek_v3_fp8_mtp");
    let mut compared = 0;
    for prompt in &golden.prompts {
        let Some(want) = &prompt.first_draft else { continue };
        let model = Model::open(&golden.model, &golden.options).unwrap();
        let decoder = model.load(Arc::new(Reference::new()), &mut |_, _| {}).unwrap();
        let options = RunnerOptions { context: None, cache_tokens: Some(512), kv: DType::F32, drafts: true };
        let heard = Arc::default();
        let runner = Listening(ModelRunner::new(decoder, options).unwrap(), Arc::clone(&heard));
        let schedule = ScheduleOptions { step_tokens: 10, ..ScheduleOptions::default() };
        let options = WorkerOptions { schedule, speculation: Speculation::Head, ..WorkerOptions::default() };
        let mut worker = Worker::new(Box::new(runner), options, Meter::none()).unwrap();
        let request = Request { max_tokens: Some(9), ..Request::new(prompt.ids.clone()) };
        let first = Arc::new(Mutex::new(false));
        let came = Arc::clone(&first);
        let sink = move |event: Event<'_>| {
            *came.lock().unwrap() |= matches!(event, Event::Token { .. });
            Flow::Continue
        };
        worker.submit(Id(0), request, Box::new(sink)).unwrap();
        while !*first.lock().unwrap() {
            worker.step().unwrap();
        }
        let got = heard.lock().unwrap();
        let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(got.len() == want.len() && worst <= 2e-4, "{}: {worst}", prompt.name);
        compared += 1;
    }
    assert!(compared > 0, "there are recorded drafts");
}

/// A cache that does not hold them all: sequences are preempted, and nobody can tell from the text.
#[test]
fn preempted_is_as_uninterrupted_bit_for_bit() {
    let [_, exact, fast] = devices();
    for (name, device) in
        [("qwen2", &exact), ("qwen2", &fast), ("deepseek_v2_lite", &exact), ("deepseek_v2_lite", &fast)]
    {
        let golden = golden(name);
        let mut requests = requests(&golden, 150);
        requests.retain(|r| r.prompt.len() < 40);
        requests.truncate(4);
        let want = alone(&golden, device, &requests);
        for reuse in [Reuse::Off, Reuse::Exact] {
            let setting = Setting { step_tokens: 64, reuse, cache_tokens: 5 * 64, ..Setting::plain() };
            let got = run(&mut worker(&golden, device, &setting), &requests, 1);
            assert!(got == want, "{name}, {}, {reuse:?}", device.name);
            let preempted: usize = got.iter().map(|a| a.usage.preempted).sum();
            assert!(preempted > 0, "{name}: the cache was too small");
        }
    }
}

/// The next turn of a conversation takes over what it may: with latent attention an answer was computed in another form
/// than a prompt is, so exact reuse ends before it.
#[test]
fn a_second_turn_takes_over_the_first() {
    let [_, exact, _] = devices();
    for (name, latent) in [("qwen2", false), ("deepseek_v2_lite", true)] {
        let golden = golden(name);
        let prompt = golden.prompts.iter().find(|p| p.ids.len() > 64).unwrap();
        let mut first = Request::new(prompt.ids.clone());
        (first.max_tokens, first.logprobs) = (Some(100), Some(0));
        for reuse in [Reuse::Exact, Reuse::AnyForm] {
            let mut worker = worker(&golden, &exact, &Setting { reuse, ..Setting::plain() });
            let answer = run(&mut worker, std::slice::from_ref(&first), 1).remove(0);
            let mut second = first.clone();
            second.prompt.extend(&answer.tokens);
            second.prompt.extend([5, 6, 7]);
            second.max_tokens = Some(10);
            let got = run(&mut worker, std::slice::from_ref(&second), 1).remove(0);
            // The last token of the answer was never computed.
            let all = prompt.ids.len() + answer.tokens.len() - 1;
            let want = if latent && reuse == Reuse::Exact { prompt.ids.len() } else { all };
            assert_eq!(got.usage.cached, want, "{name}, {reuse:?}");
            let alone = alone(&golden, &exact, std::slice::from_ref(&second)).remove(0);
            assert_eq!(got.tokens, alone.tokens, "{name}, {reuse:?}");
            assert!(got == alone || (latent && reuse == Reuse::AnyForm), "{name}, {reuse:?}: bit for bit");
        }
    }
}
