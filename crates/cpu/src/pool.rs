//! The resident thread pool: one per process, made for regions of a few microseconds.
//!
//! A region is `run(n, f)`: every thread has a share of the tasks `0..n`, successive ones, because successive tasks read successive
//! memory; it claims them one by one, then those that others have left, so a slow or stolen core does fewer of them. The caller works
//! too. Idle workers spin for about 50 µs, then park. Nothing is allocated per region.
//! What a task computes may depend on its number, never on who runs it: that keeps results the same for
//! any number of threads.
//!
//! All lifetime tricks of the crate are here: a borrowed closure that other threads call, and [`Rect`]s, the
//! disjoint rectangles of an output that tasks write to.

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker looks for the next region before it parks.
const SPIN: Duration = Duration::from_micros(50);

/// What a task is told.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// Number of the task.
    pub index: usize,
    /// Which thread runs it, below [`Pool::threads`]: picks scratch memory, must not influence results.
    pub worker: usize,
}

/// The closure of the region under way, its lifetime forgotten.
#[derive(Clone, Copy)]
struct Job {
    call: *const (dyn Fn(Task) + Sync),
    tasks: usize,
}

/// A value on a cache line of its own.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    /// Unclaimed tasks of each thread's share of the region under way; 0 between regions.
    left: Box<[Line<AtomicUsize>]>,
    /// Finished tasks of the region.
    done: Line<AtomicUsize>,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    parked: Box<[Line<AtomicBool>]>,
    stop: AtomicBool,
}

// SAFETY: `job` is written only between regions (see `run`) and read only after a task of the region was claimed.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is only followed while the region that published it is under way.
unsafe impl Send for Shared {}

impl Shared {
    /// Where the share of thread `worker` ends, of so many tasks; it begins where the one before ends.
    fn end(&self, tasks: usize, worker: usize) -> usize {
        tasks * (worker + 1) / self.left.len()
    }

    /// Claims and runs tasks until none is left: the own ones, then those of the others.
    fn work(&self, worker: usize) {
        for share in (worker..self.left.len()).chain(0..worker) {
            self.work_on(share, worker);
        }
    }

    /// Claims and runs tasks of one thread's share until none is left.
    fn work_on(&self, share: usize, worker: usize) {
        let unclaimed = &self.left[share].0;
        let mut left = unclaimed.load(Ordering::Acquire);
        while left != 0 {
            if let Err(now) = unclaimed.compare_exchange_weak(left, left - 1, Ordering::Acquire, Ordering::Acquire) {
                left = now;
                continue;
            }
            // SAFETY: the claimed task is not done yet, so its region is still under way: `run` has published the job before
            // the count and will neither return nor write again before `done` has counted this task.
            let job = unsafe { (*self.job.get()).expect("invariant: tasks are only left while a region runs") };
            let index = self.end(job.tasks, share) - left;
            // SAFETY: as above; `run` keeps the closure alive until then.
            let call = unsafe { &*job.call };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| call(Task { index, worker }))) {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
            }
            self.done.0.fetch_add(1, Ordering::Release);
            left = unclaimed.load(Ordering::Acquire);
        }
    }

    /// The life of worker `worker` (1 or more; 0 is the caller).
    fn live(&self, worker: usize) {
        let (parked, left) = (&self.parked[worker - 1].0, &self.left[worker].0);
        loop {
            let since = Instant::now();
            let mut spins = 0u32;
            while left.load(Ordering::Relaxed) == 0 && !self.stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
                spins += 1;
                if spins.is_multiple_of(64) && since.elapsed() > SPIN {
                    parked.store(true, Ordering::SeqCst);
                    fence(Ordering::SeqCst);
                    // The caller looks at `parked` after it has published tasks; we look at the tasks after we have set it.
                    if left.load(Ordering::SeqCst) == 0 && !self.stop.load(Ordering::SeqCst) {
                        thread::park();
                    }
                    parked.store(false, Ordering::SeqCst);
                    break;
                }
            }
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.work(worker);
        }
    }
}

/// A pool of resident threads.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held during a region. Who finds it taken (a nested or concurrent call) runs its tasks alone.
    busy: Mutex<()>,
    workers: Vec<Thread>,
    handles: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool in which `threads` threads work: the caller and `threads - 1` resident ones.
    ///
    /// # Errors
    /// If the system refuses a thread.
    ///
    /// # Panics
    /// If `threads` is 0.
    pub fn new(threads: usize) -> std::io::Result<Arc<Pool>> {
        assert!(threads > 0, "invariant: a pool has at least the caller's thread");
        let shared = Arc::new(Shared {
            left: (0..threads).map(|_| Line(AtomicUsize::new(0))).collect(),
            done: Line(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            parked: (1..threads).map(|_| Line(AtomicBool::new(false))).collect(),
            stop: AtomicBool::new(false),
        });
        let mut pool = Pool { shared, busy: Mutex::new(()), workers: Vec::new(), handles: Vec::new() };
        for worker in 1..threads {
            let shared = pool.shared.clone();
            let handle = thread::Builder::new().name(format!("cpu-{worker}")).spawn(move || shared.live(worker))?;
            pool.workers.push(handle.thread().clone());
            pool.handles.push(handle);
        }
        Ok(Arc::new(pool))
    }

    /// Threads that take part, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f` for tasks `0..tasks` and returns when all are done.
    ///
    /// # Panics
    /// With the first panic of a task, after all others are done.
    pub fn run(&self, tasks: usize, f: impl Fn(Task) + Sync) {
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(|index| f(Task { index, worker: 0 }));
        }
        let Ok(busy) = self.busy.try_lock() else {
            return (0..tasks).for_each(|index| f(Task { index, worker: 0 }));
        };
        let call: &(dyn Fn(Task) + Sync) = &f;
        // SAFETY: only the lifetime changes. No worker follows the pointer after this function has returned (see below).
        let call = unsafe { std::mem::transmute::<&(dyn Fn(Task) + Sync), &'static (dyn Fn(Task) + Sync)>(call) };
        let shared = &*self.shared;
        // SAFETY: `busy` is held and the last region is over, so no task is left and nobody reads the job.
        unsafe { *shared.job.get() = Some(Job { call, tasks }) };
        shared.done.0.store(0, Ordering::Relaxed);
        let mut first = 0;
        for (share, left) in shared.left.iter().enumerate() {
            let end = shared.end(tasks, share);
            left.0.store(end - first, Ordering::SeqCst);
            first = end;
        }
        fence(Ordering::SeqCst);
        for (worker, (parked, left)) in self.workers.iter().zip(shared.parked.iter().zip(&shared.left[1..])) {
            if left.0.load(Ordering::Relaxed) != 0 && parked.0.load(Ordering::SeqCst) {
                worker.unpark();
            }
        }
        shared.work(0);
        let mut spins = 0u32;
        while shared.done.0.load(Ordering::Acquire) != tasks {
            spins += 1;
            if spins > 4096 { thread::yield_now() } else { std::hint::spin_loop() }
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(busy);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Runs `f(first, chunk)` for consecutive chunks of `data`, each `len` long but the last; `first` is the index of the
    /// chunk's first element.
    pub fn chunks_mut<T: Send>(&self, data: &mut [T], len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        let (base, total) = (SendPtr(data.as_mut_ptr()), data.len());
        let len = len.max(1);
        self.run(total.div_ceil(len), |task| {
            let first = task.index * len;
            let n = len.min(total - first);
            // SAFETY: chunks of different tasks do not overlap, each task runs once, and `data` stays borrowed until `run` returns.
            f(first, unsafe { std::slice::from_raw_parts_mut(base.get().add(first), n) });
        });
    }

    /// Cuts outputs into rectangles and runs a task for each: bands of rows, and within a band blocks of columns.
    pub fn rects<T: Send + Sync>(&self, grid: &mut Grid<'_, T>, f: impl Fn(Task, Rect<'_, T>) + Sync) {
        let grid = &*grid;
        self.run(grid.tasks(), |task| {
            // SAFETY: rectangles of different tasks do not overlap, each task runs once, and the outputs stay borrowed by
            // `grid` until `run` returns.
            let rect = unsafe { grid.rect(task.index) };
            f(task, rect);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.workers.iter().for_each(Thread::unpark);
        for handle in self.handles.drain(..) {
            handle.join().expect("invariant: workers catch the panics of their tasks");
        }
    }
}

/// A pointer that may cross threads, because those who use it write to disjoint places.
struct SendPtr<T>(*mut T);
// SAFETY: see the uses: disjoint ranges of a borrowed slice of `Send` elements.
unsafe impl<T: Send> Sync for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SendPtr<T> {}
impl<T> SendPtr<T> {
    /// Through a method, so that closures capture the wrapper and not the bare pointer.
    fn get(&self) -> *mut T {
        self.0
    }
}

/// Outputs a [`Grid`] can hold: as many as one call of `linear` can have.
const MOST: usize = 4;

/// How row-major outputs are cut into rectangles.
pub struct Grid<'a, T = f32> {
    /// Data, columns, elements from one row to the next.
    outs: [Option<(SendPtr<T>, usize, usize)>; MOST],
    /// Bands of rows: band b is rows `bands[b]..bands[b + 1]`; empty means one band of all rows.
    bands: &'a [usize],
    rows: usize,
    block: usize,
    life: PhantomData<&'a mut [T]>,
}

impl<'a, T> Grid<'a, T> {
    /// No output yet; `rows` rows in one band; blocks of `block` columns.
    pub fn new(rows: usize, block: usize) -> Self {
        assert!(block > 0, "invariant: a block has columns");
        Grid { outs: [const { None }; MOST], bands: &[], rows, block, life: PhantomData }
    }

    /// Cuts the rows at `bands`, which ascend.
    ///
    /// # Panics
    /// If they do not ascend or reach past the last row.
    pub fn bands(mut self, bands: &'a [usize]) -> Self {
        assert!(
            bands.is_sorted() && bands.last().is_none_or(|&b| b <= self.rows),
            "invariant: bands ascend in the rows"
        );
        self.bands = bands;
        self
    }

    /// Adds an output `[rows, cols]`.
    ///
    /// # Panics
    /// If the data has another length, or this is the fifth.
    pub fn out(self, data: &'a mut [T], cols: usize) -> Self {
        self.padded(data, cols, cols)
    }

    /// Adds an output `[rows, cols]` whose rows begin `stride` elements apart.
    ///
    /// # Panics
    /// If the data has another length, rows overlap, or this is the fifth.
    pub fn padded(mut self, data: &'a mut [T], cols: usize, stride: usize) -> Self {
        assert!(cols <= stride && data.len() == self.rows * stride, "invariant: an output is rows × cols");
        let slot = self.outs.iter_mut().find(|o| o.is_none()).expect("invariant: at most four outputs");
        *slot = Some((SendPtr(data.as_mut_ptr()), cols, stride));
        self
    }

    fn band_count(&self) -> usize {
        if self.bands.is_empty() { 1 } else { self.bands.len() - 1 }
    }

    fn band(&self, b: usize) -> Range<usize> {
        if self.bands.is_empty() { 0..self.rows } else { self.bands[b]..self.bands[b + 1] }
    }

    fn tasks(&self) -> usize {
        self.outs.iter().flatten().map(|o| o.1.div_ceil(self.block)).sum::<usize>() * self.band_count()
    }

    /// The rectangle of task `index`. All blocks of one band come before the next band, outputs in order.
    ///
    /// # Safety
    /// At most one rectangle per index may be alive.
    unsafe fn rect(&self, index: usize) -> Rect<'_, T> {
        let per_band = self.tasks() / self.band_count();
        let (band, mut block) = (index / per_band, index % per_band);
        let rows = self.band(band);
        for (which, (data, cols, stride)) in self.outs.iter().flatten().enumerate() {
            if block < cols.div_ceil(self.block) {
                let first = block * self.block;
                let width = self.block.min(cols - first);
                let (data, stride) = (data.get(), *stride);
                return Rect { out: which, band, rows, first, width, stride, corner: (0, 0), data, life: PhantomData };
            }
            block -= cols.div_ceil(self.block);
        }
        unreachable!("invariant: task numbers lie below the number of tasks")
    }
}

/// A task's part of an output: some rows, some columns.
pub struct Rect<'a, T = f32> {
    /// Which output.
    pub out: usize,
    /// Which band of rows.
    pub band: usize,
    /// The band's rows.
    pub rows: Range<usize>,
    /// First column.
    pub first: usize,
    /// Number of columns.
    pub width: usize,
    stride: usize,
    /// Row and column of the output that `data` begins with.
    corner: (usize, usize),
    data: *mut T,
    life: PhantomData<&'a mut [T]>,
}

impl<'a, T> Rect<'a, T> {
    /// Columns `first..` of some rows of an output that exist in `data` alone, `[rows, width]`.
    ///
    /// # Panics
    /// If the data has another length.
    pub fn apart(data: &'a mut [T], rows: Range<usize>, first: usize, width: usize) -> Self {
        assert_eq!(data.len(), rows.len() * width, "invariant: a rectangle is rows × width");
        let corner = (rows.start, first);
        Rect { out: 0, band: 0, rows, first, width, stride: width, corner, data: data.as_mut_ptr(), life: PhantomData }
    }

    /// Its columns, counted from the output's left.
    pub fn columns(&self) -> Range<usize> {
        self.first..self.first + self.width
    }

    /// The rectangle's part of row `row` (counted from the top of the output).
    ///
    /// # Panics
    /// If the row is not in the band.
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(self.rows.contains(&row), "invariant: a task writes only to its own rows");
        let at = (row - self.corner.0) * self.stride + self.first - self.corner.1;
        // SAFETY: the range lies in the output (checked when the grid or the rectangle was made), belongs to this rectangle
        // alone, and the borrow of `self` keeps it unique.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(at), self.width) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_in_each_of_many_regions() {
        for threads in 1..=4 {
            let pool = Pool::new(threads).unwrap();
            let counts: Vec<AtomicUsize> = (0..97).map(|_| AtomicUsize::new(0)).collect();
            for region in 0..2000 {
                let tasks = region % 98;
                pool.run(tasks, |t| {
                    assert!(t.worker < threads);
                    counts[t.index].fetch_add(1, Ordering::Relaxed);
                });
                if region % 500 == 0 {
                    thread::sleep(Duration::from_micros(200)); // lets the workers park
                }
            }
            for (i, c) in counts.iter().enumerate() {
                let expected = (0..2000).filter(|r| i < r % 98).count();
                assert_eq!(c.load(Ordering::Relaxed), expected, "task {i} with {threads} threads");
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for threads in 1..=4 {
            let pool = Pool::new(threads).unwrap();
            for bad in [0, 7, 19] {
                let caught =
                    catch_unwind(AssertUnwindSafe(|| pool.run(20, |t| assert_ne!(t.index, bad, "task {bad}"))));
                let text = caught.unwrap_err().downcast::<String>().unwrap();
                assert!(text.contains(&format!("task {bad}")), "{text}");
                let sum = AtomicUsize::new(0);
                pool.run(20, |t| {
                    sum.fetch_add(t.index, Ordering::Relaxed);
                });
                assert_eq!(sum.into_inner(), 190);
            }
        }
    }

    #[test]
    fn nested_and_concurrent_regions_end() {
        let pool = Pool::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        pool.run(5, |_| {
            pool.run(5, |t| {
                sum.fetch_add(t.index, Ordering::Relaxed);
            })
        });
        assert_eq!(sum.load(Ordering::Relaxed), 50);
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..200 {
                        pool.run(10, |t| {
                            sum.fetch_add(t.index, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 50 + 4 * 200 * 45);
    }

    #[test]
    fn chunks_and_rectangles_cover_their_output_once() {
        let pool = Pool::new(3).unwrap();
        for len in [0, 1, 16, 17, 1000] {
            let mut data = vec![0usize; len];
            pool.chunks_mut(&mut data, 16, |first, c| c.iter_mut().enumerate().for_each(|(i, v)| *v += first + i));
            assert!(data.iter().enumerate().all(|(i, &v)| v == i));
        }
        let (mut a, mut b) = (vec![0f32; 7 * 33], vec![0f32; 7 * 16]);
        let bands = [0, 2, 2, 7];
        let mut grid = Grid::new(7, 16).out(&mut a, 33).out(&mut b, 16).bands(&bands);
        pool.rects(&mut grid, |_, mut rect| {
            assert_eq!(rect.rows, bands[rect.band]..bands[rect.band + 1]);
            for row in rect.rows.clone() {
                let (first, out) = (rect.first, rect.out);
                rect.row(row)
                    .iter_mut()
                    .enumerate()
                    .for_each(|(i, v)| *v += (1000 * out + row * 100 + first + i) as f32);
            }
        });
        for row in 0..7 {
            assert!((0..33).all(|c| a[row * 33 + c] == (row * 100 + c) as f32));
            assert!((0..16).all(|c| b[row * 16 + c] == (1000 + row * 100 + c) as f32));
        }
    }
}
