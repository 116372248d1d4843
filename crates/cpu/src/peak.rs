//! How much arithmetic this machine does when nothing waits for memory: the ceiling of prefill.

use std::hint::black_box;
use std::time::{Duration, Instant};

use fathom_core::Result;

use crate::Pool;
use crate::isa::Level;
use crate::simd::{Isa, Kernel, LANES, Levels, Quants, Simd};

/// How long each rate is measured.
const TIME: Duration = Duration::from_millis(70);
/// Steps over the operands, which lie in the first-level cache.
const STEPS: usize = 16;

/// Operations per second of all threads together, a multiply-add counted as two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Dot products of bytes, as the kernels for quantised weights use them.
    pub int8: f64,
    /// Dot products of bfloat16; where the instructions have none, they are made of others.
    pub bf16: f64,
    /// Multiply-adds of binary32.
    pub f32: f64,
}

/// What is multiplied: small numbers that the compiler does not know.
#[derive(Clone)]
struct Operands {
    bytes: [[u8; 64]; STEPS],
    pairs: [[u16; 32]; STEPS],
    numbers: [[f32; LANES]; STEPS],
    small: [[i8; 4]; STEPS],
    quants: [Quants<1>; STEPS],
    factors: [f32; STEPS],
}

impl Operands {
    fn new() -> Self {
        Operands {
            bytes: std::array::from_fn(|i| [i as u8; 64]),
            pairs: [[0x3f80; 32]; STEPS],
            numbers: [[0.5; LANES]; STEPS],
            small: std::array::from_fn(|i| [i as i8; 4]),
            quants: std::array::from_fn(|i| Quants { digits: [[[i as i8; 4]; 8]], ..Quants::ZERO }),
            factors: [0.25; STEPS],
        }
    }
}

/// A tile of `W` weights times `X` activations, over and over: as many sums in flight as stay in registers.
struct Int8<'a, const W: usize, const X: usize>(&'a Operands, usize);

impl<const W: usize, const X: usize> Kernel for Int8<'_, W, X> {
    type Out = i32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> i32 {
        let mut acc = [[s.splat_i(0); X]; W];
        for _ in 0..self.1 {
            // Asked anew every time, so that no product can be computed once for all.
            let o = black_box(self.0);
            for k in 0..STEPS {
                let w: [S::B; W] = std::array::from_fn(|i| s.load_b(&o.bytes[(k + i) % STEPS]));
                for x in 0..X {
                    let factor = o.small[(k + x) % STEPS];
                    for (acc, w) in acc.iter_mut().zip(w) {
                        acc[x] = s.dot4_small(acc[x], w, factor);
                    }
                }
            }
        }
        s.sum_i(acc.into_iter().flatten().fold(s.splat_i(0), |a, b| s.add_i(a, b)))
    }
}

/// Four bits of weights at a time, as most quantised ones have, which some machines multiply quicker.
struct Nibbles<'a>(&'a Operands, usize);

impl<S: Simd> Levels<S> for Nibbles<'_> {
    const BITS: u32 = 4;
    const OFFSET: i32 = 0;
    #[inline(always)]
    fn group(&self, s: S, g: usize) -> S::B {
        s.load_b(&self.0.bytes[(self.1 + g) % STEPS])
    }
}

/// A block of 32 columns of such weights times `T` activations.
struct Int4<'a, const T: usize>(&'a Operands, usize);

impl<const T: usize> Kernel for Int4<'_, T> {
    type Out = i32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> i32 {
        let mut acc = [s.splat_i(0); T];
        for _ in 0..self.1 {
            let o = black_box(self.0);
            for k in 0..STEPS {
                let x: [&Quants<1>; T] = std::array::from_fn(|i| &o.quants[(k + i) % STEPS]);
                for (acc, [sum]) in acc.iter_mut().zip(s.dots::<_, 1, 1, T>(&Nibbles(o, k), x)) {
                    *acc = s.add_i(*acc, sum);
                }
            }
        }
        s.sum_i(acc.into_iter().fold(s.splat_i(0), |a, b| s.add_i(a, b)))
    }
}

/// The same over bfloat16.
struct Bf16<'a, const W: usize, const X: usize>(&'a Operands, usize);

impl<const W: usize, const X: usize> Kernel for Bf16<'_, W, X> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut acc = [[s.zero(); X]; W];
        for _ in 0..self.1 {
            let o = black_box(self.0);
            for k in 0..STEPS {
                let w: [S::B; W] = std::array::from_fn(|i| s.load_pairs(&o.pairs[(k + i) % STEPS]));
                for x in 0..X {
                    let factor = s.splat_word(o.factors[(k + x) % STEPS].to_bits());
                    for (acc, w) in acc.iter_mut().zip(w) {
                        acc[x] = s.dot2_bf16(acc[x], w, factor);
                    }
                }
            }
        }
        s.sum(acc.into_iter().flatten().fold(s.zero(), |a, b| s.add(a, b)))
    }
}

/// The same over binary32.
struct F32<'a, const W: usize, const X: usize>(&'a Operands, usize);

impl<const W: usize, const X: usize> Kernel for F32<'_, W, X> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut acc = [[s.zero(); X]; W];
        for _ in 0..self.1 {
            let o = black_box(self.0);
            for k in 0..STEPS {
                let w: [S::F; W] = std::array::from_fn(|i| s.load(&o.numbers[(k + i) % STEPS]));
                for x in 0..X {
                    let factor = s.splat(o.factors[(k + x) % STEPS]);
                    for (acc, w) in acc.iter_mut().zip(w) {
                        acc[x] = s.fma(w, factor, acc[x]);
                    }
                }
            }
        }
        s.sum(acc.into_iter().flatten().fold(s.zero(), |a, b| s.add(a, b)))
    }
}

/// The best rate of several passes of a kernel that is told how many rounds to make, each of `products` multiply-adds per lane
/// and step.
fn rate<K: Kernel>(pool: &Pool, isa: Isa, products: usize, kernel: impl Fn(usize) -> K + Sync) -> f64 {
    let tasks = 4 * pool.threads();
    let pass = |rounds: usize| {
        let start = Instant::now();
        pool.run(tasks, |_| {
            black_box(isa.run(kernel(rounds)));
        });
        start.elapsed().as_secs_f64()
    };
    // So many rounds that a pass takes some milliseconds.
    let mut rounds = 64;
    while rounds < 1 << 24 && pass(rounds) < 2e-3 {
        rounds *= 2;
    }
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < TIME {
        best = best.min(pass(rounds));
    }
    2.0 * (tasks * rounds * STEPS * LANES * products) as f64 / best.max(1e-9)
}

/// What the pool's threads compute together at this level of instructions, operands in registers and the first-level cache.
///
/// Takes about half a second.
///
/// # Errors
/// If the level is not present.
pub fn arithmetic_peak(pool: &Pool, level: Level) -> Result<Peak> {
    let (_, isa) = Level::choose(Some(level))?;
    let o = &Operands::new();
    Ok(Peak {
        // Two shapes each, of which the narrow one suits machines with few registers.
        int8: rate(pool, isa, 12 * 4, |n| Int8::<3, 4>(o, n))
            .max(rate(pool, isa, 6 * 4, |n| Int8::<1, 6>(o, n)))
            .max(rate(pool, isa, 4 * 32, |n| Int4::<4>(o, n))),
        bf16: rate(pool, isa, 12 * 2, |n| Bf16::<3, 4>(o, n)).max(rate(pool, isa, 6 * 2, |n| Bf16::<1, 6>(o, n))),
        f32: rate(pool, isa, 12, |n| F32::<3, 4>(o, n)).max(rate(pool, isa, 6, |n| F32::<1, 6>(o, n))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_computes_something() {
        let pool = Pool::new(1).unwrap();
        for level in Level::present() {
            let peak = arithmetic_peak(&pool, level).unwrap();
            // Between a tenth of an operation and a thousand a nanosecond, in any build.
            for rate in [peak.int8, peak.bf16, peak.f32] {
                assert!((1e6..1e13).contains(&rate), "{}: {peak:?}", level.name());
            }
        }
    }
}
