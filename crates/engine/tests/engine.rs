//! The engine's thread: queue, cancellation, pausing, failure and shutdown, as a caller sees them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use fathom_engine::{
    Engine, EngineOptions, Error, Event, Finish, Flow, Priority, Request, Result, Runner, RunnerInfo, ScheduleOptions,
    ScriptedRunner, Shutdown, StepOutput, WorkerOptions,
};
use fathom_model::Batch;

/// A runner whose steps wait at a gate, and that can be told to fail or to give bad logits for a token.
struct Gated {
    inner: ScriptedRunner,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    steps: Mutex<u64>,
    fail: AtomicBool,
}

impl Gate {
    fn set(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }
}

const POISON: u32 = 7;

impl Runner for Gated {
    fn info(&self) -> &RunnerInfo {
        self.inner.info()
    }

    fn step(&mut self, batch: &Batch, out: &mut StepOutput) -> Result<()> {
        let mut closed = self.gate.closed.lock().unwrap();
        while *closed {
            closed = self.gate.opened.wait(closed).unwrap();
        }
        drop(closed);
        *self.gate.steps.lock().unwrap() += 1;
        if self.gate.fail.load(Ordering::SeqCst) {
            return Err(Error::Model("the device fell off".to_owned()));
        }
        self.inner.step(batch, out)?;
        for (i, &row) in batch.logit_rows.iter().enumerate() {
            if batch.tokens[row as usize] == POISON {
                out.row_mut(i)[3] = f32::NAN;
            }
        }
        Ok(())
    }

    fn hidden(&mut self, row: u32, out: &mut Vec<f32>) -> Result<()> {
        self.inner.hidden(row, out)
    }

    fn copy_block(&mut self, from: u32, to: u32, tokens: usize) -> Result<()> {
        self.inner.copy_block(from, to, tokens)
    }

    fn draft(&mut self, batch: &Batch, rows: &[u32], out: &mut StepOutput) -> Result<()> {
        self.inner.draft(batch, rows, out)
    }
}

#[derive(Debug, PartialEq)]
enum Told {
    Accepted,
    Token(u32),
    Finished(Finish, usize),
    Failed(Error),
}

fn told(event: &Event<'_>) -> Told {
    match event {
        Event::Accepted { .. } => Told::Accepted,
        Event::Token { token, .. } => Told::Token(*token),
        Event::Finished { reason, usage } => Told::Finished(*reason, usage.completion),
        Event::Failed(error) => Told::Failed(error.clone()),
        Event::Prompt { .. } | Event::Embedding(_) | Event::Drawn { .. } | Event::Picture { .. } => {
            unreachable!("not asked for")
        }
    }
}

fn sink(to: Sender<Told>) -> impl FnMut(Event<'_>) -> Flow + Send {
    move |event| if to.send(told(&event)).is_ok() { Flow::Continue } else { Flow::Stop }
}

fn start(queue: usize) -> (Engine, Arc<Gate>) {
    let info = RunnerInfo {
        vocab: 16,
        context: 4000,
        block_tokens: 4,
        blocks: 2000,
        latent: false,
        drafts: false,
        pictures: None,
    };
    let gate = Arc::<Gate>::default();
    let runner = Gated { inner: ScriptedRunner::new(info, 0), gate: Arc::clone(&gate) };
    let worker = WorkerOptions {
        schedule: ScheduleOptions { step_tokens: 16, sequences: 2, ..ScheduleOptions::default() },
        ..WorkerOptions::default()
    };
    (Engine::start(Box::new(runner), EngineOptions { queue, worker, ..EngineOptions::default() }).unwrap(), gate)
}

/// A request whose answer does not end by itself in the time of a test; no token in it is the poison.
fn long() -> Request {
    let mut request = Request::new(vec![1, 2, 3]);
    request.sampling.logit_bias = vec![(POISON, f32::NEG_INFINITY)];
    request
}

fn short(tokens: usize) -> Request {
    Request { max_tokens: Some(tokens), ..long() }
}

fn next(from: &Receiver<Told>) -> Told {
    from.recv_timeout(Duration::from_secs(20)).expect("an event in time")
}

fn last(from: &Receiver<Told>) -> Told {
    std::iter::from_fn(|| Some(next(from))).find(|t| matches!(t, Told::Finished(..) | Told::Failed(_))).unwrap()
}

fn wait_for(what: &str, test: impl Fn() -> bool) {
    let start = Instant::now();
    while !test() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_full_queue_refuses_and_recovers() {
    let (engine, gate) = start(3);
    gate.set(true);
    let (to, from) = channel();
    // The thread takes what it finds at the start of a step and then waits at the gate.
    engine.submit(short(2), sink(to.clone())).unwrap();
    wait_for("first admitted", || engine.stats().waiting == 0 || from.try_recv().is_ok());
    let mut taken = 0;
    let refusal = loop {
        match engine.submit(short(2), sink(to.clone())) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken <= 3, "the queue is bounded");
    };
    assert_eq!(refusal, Error::QueueFull { limit: 3 });
    gate.set(false);
    for _ in 0..=taken {
        assert_eq!(last(&from), Told::Finished(Finish::Length, 2));
    }
    engine.submit(short(2), sink(to)).unwrap();
    assert_eq!(last(&from), Told::Finished(Finish::Length, 2));
}

#[test]
fn cancel_ends_one_within_a_step_and_no_other() {
    let (engine, gate) = start(8);
    let (to_a, from_a) = channel();
    let (to_b, from_b) = channel();
    let a = engine.submit(long(), sink(to_a)).unwrap();
    engine.submit(long(), sink(to_b)).unwrap();
    while !matches!(next(&from_a), Told::Token(_)) {}
    while !matches!(next(&from_b), Told::Token(_)) {}
    gate.set(true);
    std::thread::sleep(Duration::from_millis(5));
    let before = *gate.steps.lock().unwrap();
    engine.cancel(a);
    gate.set(false);
    assert!(matches!(last(&from_a), Told::Finished(Finish::Cancelled, _)));
    wait_for("a's place given back", || engine.stats().running == 1);
    assert!(*gate.steps.lock().unwrap() >= before);
    // At the step that was under way it may still have got a token; b goes on.
    drain(&from_b);
    assert!(matches!(next(&from_b), Told::Token(_)));
    // One that waits for its turn can be cancelled too, and so can one that has ended.
    let (to_c, from_c) = channel();
    engine.submit(long(), sink(to_c)).unwrap();
    let (to_d, from_d) = channel();
    let d = engine.submit(Request { priority: Priority::Batch, ..long() }, sink(to_d)).unwrap();
    while !matches!(next(&from_c), Told::Token(_)) {}
    engine.cancel(d);
    engine.cancel(a);
    assert_eq!(next(&from_d), Told::Finished(Finish::Cancelled, 0));
    // A dropped receiver ends its sequence.
    drop(from_c);
    wait_for("c's place given back", || engine.stats().running == 1);
}

fn drain(from: &Receiver<Told>) {
    while from.try_recv().is_ok() {}
}

#[test]
fn pause_holds_and_resume_goes_on() {
    let (engine, _) = start(8);
    let (to, from) = channel();
    let plain = engine.submit(short(6), sink(to)).unwrap();
    let want: Vec<Told> = from.iter().collect();
    assert_eq!(want.len(), 8, "accepted, six tokens, the end");
    let (to, from) = channel();
    let pausing = move |event: Event<'_>| {
        to.send(told(&event)).unwrap();
        if matches!(event, Event::Token { .. }) { Flow::Pause } else { Flow::Continue }
    };
    let id = engine.submit(short(6), pausing).unwrap();
    assert_ne!(id, plain);
    for (i, want) in want.iter().enumerate() {
        let got = next(&from);
        assert_eq!(got, *want);
        // Tokens 1 to 5 hold it up; the end follows the sixth unasked.
        if (1..=5).contains(&i) {
            assert!(from.recv_timeout(Duration::from_millis(10)).is_err(), "it holds");
            engine.resume(id);
        }
    }
}

#[test]
fn bad_logits_end_one_sequence_only() {
    let (engine, _) = start(8);
    let (to, from) = channel();
    let (to_other, from_other) = channel();
    engine.submit(short(500), sink(to_other)).unwrap();
    engine.submit(Request { prompt: vec![1, POISON], ..short(5) }, sink(to)).unwrap();
    assert_eq!(last(&from), Told::Failed(Error::Logits { position: 1, why: "not a number" }));
    assert_eq!(last(&from_other), Told::Finished(Finish::Length, 500));
}

#[test]
fn a_failed_model_ends_everything_with_its_error() {
    let (engine, gate) = start(8);
    let (to, from) = channel();
    engine.submit(long(), sink(to)).unwrap();
    while !matches!(next(&from), Told::Token(_)) {}
    gate.fail.store(true, Ordering::SeqCst);
    assert_eq!(last(&from), Told::Failed(Error::Model("the device fell off".to_owned())));
    wait_for("refusal", || engine.submit(long(), |_: Event<'_>| Flow::Continue) == Err(Error::Stopped));
}

#[test]
fn shutdown_drains_or_cancels() {
    let (engine, gate) = start(8);
    gate.set(true);
    let (to, from) = channel();
    for _ in 0..4 {
        engine.submit(short(5), sink(to.clone())).unwrap();
    }
    drop(to);
    gate.set(false);
    engine.shutdown(Shutdown::Drain);
    let ends: Vec<Told> = from.iter().filter(|t| matches!(t, Told::Finished(..))).collect();
    assert_eq!(ends, [const { Told::Finished(Finish::Length, 5) }; 4]);

    let (engine, _) = start(8);
    let (to, from) = channel();
    for _ in 0..4 {
        engine.submit(long(), sink(to.clone())).unwrap();
    }
    drop(to);
    engine.shutdown(Shutdown::Now);
    let ends: Vec<Told> = from.iter().filter(|t| matches!(t, Told::Finished(..))).collect();
    assert!(ends.iter().all(|end| matches!(end, Told::Finished(Finish::Cancelled, _))), "{ends:?}");
}

#[test]
fn bad_requests_are_refused_with_both_numbers() {
    let (engine, _) = start(8);
    let refuse = |request: Request| engine.submit(request, |_: Event<'_>| Flow::Continue).unwrap_err();
    assert_eq!(refuse(Request::new(vec![])), Error::EmptyPrompt);
    let long = Error::ContextTooLong { prompt_tokens: 4000, context_tokens: 4000 };
    assert_eq!(refuse(Request::new(vec![1; 4000])), long);
    assert!(long.to_string().contains("4000"));
    assert_eq!(refuse(Request::new(vec![1, 16])), Error::TokenOutOfRange { place: "prompt", token: 16, vocab: 16 });
    let stop = Request { stop_tokens: vec![99], ..Request::new(vec![1]) };
    assert_eq!(refuse(stop), Error::TokenOutOfRange { place: "stop tokens", token: 99, vocab: 16 });
    let top = Request { logprobs: Some(17), ..Request::new(vec![1]) };
    assert!(matches!(refuse(top), Error::Option { name: "logprobs", .. }));
    let info = RunnerInfo {
        vocab: 16,
        context: 4000,
        block_tokens: 4,
        blocks: 2,
        latent: false,
        drafts: false,
        pictures: None,
    };
    let small = Engine::start(Box::new(ScriptedRunner::new(info, 0)), EngineOptions::default()).unwrap();
    let refused = small.submit(Request::new(vec![1; 8]), |_: Event<'_>| Flow::Continue);
    assert_eq!(refused, Err(Error::CacheTooSmall { prompt_tokens: 8, cache_tokens: 8 }));
    // What fits ends at the end of the cache, and says so.
    let (to, from) = channel();
    small.submit(Request::new(vec![1; 5]), sink(to)).unwrap();
    assert_eq!(last(&from), Told::Finished(Finish::Length, 3));
}
