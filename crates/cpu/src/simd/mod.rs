//! The vector operations that kernels are written in, and their implementation per instruction set.
//!
//! A kernel is written once, over [`Simd`]: 16 lanes on every machine (one AVX-512 register, two AVX2 registers, an array), so lanes,
//! order of additions and hence results do not depend on the width of the hardware. [`Isa::run`] compiles it once per
//! level, inside a function with the right target features. A level is a zero-sized token that only detection makes:
//! holding one proves that the instructions exist, which is what makes the safe methods sound.
//!
//! Kernels contain no `unsafe`: loads and stores take arrays of known size. Everything is `inline(always)`; a function that
//! was not inlined would be compiled without the features.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use half::f16;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// A block of 32 activations as whole numbers q, of one digit or two of base 128. A level writes and reads the second form as it likes
/// ([`Simd::set_quants`]).
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Quants<const D: usize> {
    /// `q = Σ_d digit_d·128^(D − 1 − d)`, the highest first: `[digit][group of four columns][column]`, none of them -128.
    pub(crate) digits: [[[i8; 4]; 8]; D],
    /// `Σ q` over either half; it wraps where an activation is not finite.
    pub(crate) sums: [i32; 2],
    /// If there is one digit, and for AVX2 alone: of either half, the sums over the first two columns of every group and over the last two.
    pub(crate) pairs: [[i16; 2]; 2],
}

impl<const D: usize> Quants<D> {
    /// Zeros.
    pub(crate) const ZERO: Self = Quants { digits: [[[0; 4]; 8]; D], sums: [0; 2], pairs: [[0; 2]; 2] };
}

/// A block of packed weights, before they are scaled: sixteen rows, 32 columns.
pub(crate) trait Levels<S: Simd> {
    /// Bits of a level, 4 to 6 or 8.
    const BITS: u32;
    /// The level that means zero; 128 if there are eight bits.
    const OFFSET: i32;
    /// Levels of group `g` of eight: four columns, row l's in lane l.
    fn group(&self, s: S, g: usize) -> S::B;
    /// [`Simd::words`] of the group.
    #[inline(always)]
    fn words(&self, s: S, g: usize) -> [S::B; 2] {
        s.words(self.group(s, g), Self::OFFSET as i16)
    }
}

/// Sixteen-lane vector arithmetic of one instruction set.
pub(crate) trait Simd: Copy + Send + Sync {
    /// 16 × f32.
    type F: Copy;
    /// 16 × i32.
    type I: Copy;
    /// 64 bytes; lane l owns bytes `4l..4l + 4`.
    type B: Copy;

    /// Most tokens of a matrix product's register tile.
    const TILE: usize;
    /// Register tiles for packed weights: how many tokens, and how many such tiles share one unpacking of a block. The largest first, and a
    /// single token last.
    const TILES: &'static [(usize, usize)];
    /// The same for formats whose half blocks have scales of their own, which take more registers.
    const TILES_OF_HALVES: &'static [(usize, usize)];
    /// How many bytes ahead of a single row's product weights are asked for; 0: the machine foresees a stream better itself.
    const AHEAD: usize;
    /// Whether bfloat16 is multiplied by an instruction of its own.
    const BRAIN: bool;
    /// Whether activations of two digits are multiplied in 16 bits: no slower than one digit with weights of eight bits.
    const WORDS: bool;
    /// Most queries of attention's register tile.
    const QUERIES: usize;

    /// Runs a kernel compiled for this level, as a function of its own. Loops that are a whole task, or a good part of one, are called so:
    /// with many of them in one function, compilers take minutes over it.
    fn call<K: Kernel>(self, kernel: K) -> K::Out;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Lane i is `x[i]`.
    fn load(self, x: &[f32; 16]) -> Self::F;
    /// `out[i]` is lane i.
    fn store(self, v: Self::F, out: &mut [f32; 16]);
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger of `a` and `b`.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of `a` and `b`.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`; rounded once except at the portable level.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Sum of the lanes, halves onto halves.
    fn sum(self, v: Self::F) -> f32;
    /// Largest lane.
    fn peak(self, v: Self::F) -> f32;

    /// Sixteen little-endian binary32.
    fn load_f32_bytes(self, x: &[u8; 64]) -> Self::F;
    /// Sixteen little-endian binary16.
    fn load_f16_bytes(self, x: &[u8; 32]) -> Self::F;
    /// Sixteen little-endian bfloat16.
    fn load_bf16_bytes(self, x: &[u8; 32]) -> Self::F;
    /// Sixteen FP8-E4M3 (finite variant: no infinities, `S.1111.111` is NaN).
    fn load_e4m3(self, x: &[u8; 16]) -> Self::F;
    /// Sixteen binary16.
    fn load_f16(self, x: &[f16; 16]) -> Self::F;
    /// Rounds to binary16, to nearest even.
    fn store_f16(self, v: Self::F, out: &mut [f16; 16]);
    /// Rounds to bfloat16, to nearest even.
    fn store_bf16(self, v: Self::F, out: &mut [u16; 16]);
    /// Sixteen unsigned bytes as numbers.
    fn load_u8(self, x: &[u8; 16]) -> Self::F;
    /// Sixteen signed bytes as numbers.
    fn load_i8(self, x: &[u8; 16]) -> Self::F;

    /// Nearest integers, ties to even.
    fn round(self, v: Self::F) -> Self::I;
    /// Integers as numbers.
    fn to_f(self, v: Self::I) -> Self::F;
    /// `2^n` for `-127 < n < 128`.
    fn pow2(self, n: Self::I) -> Self::F;
    /// All lanes `x`.
    fn splat_i(self, x: i32) -> Self::I;
    /// `a + b`.
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a · 2^N`.
    fn shl_i<const N: u32>(self, a: Self::I) -> Self::I;
    /// Lowest bytes.
    fn store_i8(self, v: Self::I, out: &mut [i8; 16]);
    /// Sum of the lanes.
    fn sum_i(self, v: Self::I) -> i32;

    /// 32 bfloat16.
    fn load_pairs(self, x: &[u16; 32]) -> Self::B;
    /// 64 bytes.
    fn load_b(self, x: &[u8; 64]) -> Self::B;
    /// `out` is the 64 bytes.
    fn store_b(self, v: Self::B, out: &mut [u8; 64]);
    /// All bytes `x`.
    fn splat_b(self, x: u8) -> Self::B;
    /// `a & b`.
    fn and(self, a: Self::B, b: Self::B) -> Self::B;
    /// `a | b`.
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    /// `a ^ b`.
    fn xor(self, a: Self::B, b: Self::B) -> Self::B;
    /// 16-bit units shifted left: mask what crosses from the lower byte.
    fn shl<const N: u32>(self, a: Self::B) -> Self::B;
    /// 16-bit units shifted right: mask what crosses from the upper byte.
    fn shr<const N: u32>(self, a: Self::B) -> Self::B;
    /// Bytes less `offset` in 16 bits: of every four the first and the third, and the second and the fourth.
    fn words(self, v: Self::B, offset: i16) -> [Self::B; 2] {
        let _ = (v, offset);
        unreachable!("invariant: a level that multiplies words has this")
    }
    /// `acc[l] + Σ_j w[4l + j] · x[j]`: unsigned bytes times signed bytes, exact. No `x[j]` is -128.
    fn dot4(self, acc: Self::I, w: Self::B, x: [i8; 4]) -> Self::I;
    /// [`Simd::dot4`] for `w` below 64, which some machines do quicker.
    fn dot4_small(self, acc: Self::I, w: Self::B, x: [i8; 4]) -> Self::I;
    /// Writes whole numbers of 32 activations, of `D` digits.
    #[inline(always)]
    fn set_quants<const D: usize>(self, q: [Self::I; 2], out: &mut Quants<D>) {
        out.sums = q.map(|q| self.sum_i(q));
        let mut rest = q;
        for d in 0..D {
            for (half, rest) in rest.iter_mut().enumerate() {
                let mut digit = *rest;
                if d + 1 < D {
                    let q = self.to_f(*rest);
                    digit = self.round(self.mul(q, self.splat(1.0 / 128.0)));
                    *rest = self.round(self.fma(self.to_f(digit), self.splat(-128.0), q));
                }
                self.store_i8(digit, &mut out.digits[d].as_flattened_mut().as_chunks_mut().0[half]);
            }
        }
    }
    /// A block of packed weights times the same block of `T` rows of activations: `Σ (w − L::OFFSET)·q`, exact, over each of the `H` halves
    /// (or the whole) of 32 columns, for `w` of `L::BITS` bits.
    #[inline(always)]
    fn dots<L: Levels<Self>, const D: usize, const H: usize, const T: usize>(
        self,
        w: &L,
        x: [&Quants<D>; T],
    ) -> [[Self::I; H]; T] {
        // Tokens innermost: independent sums keep the multiplier busy. One or two tokens get a sum per half for the same reason;
        // integers do not mind the order.
        let split = H == 2 || T <= 2;
        let mut groups = [self.splat_b(0); 8];
        for (g, levels) in groups.iter_mut().enumerate() {
            *levels = w.group(self, g);
        }
        let mut sums = [[self.splat_i(0); T]; 2];
        for d in 0..D {
            for i in 0..T {
                if d > 0 {
                    sums[0][i] = self.shl_i::<7>(sums[0][i]);
                    sums[1][i] = self.shl_i::<7>(sums[1][i]);
                }
                if d + 1 == D && L::OFFSET != 0 {
                    let [a, b] = x[i].sums.map(|sum| (-L::OFFSET).wrapping_mul(sum));
                    sums[0][i] = self.add_i(sums[0][i], self.splat_i(if split { a } else { a.wrapping_add(b) }));
                    sums[1][i] = self.add_i(sums[1][i], self.splat_i(if split { b } else { 0 }));
                }
            }
            for g in 0..8 {
                for i in 0..T {
                    let sum = &mut sums[usize::from(split && g >= 4)][i];
                    *sum = if L::BITS < 7 {
                        self.dot4_small(*sum, groups[g], x[i].digits[d][g])
                    } else {
                        self.dot4(*sum, groups[g], x[i].digits[d][g])
                    };
                }
            }
        }
        let mut out = [[self.splat_i(0); H]; T];
        for (i, out) in out.iter_mut().enumerate() {
            for (h, out) in out.iter_mut().enumerate() {
                *out = if H == 1 && split { self.add_i(sums[0][i], sums[1][i]) } else { sums[h][i] };
            }
        }
        out
    }
    /// [`Simd::dots`] of halves with scales of their own: `scales[0]·first + scales[1]·second`, exact for one digit. Scales are signed bytes.
    #[inline(always)]
    fn half_dots<L: Levels<Self>, const D: usize, const T: usize>(
        self,
        w: &L,
        x: [&Quants<D>; T],
        scales: [&[u8; 16]; 2],
    ) -> [Self::F; T] {
        scaled(self, self.dots::<L, D, 2, T>(w, x), scales)
    }
    /// `acc[l] + a[2l + 1]·b[2l + 1] + a[2l]·b[2l]` over bfloat16.
    fn dot2_bf16(self, acc: Self::F, a: Self::B, b: Self::B) -> Self::F;

    /// The lower and the upper bfloat16 of every word, as numbers.
    fn widen_pairs(self, v: Self::B) -> [Self::F; 2];

    /// Sixteen words.
    fn load_words(self, x: &[u32; 16]) -> Self::B;
    /// `out[l]` is word l.
    fn store_words(self, v: Self::B, out: &mut [u32; 16]);
    /// All words `x`.
    fn splat_word(self, x: u32) -> Self::B;
    /// The bits of sixteen numbers.
    fn bits(self, v: Self::F) -> Self::B;
    /// The numbers with these bits.
    fn numbers(self, v: Self::B) -> Self::F;
    /// 32 bfloat16, those of `a` before those of `b`, rounded to nearest even; denormals may become zero.
    fn bf16(self, a: Self::F, b: Self::F) -> Self::B;
    /// As [`Simd::bf16`], alternating: word l holds `a[l]` below `b[l]`.
    fn bf16_pairs(self, a: Self::F, b: Self::F) -> Self::B;

    /// Sixteen vectors of words, transposed.
    #[inline(always)]
    fn transpose(self, v: [Self::B; 16]) -> [Self::B; 16] {
        let mut words = [[0; 16]; 16];
        for (v, out) in v.into_iter().zip(&mut words) {
            self.store_words(v, out);
        }
        let mut out = v;
        for (l, v) in out.iter_mut().enumerate() {
            *v = self.load_words(&words.map(|row| row[l]));
        }
        out
    }

    /// Eight words of sixteen rows, transposed: lane l of vector g is word g of row l.
    #[inline(always)]
    fn turn(self, rows: &[[u8; 32]; 16]) -> [Self::B; 8] {
        let mut v = [self.splat_b(0); 16];
        for (v, row) in v.iter_mut().zip(rows) {
            let mut wide = [0; 64];
            wide[..32].copy_from_slice(row);
            *v = self.load_b(&wide);
        }
        let v = self.transpose(v);
        [v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]]
    }

    /// Asks for the cache line of `x` in the first-level cache.
    #[inline(always)]
    fn fetch<T>(self, x: &T) {
        self.ask(std::ptr::from_ref(x).cast());
    }

    /// Asks for the cache line of `x` in the second-level cache.
    #[inline(always)]
    fn fetch_far<T>(self, x: &T) {
        self.ask_far(std::ptr::from_ref(x).cast());
    }

    /// [`Simd::fetch`] of an address, which is not read; nothing where the level knows no such instruction.
    #[inline(always)]
    fn ask(self, at: *const i8) {
        let _ = at;
    }

    /// The same for [`Simd::fetch_far`].
    #[inline(always)]
    fn ask_far(self, at: *const i8) {
        let _ = at;
    }

    /// Zero.
    #[inline(always)]
    fn zero(self) -> Self::F {
        self.splat(0.0)
    }

    /// [`Simd::sum`] of four vectors, bit for bit.
    #[inline(always)]
    fn sum4(self, v: [Self::F; 4]) -> [f32; 4] {
        [self.sum(v[0]), self.sum(v[1]), self.sum(v[2]), self.sum(v[3])]
    }

    /// As many lanes as `x` has numbers, zeros in the others.
    #[inline(always)]
    fn load_part(self, x: &[f32]) -> Self::F {
        if let Some(x) = x.as_array() {
            return self.load(x);
        }
        let mut full = [0.0; 16];
        full[..x.len()].copy_from_slice(x);
        self.load(&full)
    }

    /// Writes as many lanes as `out` takes.
    #[inline(always)]
    fn store_part(self, v: Self::F, out: &mut [f32]) {
        if let Some(out) = out.as_mut_array() {
            return self.store(v, out);
        }
        let mut full = [0.0; 16];
        self.store(v, &mut full);
        out.copy_from_slice(&full[..out.len()]);
    }

    /// `eˣ` within 2 ulp; arguments are clamped to ±87. Polynomial: Cephes' `expf`.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        let x = self.max(self.min(x, self.splat(87.0)), self.splat(-87.0));
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let nf = self.to_f(n);
        let r = self.fma(nf, self.splat(-0.693_359_4), x);
        let r = self.fma(nf, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = self.fma(p, r, self.splat(c));
        }
        let y = self.fma(p, self.mul(r, r), self.add(r, self.splat(1.0)));
        self.mul(y, self.pow2(n))
    }
}

/// Sums of halves times their scales, signed bytes.
#[inline(always)]
fn scaled<S: Simd, const T: usize>(s: S, sums: [[S::I; 2]; T], scales: [&[u8; 16]; 2]) -> [S::F; T] {
    let [a, b] = scales.map(|scales| s.load_i8(scales));
    let mut out = [s.zero(); T];
    for (out, [p, q]) in out.iter_mut().zip(sums) {
        *out = s.fma(s.to_f(q), b, s.mul(s.to_f(p), a));
    }
    out
}

/// A piece of work that is compiled once per instruction set.
pub(crate) trait Kernel {
    /// What it gives.
    type Out;
    /// The work. Implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// What a level says of itself: [`Simd::BRAIN`] and [`Simd::WORDS`].
struct Asked;

impl Kernel for Asked {
    type Out = [bool; 2];
    #[inline(always)]
    fn run<S: Simd>(self, _s: S) -> [bool; 2] {
        [S::BRAIN, S::WORDS]
    }
}

/// Levels of instructions, as proofs that the machine has them.
#[derive(Clone, Copy)]
pub(crate) enum Isa {
    /// Any machine.
    Portable(Portable),
    /// AVX2, FMA, F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX-512 F, BW, VL, DQ, VNNI, BF16, VBMI.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Isa {
    /// Whether bfloat16 is multiplied by an instruction of its own ([`Simd::BRAIN`]).
    pub(crate) fn brain(self) -> bool {
        self.run(Asked)[0]
    }

    /// Whether two digits of activations are no slower than one with weights of eight bits ([`Simd::WORDS`]).
    pub(crate) fn words(self) -> bool {
        self.run(Asked)[1]
    }

    /// Runs a kernel.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
        match self {
            Isa::Portable(s) => s.call(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(s) => s.call(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(s) => s.call(kernel),
        }
    }
}

/// Wraps the methods of a token's [`Simd`] implementation in the one `unsafe` that they all need.
#[cfg(target_arch = "x86_64")]
macro_rules! proven {
    ($($(#[$doc:meta])* fn $name:ident $(<const $n:ident: u32>)? (self $(, $arg:ident: $ty:ty)*) $(-> $ret:ty)? $body:block)*) => {
        $($(#[$doc])*
        #[inline(always)]
        fn $name $(<const $n: u32>)? (self $(, $arg: $ty)*) $(-> $ret)? {
            // SAFETY: `self` proves that the machine has the instructions; memory is only touched through references to
            // arrays of the size that is read or written.
            unsafe { $body }
        })*
    };
}
#[cfg(target_arch = "x86_64")]
use proven;

#[cfg(test)]
mod tests;
