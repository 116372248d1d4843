//! Thousands of random schedules over the scripted runner: whatever arrives, is cancelled, paused, preempted, shared or
//! guessed ahead, every sequence's tokens are those of its lone run, and no cache block is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use fathom_core::rng::Rng;
use fathom_engine::sampler::History;
use fathom_engine::speculate::DraftPolicy;
use fathom_engine::{
    Event, Finish, Flow, Id, Meter, Priority, Reasoning, Request, Reuse, RunnerInfo, Sampler, Sampling,
    ScheduleOptions, ScriptedRunner, Speculation, Usage, Worker, WorkerOptions,
};

/// What one request saw.
#[derive(Default, Debug)]
struct Seen {
    accepted: bool,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    prompt: Vec<(usize, f32)>,
    stop: bool,
    end: Option<(Finish, Usage)>,
    paused: bool,
}

struct Case {
    request: Request,
    arrives: usize,
    cancel_at: Option<usize>,
    pause_every: usize,
    stop_after: usize,
    seen: Arc<Mutex<Seen>>,
}

fn chance(rng: &mut Rng, one_in: u32) -> bool {
    rng.below(one_in) == 0
}

fn any_sampling(rng: &mut Rng) -> Sampling {
    if chance(rng, 2) {
        return Sampling::default();
    }
    Sampling {
        temperature: 0.5 + rng.uniform() as f32,
        top_k: if chance(rng, 2) { 5 } else { 0 },
        top_p: if chance(rng, 2) { 0.9 } else { 1.0 },
        min_p: if chance(rng, 3) { 0.05 } else { 0.0 },
        repetition_penalty: if chance(rng, 2) { 1.3 } else { 1.0 },
        presence_penalty: if chance(rng, 3) { 0.4 } else { 0.0 },
        frequency_penalty: if chance(rng, 3) { 0.2 } else { 0.0 },
        logit_bias: if chance(rng, 3) { vec![(1, -1.5), (2, 0.5)] } else { Vec::new() },
    }
}

fn any_case(rng: &mut Rng, info: &RunnerInfo, stems: &[Vec<u32>], calm: bool) -> Case {
    let vocab = info.vocab as u32;
    let longest = info.longest();
    // Prompts share stems cut at random places, or even whole.
    let stem = &stems[rng.below(stems.len() as u32) as usize];
    let mut prompt = stem[..rng.below(stem.len() as u32 + 1) as usize].to_vec();
    prompt.extend((0..rng.below(6)).map(|_| rng.below(vocab)));
    prompt.truncate(longest - 1);
    if prompt.is_empty() {
        prompt.push(rng.below(vocab));
    }
    let mut request = Request::new(prompt);
    request.max_tokens = (!chance(rng, 5)).then(|| rng.below(24) as usize);
    request.sampling = any_sampling(rng);
    request.seed = Some(u64::from(rng.next_u32()));
    request.logprobs = chance(rng, 3).then_some(2);
    request.prompt_logprobs = chance(rng, 6).then_some(0);
    request.priority = if chance(rng, 3) { Priority::Batch } else { Priority::Interactive };
    request.salt = vec![rng.below(2) as u8];
    if chance(rng, 3) {
        request.stop_tokens = vec![rng.below(vocab), rng.below(vocab)];
    }
    if chance(rng, 4) {
        let budget = chance(rng, 2).then(|| rng.below(6) as usize);
        request.reasoning = Some(Reasoning {
            open: 3,
            close: 4,
            inside: chance(rng, 2),
            may_open: false,
            budget,
            closing: vec![5, 4, 6],
        });
    }
    Case {
        request,
        arrives: rng.below(30) as usize,
        cancel_at: (!calm && chance(rng, 5)).then(|| rng.below(80) as usize),
        pause_every: if !calm && chance(rng, 5) { 1 + rng.below(5) as usize } else { 0 },
        stop_after: if !calm && chance(rng, 8) { 1 + rng.below(10) as usize } else { 0 },
        seen: Arc::default(),
    }
}

/// The request alone, without cache, chunks or drafts, straight from the definitions.
fn lone(runner: &ScriptedRunner, request: &Request, longest: usize) -> (Vec<u32>, Finish, Vec<f32>, usize) {
    let (prompt, vocab) = (request.prompt.len(), runner.lone(&[0], 1).len());
    let mut tokens = request.prompt.clone();
    let mut history = History::new(vocab, &request.sampling, &tokens);
    let mut sampler = Sampler::new(vocab);
    let mut rng = Rng::new(request.seed.unwrap(), 0);
    let limit = request.max_tokens.map_or(longest, |n| longest.min(prompt + n));
    let (mut logprobs, mut inside, mut spent) = (Vec::new(), request.reasoning.as_ref().is_some_and(|r| r.inside), 0);
    let mut forced: Vec<u32> = Vec::new();
    let force = |forced: &mut Vec<u32>, inside: bool, spent: usize| {
        if let Some(r) = request.reasoning.as_ref().filter(|r| inside && r.budget == Some(spent))
            && forced.is_empty()
        {
            *forced = r.closing.clone();
        }
    };
    force(&mut forced, inside, spent);
    while tokens.len() < limit {
        let mut logits = runner.lone(&tokens, prompt);
        let token = if forced.is_empty() {
            sampler.sample(&mut logits, &history, &request.sampling, &mut rng).unwrap()
        } else {
            forced.remove(0)
        };
        logprobs.push(sampler.logprobs(&logits, token, 0, &mut Vec::new()).unwrap());
        tokens.push(token);
        history.push(token);
        if let Some(r) = &request.reasoning {
            if token == r.open {
                inside = true;
            } else if token == r.close {
                inside = false;
            } else if inside {
                spent += 1;
                force(&mut forced, inside, spent);
            }
        }
        if request.stop_tokens.contains(&token) {
            return (tokens.split_off(prompt), Finish::Stop, logprobs, spent);
        }
    }
    (tokens.split_off(prompt), Finish::Length, logprobs, spent)
}

fn sink(case: &Case) -> impl FnMut(Event<'_>) -> Flow + Send + 'static {
    let (seen, pause_every, stop_after) = (Arc::clone(&case.seen), case.pause_every, case.stop_after);
    move |event| {
        let mut seen = seen.lock().unwrap();
        assert!(seen.end.is_none(), "nothing follows the end");
        match event {
            Event::Accepted { .. } => {
                assert!(!std::mem::replace(&mut seen.accepted, true), "accepted once");
            }
            Event::Embedding(_) | Event::Drawn { .. } | Event::Picture { .. } => panic!("not asked for"),
            Event::Prompt { position, logprob, .. } => seen.prompt.push((position, logprob)),
            Event::Token { token, stop, logprob, top } => {
                assert!(seen.accepted && !seen.paused && !seen.stop);
                seen.tokens.push(token);
                seen.stop = stop;
                assert_eq!(top.len(), if logprob.is_some() { 2 } else { 0 });
                seen.logprobs.extend(logprob);
                if seen.tokens.len() == stop_after {
                    return Flow::Stop;
                }
                if pause_every > 0 && seen.tokens.len().is_multiple_of(pause_every) {
                    seen.paused = true;
                    return Flow::Pause;
                }
            }
            Event::Finished { reason, usage } => seen.end = Some((reason, usage)),
            Event::Failed(error) => panic!("{error}"),
        }
        Flow::Continue
    }
}

fn check(case: &Case, runner: &ScriptedRunner, longest: usize, what: &str) {
    let (want, reason, logprobs, reasoning) = lone(runner, &case.request, longest);
    let seen = case.seen.lock().unwrap();
    let (finish, usage) = seen.end.unwrap_or_else(|| panic!("{what}: no end"));
    assert!(want.starts_with(&seen.tokens), "{what}: {:?} is no beginning of {want:?}", seen.tokens);
    assert_eq!(usage.completion, seen.tokens.len(), "{what}");
    assert_eq!(usage.prompt, case.request.prompt.len());
    assert!(usage.cached < usage.prompt && usage.accepted <= usage.drafted, "{what}: {usage:?}");
    if finish == Finish::Cancelled {
        assert!(case.cancel_at.is_some() || seen.tokens.len() == case.stop_after, "{what}");
    } else {
        assert_eq!((&seen.tokens, finish, usage.reasoning), (&want, reason, reasoning), "{what}");
        let prompt: Vec<_> = (1..case.request.prompt.len())
            .filter(|_| case.request.prompt_logprobs.is_some())
            .map(|i| {
                let logits = runner.lone(&case.request.prompt[..i], i);
                let token = case.request.prompt[i];
                (i, Sampler::new(logits.len()).logprobs(&logits, token, 0, &mut Vec::new()).unwrap())
            })
            .collect();
        assert_eq!(seen.prompt, prompt, "{what}");
    }
    if case.request.logprobs.is_some() {
        assert_eq!(seen.logprobs, logprobs[..seen.tokens.len()], "{what}");
    }
}

#[derive(Default, Debug)]
struct Totals {
    tokens: usize,
    preempted: usize,
    cached: usize,
    accepted: usize,
    rejected: usize,
    cancelled: usize,
}

fn schedule(seed: u64, totals: &mut Totals) {
    let rng = &mut Rng::new(seed, 1);
    let block_tokens = 1 + rng.below(6) as usize;
    let info = RunnerInfo {
        vocab: 8 + rng.below(8) as usize,
        context: 12 + rng.below(50) as usize,
        block_tokens,
        blocks: 2 + rng.below(30) as usize + 8 / block_tokens,
        latent: chance(rng, 2),
        drafts: true,
        pictures: None,
    };
    let longest = info.longest();
    let speculation = match rng.below(3) {
        0 => Speculation::Off,
        1 => Speculation::Head,
        _ => Speculation::Lookup { ngram: 1 + rng.below(2) as usize, ahead: 1 + rng.below(4) as usize },
    };
    let options = WorkerOptions {
        schedule: ScheduleOptions {
            step_tokens: 1 + rng.below(40) as usize,
            sequences: 1 + rng.below(7) as usize,
            reuse: if chance(rng, 3) { Reuse::Off } else { Reuse::Exact },
        },
        step_seconds: None,
        speculation,
        drafts: DraftPolicy { sequences: rng.below(8) as usize, worth: 0.2, rest: 10 },
    };
    let runner = ScriptedRunner::new(info.clone(), u64::from(rng.below(4)));
    let mut worker = Worker::new(Box::new(runner.clone()), options.clone(), Meter::none()).unwrap();
    let stems: Vec<Vec<u32>> =
        (0..3).map(|_| (0..rng.below(longest as u32)).map(|_| rng.below(info.vocab as u32)).collect()).collect();
    let calm = chance(rng, 4);
    let cases: Vec<Case> = (0..1 + rng.below(10)).map(|_| any_case(rng, &info, &stems, calm)).collect();
    let what = |i: usize| format!("schedule {seed}, request {i}, {info:?}, {options:?}, {:?}", cases[i].request);
    let mut step = 0;
    loop {
        for (i, case) in cases.iter().enumerate() {
            if case.arrives == step {
                worker.submit(Id(i as u64), case.request.clone(), Box::new(sink(case))).unwrap();
            }
            if case.cancel_at == Some(step) {
                worker.cancel(Id(i as u64));
            }
            let mut seen = case.seen.lock().unwrap();
            if seen.paused && chance(rng, 3) {
                seen.paused = false;
                worker.resume(Id(i as u64));
            }
        }
        let worked = worker.step().unwrap();
        let ended = cases.iter().filter(|c| c.seen.lock().unwrap().end.is_some()).count();
        if ended == cases.len() {
            break;
        }
        let held_up = cases.iter().any(|c| c.seen.lock().unwrap().paused) || step < 30;
        assert!(worked || held_up, "schedule {seed}: nothing to do, but {ended} of {} ended", cases.len());
        step += 1;
        assert!(step < 20_000, "schedule {seed} does not end: {:?}", worker.stats());
    }
    let stats = worker.stats();
    assert_eq!((stats.idle_blocks, stats.running, stats.waiting), (info.blocks, 0, 0), "schedule {seed}: leak");
    for (i, case) in cases.iter().enumerate() {
        check(case, &runner, longest, &what(i));
        let (finish, usage) = case.seen.lock().unwrap().end.unwrap();
        totals.tokens += usage.completion;
        totals.preempted += usage.preempted;
        totals.cached += usage.cached;
        totals.accepted += usage.accepted;
        totals.rejected += usage.drafted - usage.accepted;
        totals.cancelled += usize::from(finish == Finish::Cancelled);
    }
}

#[test]
fn every_schedule_gives_the_lone_tokens() {
    let mut totals = Totals::default();
    for seed in 0..4000 {
        schedule(seed, &mut totals);
    }
    // The test means something only if everything happened, often.
    let Totals { tokens, preempted, cached, accepted, rejected, cancelled } = totals;
    assert!(tokens > 100_000, "{totals:?}");
    assert!(preempted > 1_000 && cached > 10_000 && cancelled > 500, "{totals:?}");
    assert!(accepted > 1_000 && rejected > 1_000, "{totals:?}");
}

/// A worker over plain attention with blocks of 64, and a way to submit and to see who has got a token.
struct Bench {
    worker: Worker,
    first: Vec<Arc<AtomicBool>>,
    step: usize,
}

impl Bench {
    fn new(step_tokens: usize, blocks: usize) -> Self {
        let info = RunnerInfo {
            vocab: 50,
            context: 100_000,
            block_tokens: 64,
            blocks,
            latent: false,
            drafts: false,
            pictures: None,
        };
        let schedule = ScheduleOptions { step_tokens, ..ScheduleOptions::default() };
        let options = WorkerOptions { schedule, step_seconds: None, ..WorkerOptions::default() };
        let worker = Worker::new(Box::new(ScriptedRunner::new(info, 0)), options, Meter::none()).unwrap();
        Bench { worker, first: Vec::new(), step: 0 }
    }

    fn submit(&mut self, request: Request) {
        let first = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&first);
        let sink = move |event: Event<'_>| {
            seen.fetch_or(matches!(event, Event::Token { .. }), Ordering::Relaxed);
            Flow::Continue
        };
        self.worker.submit(Id(self.first.len() as u64), request, Box::new(sink)).unwrap();
        self.first.push(first);
    }

    /// Steps until a request has its first token; returns how many that took.
    fn until_first_token(&mut self, request: usize) -> usize {
        let start = self.step;
        while !self.first[request].load(Ordering::Relaxed) {
            assert!(self.worker.step().unwrap());
            self.step += 1;
        }
        self.step - start
    }
}

fn long_prompt(which: u32, tokens: u32) -> Request {
    Request { max_tokens: Some(40), ..Request::new((0..tokens).map(|i| (i * 7 + which * 13 + i * i) % 50).collect()) }
}

#[test]
fn a_short_request_overtakes_long_prompts() {
    let mut bench = Bench::new(256, 2000);
    (0..7).for_each(|i| bench.submit(long_prompt(i, 8000)));
    (0..3).for_each(|_| assert!(bench.worker.step().unwrap()));
    bench.submit(long_prompt(9, 100));
    assert!(bench.until_first_token(7) <= 2, "half of every step is for the shortest");
    // And the first of the long ones is not held up by the others.
    assert!(bench.until_first_token(0) <= 8000 / 128);
}

#[test]
fn a_group_computes_its_prompt_once() {
    let mut bench = Bench::new(256, 2000);
    (0..8).for_each(|_| bench.submit(long_prompt(1, 64 * 20 + 10)));
    for i in 0..8 {
        bench.until_first_token(i);
    }
    let stats = bench.worker.stats();
    // Its blocks once, its tail by each, and what the first decoded meanwhile.
    let most = 64 * 20 + 8 * (10 + bench.step);
    assert!(stats.rows as usize <= most, "{} rows, expected at most {most}", stats.rows);
}

#[test]
fn batch_work_yields_to_interactive_and_comes_back() {
    // Room for one of the two.
    let mut bench = Bench::new(256, 20);
    let batch = Request { priority: Priority::Batch, max_tokens: Some(200), ..long_prompt(1, 1000) };
    bench.submit(batch);
    bench.until_first_token(0);
    bench.submit(long_prompt(2, 900));
    assert!(bench.until_first_token(1) <= 5);
    assert_eq!((bench.worker.stats().running, bench.worker.stats().waiting), (1, 1), "the batch work waits");
    while bench.worker.step().unwrap() {}
    let stats = bench.worker.stats();
    assert_eq!((stats.ended, stats.preempted, stats.completion_tokens), (2, 1, 240));
    assert_eq!(stats.idle_blocks, 20);
}
