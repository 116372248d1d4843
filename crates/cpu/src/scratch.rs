//! Memory that tasks work in: one buffer per thread, grown before a region and never shrunk.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A buffer for each thread of a pool.
pub(crate) struct Scratch<T> {
    workers: Vec<Mutex<Vec<T>>>,
}

impl<T: Copy + Default> Scratch<T> {
    /// Empty buffers.
    pub(crate) fn new(threads: usize) -> Self {
        Scratch { workers: (0..threads).map(|_| Mutex::new(Vec::new())).collect() }
    }

    /// Makes every buffer at least `len` long. On the caller's thread before a region, so that which thread happens to
    /// claim a task never decides whether memory is allocated.
    pub(crate) fn reserve(&self, len: usize) {
        for w in &self.workers {
            let mut w = w.lock().unwrap_or_else(PoisonError::into_inner);
            if w.len() < len {
                w.resize(len, T::default());
            }
        }
    }

    /// The buffer of thread `worker`, for the length of a task.
    pub(crate) fn lock(&self, worker: usize) -> MutexGuard<'_, Vec<T>> {
        self.workers[worker].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
