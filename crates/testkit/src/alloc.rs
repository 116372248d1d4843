//! An allocator that counts, for tests that promise not to allocate, or not much.
//!
//! Install it in a test binary with `#[global_allocator] static ALLOC: CountingAllocator = CountingAllocator;`.
//! [`on_this_thread`] is exact and safe beside other tests; [`in_process`] sees worker threads too, so nothing else
//! may run meanwhile. The only `unsafe` of this crate: it forwards to the system's allocator.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed};

/// The system's allocator, counted.
pub struct CountingAllocator;

/// What a piece of code allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Calls that took memory or made it grow.
    pub calls: usize,
    /// Most bytes held at once, over those held at the start.
    pub peak_bytes: usize,
}

#[derive(Clone, Copy)]
struct Count {
    calls: usize,
    live: isize,
    peak: isize,
}

thread_local! {
    static HERE: Cell<Count> = const { Cell::new(Count { calls: 0, live: 0, peak: 0 }) };
}
static CALLS: AtomicUsize = AtomicUsize::new(0);
static LIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

fn count(calls: usize, bytes: isize) {
    CALLS.fetch_add(calls, Relaxed);
    PEAK.fetch_max(LIVE.fetch_add(bytes, Relaxed) + bytes, Relaxed);
    // A thread that is ending has no counter any more; the process still has.
    let _ = HERE.try_with(|here| {
        let Count { calls: before, live, peak } = here.get();
        let live = live + bytes;
        here.set(Count { calls: before + calls, live, peak: peak.max(live) });
    });
}

// SAFETY: every call goes to the system's allocator with the arguments it came with; counting touches only
// integers and allocates nothing.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        // SAFETY: the caller keeps `GlobalAlloc`'s contract, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(0, -(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(1, new_size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

/// What `f` allocates on this thread.
///
/// # Panics
/// If [`CountingAllocator`] is not installed: a count of zero would prove nothing.
pub fn on_this_thread<T>(f: impl FnOnce() -> T) -> (T, Usage) {
    let before = HERE.get().calls;
    std::hint::black_box(Box::new(before));
    assert!(HERE.get().calls > before, "invariant: the test binary installs CountingAllocator");
    let start = Count { peak: HERE.get().live, ..HERE.get() };
    HERE.set(start);
    let value = f();
    let end = HERE.get();
    (value, Usage { calls: end.calls - start.calls, peak_bytes: (end.peak - start.live) as usize })
}

/// What the whole process allocates while `f` runs.
///
/// # Panics
/// If [`CountingAllocator`] is not installed.
pub fn in_process<T>(f: impl FnOnce() -> T) -> (T, Usage) {
    on_this_thread(|| ());
    let (calls, live) = (CALLS.load(Relaxed), LIVE.load(Relaxed));
    PEAK.store(live, Relaxed);
    let value = f();
    let usage = Usage { calls: CALLS.load(Relaxed) - calls, peak_bytes: (PEAK.load(Relaxed) - live) as usize };
    (value, usage)
}
