//! How fast this machine reads memory: the ceiling of decoding.

use std::time::Instant;

use fathom_core::Result;
use memmap2::MmapMut;

use crate::isa::Level;
use crate::simd::{Isa, Kernel, Simd};
use crate::{Pool, memory};

/// Bytes read per pass: far more than any cache holds.
const BYTES: usize = 1 << 29;
/// Bytes per task.
const TASK: usize = 1 << 20;

/// Touches all bytes, with as many loads in flight as the machine takes.
struct Read<'a>(&'a [u8]);

impl Kernel for Read<'_> {
    type Out = i32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> i32 {
        let mut acc = [s.splat_b(0); 4];
        let lines = self.0.as_chunks::<64>().0;
        for group in lines.as_chunks::<4>().0 {
            for (a, line) in acc.iter_mut().zip(group) {
                *a = s.or(*a, s.load_b(line));
            }
        }
        let all = s.or(s.or(acc[0], acc[1]), s.or(acc[2], acc[3]));
        s.sum_i(s.dot4_small(s.splat_i(0), s.and(all, s.splat_b(1)), [1; 4]))
    }
}

/// Half a gigabyte in huge pages, to be read again and again: a machine that is shared reads faster in one minute than in the
/// next, so its bandwidth is measured between the things that are compared with it.
pub struct BandwidthProbe {
    memory: MmapMut,
    isa: Isa,
}

impl BandwidthProbe {
    /// Bytes that a probe holds as long as it lives.
    pub const BYTES: usize = BYTES;

    /// Takes the memory and writes it once.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new(pool: &Pool) -> Result<Self> {
        let (_, isa) = Level::choose(None)?;
        let mut memory = memory::zeroes(BYTES)?;
        pool.chunks_mut(&mut memory, TASK, |_, part| part.fill(1));
        Ok(BandwidthProbe { memory, isa })
    }

    /// Bytes per second that the pool's threads read together in one pass, some hundredths of a second.
    pub fn measure(&self, pool: &Pool) -> f64 {
        let start = Instant::now();
        pool.run(BYTES / TASK, |task| {
            let part = &self.memory[task.index * TASK..(task.index + 1) * TASK];
            assert_eq!(self.isa.run(Read(part)), 64, "invariant: memory holds what was written");
        });
        BYTES as f64 / start.elapsed().as_secs_f64()
    }
}

/// Bytes per second that the pool's threads read together: the best of several passes over memory in huge pages.
///
/// Takes half a gigabyte for its time, about a second.
///
/// # Errors
/// If there is no memory for it.
pub fn read_bandwidth(pool: &Pool) -> Result<f64> {
    let probe = BandwidthProbe::new(pool)?;
    Ok((0..6).map(|_| probe.measure(pool)).fold(0.0, f64::max))
}
