//! One plain thread that owns the model, and the handle by which everybody else reaches it.
//!
//! Callers leave messages in an inbox and get events through their sinks; the thread empties the inbox between steps. The
//! inbox takes a bounded number of requests, so load turns into refusals at the door, not into memory.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::event::Sink;
use crate::meter::Meter;
use crate::request::{Id, Request};
use crate::worker::{Stats, Worker, WorkerOptions};
use crate::{Error, Result, Runner, RunnerInfo};

/// How the engine works.
#[derive(Debug)]
pub struct EngineOptions {
    /// Requests that may wait.
    pub queue: usize,
    /// How the model's worker works.
    pub worker: WorkerOptions,
    /// Where energy figures come from.
    pub meter: Meter,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions { queue: 256, worker: WorkerOptions::default(), meter: Meter::none() }
    }
}

/// How the engine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shutdown {
    /// Takes no more requests, finishes those it has.
    Drain,
    /// Cancels everything.
    Now,
}

/// Messages to the engine's thread.
#[derive(Default)]
struct Inbox {
    requests: VecDeque<(Id, Request, Box<dyn Sink>)>,
    cancels: Vec<Id>,
    resumes: Vec<Id>,
    shutdown: Option<Shutdown>,
    next_id: u64,
    stats: Stats,
    /// The thread is gone.
    dead: bool,
}

struct Shared {
    inbox: Mutex<Inbox>,
    arrived: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        // No code that can panic runs under the lock, and the inbox is valid between any two statements.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut Inbox)) {
        change(&mut self.lock());
        self.arrived.notify_one();
    }
}

/// A running engine. Dropping it cancels everything and waits for the thread.
pub struct Engine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    info: RunnerInfo,
    queue: usize,
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the options ask for what the runner cannot do, or if the system gives no thread.
    pub fn start(runner: Box<dyn Runner>, options: EngineOptions) -> Result<Self> {
        let info = runner.info().clone();
        let worker = Worker::new(runner, options.worker, options.meter)?;
        let shared = Arc::new(Shared { inbox: Mutex::default(), arrived: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("fathom-engine".to_owned())
            .spawn(move || run(worker, &theirs))
            .map_err(|e| Error::Model(format!("no thread for the engine: {e}")))?;
        Ok(Engine { shared, thread: Some(thread), info, queue: options.queue })
    }

    /// What the runner is.
    pub fn info(&self) -> &RunnerInfo {
        &self.info
    }

    /// Queues a request. Its events go to `sink`, the last of which is `Finished` or `Failed`.
    ///
    /// # Errors
    /// If the request asks for what cannot be done, if the queue is full, or if the engine has stopped.
    pub fn submit(&self, request: Request, sink: impl Sink + 'static) -> Result<Id> {
        request.check(&self.info)?;
        let mut inbox = self.shared.lock();
        if inbox.dead || inbox.shutdown.is_some() {
            return Err(Error::Stopped);
        }
        if inbox.requests.len() + inbox.stats.waiting >= self.queue {
            return Err(Error::QueueFull { limit: self.queue });
        }
        let id = Id(inbox.next_id);
        inbox.next_id += 1;
        inbox.requests.push_back((id, request, Box::new(sink)));
        drop(inbox);
        self.shared.arrived.notify_one();
        Ok(id)
    }

    /// Ends a request before the next step. One that has ended already is left alone.
    pub fn cancel(&self, id: Id) {
        self.shared.tell(|inbox| inbox.cancels.push(id));
    }

    /// Lets a request go on whose sink answered [`Flow::Pause`](crate::Flow::Pause).
    pub fn resume(&self, id: Id) {
        self.shared.tell(|inbox| inbox.resumes.push(id));
    }

    /// What it has done and is doing, as of the last step.
    pub fn stats(&self) -> Stats {
        let inbox = self.shared.lock();
        Stats { waiting: inbox.stats.waiting + inbox.requests.len(), ..inbox.stats }
    }

    /// Ends the engine and waits for its thread.
    pub fn shutdown(mut self, how: Shutdown) {
        self.end(how);
    }

    fn end(&mut self, how: Shutdown) {
        self.shared.tell(|inbox| inbox.shutdown = inbox.shutdown.max(Some(how)));
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed, and its sinks are gone with it.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end(Shutdown::Now);
    }
}

/// Marks the engine dead however its thread ends, and drops the sinks of requests that nobody will serve.
struct LastWords<'a>(&'a Shared);

impl Drop for LastWords<'_> {
    fn drop(&mut self) {
        let mut inbox = self.0.lock();
        inbox.dead = true;
        let orphans = std::mem::take(&mut inbox.requests);
        drop(inbox);
        drop(orphans);
    }
}

fn run(mut worker: Worker, shared: &Shared) {
    let _last_words = LastWords(shared);
    let mut idle = false;
    loop {
        let mut inbox = shared.lock();
        inbox.stats = worker.stats();
        while idle
            && inbox.requests.is_empty()
            && inbox.cancels.is_empty()
            && inbox.resumes.is_empty()
            && inbox.shutdown.is_none_or(|how| how == Shutdown::Drain && inbox.stats.running + inbox.stats.waiting > 0)
        {
            inbox = shared.arrived.wait(inbox).unwrap_or_else(PoisonError::into_inner);
        }
        let requests = std::mem::take(&mut inbox.requests);
        let cancels = std::mem::take(&mut inbox.cancels);
        let resumes = std::mem::take(&mut inbox.resumes);
        let shutdown = inbox.shutdown;
        // Requests on their way to the worker still count as waiting.
        inbox.stats.waiting += requests.len();
        drop(inbox);

        for (id, request, sink) in requests {
            worker.submit(id, request, sink).expect("invariant: only checked requests are queued");
        }
        resumes.into_iter().for_each(|id| worker.resume(id));
        cancels.into_iter().for_each(|id| worker.cancel(id));
        match shutdown {
            Some(Shutdown::Now) => return worker.end_all(None),
            Some(Shutdown::Drain) if worker.stats().running + worker.stats().waiting == 0 => return,
            _ => {}
        }
        match worker.step() {
            Ok(worked) => idle = !worked,
            Err(error) => return worker.end_all(Some(error)),
        }
    }
}
