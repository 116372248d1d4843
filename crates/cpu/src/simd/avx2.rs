//! Two 256-bit registers per vector.

use std::arch::x86_64::*;

use half::f16;

use super::{Kernel, Levels, Quants, Simd, proven, scaled};

/// Proof of AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof, if the machine has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("popcnt");
        all.then_some(Avx2(()))
    }
}

/// Sixteen bfloat16, to nearest even.
#[inline]
#[target_feature(enable = "avx2")]
fn round_bf16(v: [__m256; 2]) -> __m256i {
    let [lo, hi] = v.map(|v| {
        let v = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(v), _mm256_set1_epi32(1));
        _mm256_srli_epi32::<16>(_mm256_add_epi32(v, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))))
    });
    // Packing works within 128-bit halves; put the quarters back in order.
    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(lo, hi))
}

/// Eight words of eight rows, transposed.
#[inline]
#[target_feature(enable = "avx2")]
fn turned(v: [__m256i; 8]) -> [__m256i; 8] {
    // Words of two rows, pairs of words of four, then halves of 128 bits of all eight.
    let mut out = v;
    for at in [0, 4] {
        let (lo, hi) = (_mm256_unpacklo_epi32(v[at], v[at + 1]), _mm256_unpackhi_epi32(v[at], v[at + 1]));
        let (lo2, hi2) = (_mm256_unpacklo_epi32(v[at + 2], v[at + 3]), _mm256_unpackhi_epi32(v[at + 2], v[at + 3]));
        out[at] = _mm256_unpacklo_epi64(lo, lo2);
        out[at + 1] = _mm256_unpackhi_epi64(lo, lo2);
        out[at + 2] = _mm256_unpacklo_epi64(hi, hi2);
        out[at + 3] = _mm256_unpackhi_epi64(hi, hi2);
    }
    let u = out;
    for j in 0..4 {
        out[j] = _mm256_permute2x128_si256::<0x20>(u[j], u[4 + j]);
        out[4 + j] = _mm256_permute2x128_si256::<0x31>(u[j], u[4 + j]);
    }
    out
}

/// What [`Simd::dots`] is made of, half a vector at a time.
impl Avx2 {
    proven! {
        /// All 16-bit lanes `x`.
        fn splat_words(self, x: i16) -> __m256i { _mm256_set1_epi16(x) }
        /// Two 16-bit lanes, over and over.
        fn pair(self, x: [i16; 2]) -> __m256i { _mm256_set1_epi32(i32::from(x[1]) << 16 | i32::from(x[0]) & 0xffff) }
        /// Products in 16 bits, the lower halves.
        fn times_words(self, a: __m256i, b: __m256i) -> __m256i { _mm256_mullo_epi16(a, b) }
        /// Four columns in every lane.
        fn columns(self, x: [i8; 4]) -> __m256i { _mm256_set1_epi32(i32::from_le_bytes(x.map(|v| v as u8))) }
        /// Sums of two products each, in 16 bits: unsigned bytes below 64 times signed bytes.
        fn products(self, w: __m256i, x: __m256i) -> __m256i { _mm256_maddubs_epi16(w, x) }
        /// `a + b` in 16 bits.
        fn add_words(self, a: __m256i, b: __m256i) -> __m256i { _mm256_add_epi16(a, b) }
        /// Sums of two 16-bit products each, in 32 bits.
        fn pairs(self, a: __m256i, b: __m256i) -> __m256i { _mm256_madd_epi16(a, b) }
        /// Sixteen signed bytes, each as two equal words.
        fn word_pairs(self, x: &[u8; 16]) -> [__m256i; 2] {
            let x = _mm_loadu_si128(x.as_ptr().cast());
            [_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(x, x)), _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(x, x))]
        }
        /// Numbers of 8 bits. Of every sixteen, the sums of the first two of every four and of the last two.
        fn store_bytes(self, q: [[__m256i; 2]; 2], out: &mut [[i8; 4]; 8]) -> [[i16; 2]; 2] {
            // Packing works within 128-bit halves: the words come out in the order 0 2 4 6 1 3 5 7.
            let x = _mm256_packs_epi16(_mm256_packs_epi32(q[0][0], q[0][1]), _mm256_packs_epi32(q[1][0], q[1][1]));
            let x = _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), x);
            let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), x);
            let pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b01_00_11_10>(pairs));
            let pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b10_11_00_01>(pairs));
            [_mm256_extract_epi32::<0>(pairs), _mm256_extract_epi32::<4>(pairs)].map(|x| [x as i16, (x >> 16) as i16])
        }
        /// Numbers of 16 bits, of every four the first and the third before the second and the fourth.
        fn store_quads(self, q: [[__m256i; 2]; 2], out: &mut [[i8; 4]; 16]) {
            for (half, [a, b]) in q.into_iter().enumerate() {
                let [a, b] = [a, b].map(|x| _mm256_shuffle_epi32::<0b11_01_10_00>(x));
                let x = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
                _mm256_storeu_si256(out[8 * half..8 * half + 8].as_mut_ptr().cast(), x)
            }
        }
    }

    /// Sums with activations of one digit, for levels of up to six bits. Products of bytes are added up in 16 bits as long as the sums, with
    /// levels counted from the one that means zero, fit there, and widened once, times a factor for each row of each half: `w − offset` and not
    /// `w` has to fit, since wrapped bits return when `offset·Σ q` is taken away. Factors are pairs of equal words.
    #[inline(always)]
    fn byte_sums<L: Levels<Self>, const D: usize, const H: usize, const T: usize>(
        self,
        w: &L,
        x: [&Quants<D>; T],
        factors: [[__m256i; 2]; H],
    ) -> [[[__m256i; 2]; H]; T] {
        let run = (128 >> (L::BITS - (L::OFFSET != 0) as u32)).min(8 / H);
        let mut out = [[self.splat_i(0); H]; T];
        for k in 0..8 / run {
            let mut sums = [[self.splat_words(0); 2]; T];
            if L::OFFSET != 0 {
                let offset = self.splat_words(-L::OFFSET as i16);
                for (sums, x) in sums.iter_mut().zip(x) {
                    let [a, b] = x.pairs;
                    let pair = if run == 8 { [a[0] + b[0], a[1] + b[1]] } else { [a, b][k * run / 4] };
                    *sums = [self.times_words(self.pair(pair), offset); 2];
                }
            }
            for g in k * run..(k + 1) * run {
                let w = w.group(self, g);
                for (sums, x) in sums.iter_mut().zip(x) {
                    let x = self.columns(x.digits[0][g]);
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = self.add_words(*sum, self.products(w, x));
                    }
                }
            }
            let half = k * run * H / 8;
            for (out, [a, b]) in out.iter_mut().zip(sums) {
                let [p, q] = factors[half];
                out[half] = self.add_i(out[half], [self.pairs(a, p), self.pairs(b, q)]);
            }
        }
        out
    }

    /// Sums with activations of two digits, in 16 bits from the start.
    #[inline(always)]
    fn word_sums<L: Levels<Self>, const D: usize, const H: usize, const T: usize>(
        self,
        w: &L,
        x: [&Quants<D>; T],
    ) -> [[[__m256i; 2]; H]; T] {
        let mut out = [[self.splat_i(0); H]; T];
        for h in 0..H {
            for g in 8 / H * h..8 / H * (h + 1) {
                for (c, w) in w.words(self, g).into_iter().enumerate() {
                    for (out, x) in out.iter_mut().zip(x) {
                        let x = self.columns(x.digits.as_flattened()[2 * g + c]);
                        out[h] = self.add_i(out[h], w.map(|w| self.pairs(w, x)));
                    }
                }
            }
        }
        out
    }
}

impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];

    const TILE: usize = 2;
    const TILES: &'static [(usize, usize)] = &[(4, 4), (4, 2), (4, 1), (1, 1)];
    const TILES_OF_HALVES: &'static [(usize, usize)] = &[(2, 8), (2, 4), (2, 2), (1, 1)];
    const AHEAD: usize = 1024;
    const BRAIN: bool = false;
    const WORDS: bool = true;
    const QUERIES: usize = 6;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Out {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,popcnt")]
        fn with_features<K: Kernel>(s: Avx2, kernel: K) -> K::Out {
            kernel.run(s)
        }
        // SAFETY: `self` proves the features.
        unsafe { with_features(self, kernel) }
    }

    #[inline(always)]
    fn dots<L: Levels<Self>, const D: usize, const H: usize, const T: usize>(
        self,
        w: &L,
        x: [&Quants<D>; T],
    ) -> [[[__m256i; 2]; H]; T] {
        if D == 2 {
            self.word_sums::<L, D, H, T>(w, x)
        } else if L::BITS < 7 {
            self.byte_sums::<L, D, H, T>(w, x, [[self.splat_words(1); 2]; H])
        } else {
            // Eight bits want two digits here: this is right, and slow.
            let mut out = [[self.splat_i(0); H]; T];
            for (out, x) in out.iter_mut().zip(x) {
                for (g, h) in (0..8).map(|g| (g, g * H / 8)) {
                    out[h] = self.dot4(out[h], w.group(self, g), x.digits[0][g]);
                }
                let zero = if H == 1 { [x.sums[0] + x.sums[1]; 2] } else { x.sums };
                for (out, sum) in out.iter_mut().zip(zero) {
                    *out = self.add_i(*out, self.splat_i(-L::OFFSET * sum));
                }
            }
            out
        }
    }

    #[inline(always)]
    fn half_dots<L: Levels<Self>, const D: usize, const T: usize>(
        self,
        w: &L,
        x: [&Quants<D>; T],
        scales: [&[u8; 16]; 2],
    ) -> [[__m256; 2]; T] {
        if D == 1 {
            // Widening multiplies by the scales as well.
            let factors = scales.map(|scales| self.word_pairs(scales));
            let sums = self.byte_sums::<L, D, 2, T>(w, x, factors);
            let mut out = [self.zero(); T];
            for (out, [a, b]) in out.iter_mut().zip(sums) {
                *out = self.to_f(self.add_i(a, b));
            }
            out
        } else {
            scaled(self, self.word_sums::<L, D, 2, T>(w, x), scales)
        }
    }

    #[inline(always)]
    fn set_quants<const D: usize>(self, q: [[__m256i; 2]; 2], out: &mut Quants<D>) {
        if D == 2 {
            out.sums = q.map(|q| self.sum_i(q));
            self.store_quads(
                q,
                out.digits.as_flattened_mut().as_mut_array().expect("invariant: two digits are 64 bytes"),
            );
        } else {
            out.pairs = self.store_bytes(q, &mut out.digits[0]);
            out.sums = out.pairs.map(|[a, b]| i32::from(a) + i32::from(b));
        }
    }

    proven! {
        fn words(self, v: [__m256i; 2], offset: i16) -> [[__m256i; 2]; 2] {
            let (low, offset) = (_mm256_set1_epi16(0xff), _mm256_set1_epi16(offset));
            let even = |v| _mm256_sub_epi16(_mm256_and_si256(v, low), offset);
            let odd = |v| _mm256_sub_epi16(_mm256_srli_epi16::<8>(v), offset);
            [[even(v[0]), even(v[1])], [odd(v[0]), odd(v[1])]]
        }
        fn ask(self, at: *const i8) { _mm_prefetch::<_MM_HINT_T0>(at) }
        fn ask_far(self, at: *const i8) { _mm_prefetch::<_MM_HINT_T1>(at) }
        fn splat(self, x: f32) -> [__m256; 2] { [_mm256_set1_ps(x); 2] }
        fn load(self, x: &[f32; 16]) -> [__m256; 2] {
            [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))]
        }
        fn store(self, v: [__m256; 2], out: &mut [f32; 16]) {
            _mm256_storeu_ps(out.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), v[1])
        }
        fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])]
        }
        fn sub(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])]
        }
        fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
        }
        fn div(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])]
        }
        fn max(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])]
        }
        fn min(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])]
        }
        fn fma(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
            [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
        }
        fn sum(self, v: [__m256; 2]) -> f32 {
            let v = _mm256_add_ps(v[0], v[1]);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
        fn peak(self, v: [__m256; 2]) -> f32 {
            let v = _mm256_max_ps(v[0], v[1]);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }

        fn load_f32_bytes(self, x: &[u8; 64]) -> [__m256; 2] {
            [_mm256_loadu_ps(x.as_ptr().cast()), _mm256_loadu_ps(x.as_ptr().add(32).cast())]
        }
        fn load_f16_bytes(self, x: &[u8; 32]) -> [__m256; 2] {
            let [lo, hi] = [_mm_loadu_si128(x.as_ptr().cast()), _mm_loadu_si128(x.as_ptr().add(16).cast())];
            [_mm256_cvtph_ps(lo), _mm256_cvtph_ps(hi)]
        }
        fn load_bf16_bytes(self, x: &[u8; 32]) -> [__m256; 2] {
            let [lo, hi] = [_mm_loadu_si128(x.as_ptr().cast()), _mm_loadu_si128(x.as_ptr().add(16).cast())];
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(lo))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(hi))),
            ]
        }
        fn load_e4m3(self, x: &[u8; 16]) -> [__m256; 2] {
            // Binary16 with the same fields is 2^8 times smaller.
            let x = _mm256_cvtepu8_epi16(_mm_loadu_si128(x.as_ptr().cast()));
            let magnitude = _mm256_and_si256(x, _mm256_set1_epi16(0x7f));
            let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(x, _mm256_set1_epi16(0x80)));
            let nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f));
            let half = _mm256_or_si256(sign, _mm256_slli_epi16::<7>(magnitude));
            let scale = _mm256_set1_ps(256.0);
            // A binary16 NaN where the mask is set: all ones.
            let half = _mm256_or_si256(half, nan);
            [
                _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(half)), scale),
                _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256::<1>(half)), scale),
            ]
        }
        fn load_f16(self, x: &[f16; 16]) -> [__m256; 2] {
            let [lo, hi] = [_mm_loadu_si128(x.as_ptr().cast()), _mm_loadu_si128(x.as_ptr().add(8).cast())];
            [_mm256_cvtph_ps(lo), _mm256_cvtph_ps(hi)]
        }
        fn store_f16(self, v: [__m256; 2], out: &mut [f16; 16]) {
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]));
            _mm_storeu_si128(out.as_mut_ptr().add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]))
        }
        fn store_bf16(self, v: [__m256; 2], out: &mut [u16; 16]) {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), round_bf16(v))
        }
        fn load_u8(self, x: &[u8; 16]) -> [__m256; 2] {
            let v = _mm_loadu_si128(x.as_ptr().cast());
            [
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(v))),
            ]
        }
        fn load_i8(self, x: &[u8; 16]) -> [__m256; 2] {
            let v = _mm_loadu_si128(x.as_ptr().cast());
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(v))),
            ]
        }

        fn round(self, v: [__m256; 2]) -> [__m256i; 2] { [_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1])] }
        fn to_f(self, v: [__m256i; 2]) -> [__m256; 2] { [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])] }
        fn pow2(self, n: [__m256i; 2]) -> [__m256; 2] {
            let bias = _mm256_set1_epi32(127);
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n[0], bias))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n[1], bias))),
            ]
        }
        fn splat_i(self, x: i32) -> [__m256i; 2] { [_mm256_set1_epi32(x); 2] }
        fn add_i(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])]
        }
        fn shl_i<const N: u32>(self, a: [__m256i; 2]) -> [__m256i; 2] {
            let n = _mm_cvtsi32_si128(N as i32);
            [_mm256_sll_epi32(a[0], n), _mm256_sll_epi32(a[1], n)]
        }
        fn store_i8(self, v: [__m256i; 2], out: &mut [i8; 16]) {
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(v[0], v[1]));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes)
        }
        fn sum_i(self, v: [__m256i; 2]) -> i32 {
            let v = _mm256_add_epi32(v[0], v[1]);
            let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
            _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v)))
        }

        fn load_pairs(self, x: &[u16; 32]) -> [__m256i; 2] {
            [_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(16).cast())]
        }
        fn load_b(self, x: &[u8; 64]) -> [__m256i; 2] {
            [_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(32).cast())]
        }
        fn store_b(self, v: [__m256i; 2], out: &mut [u8; 64]) {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(out.as_mut_ptr().add(32).cast(), v[1])
        }
        fn splat_b(self, x: u8) -> [__m256i; 2] { [_mm256_set1_epi8(x as i8); 2] }
        fn and(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])]
        }
        fn xor(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            [_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])]
        }
        fn or(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])]
        }
        fn shl<const N: u32>(self, a: [__m256i; 2]) -> [__m256i; 2] {
            let n = _mm_cvtsi32_si128(N as i32);
            [_mm256_sll_epi16(a[0], n), _mm256_sll_epi16(a[1], n)]
        }
        fn shr<const N: u32>(self, a: [__m256i; 2]) -> [__m256i; 2] {
            let n = _mm_cvtsi32_si128(N as i32);
            [_mm256_srl_epi16(a[0], n), _mm256_srl_epi16(a[1], n)]
        }
        fn dot4(self, acc: [__m256i; 2], w: [__m256i; 2], x: [i8; 4]) -> [__m256i; 2] {
            // maddubs saturates at 16 bits, so the top bits go apart: 2·127·127 and 2·128·127 fit.
            let (low, top) = (_mm256_set1_epi8(0x7f), _mm256_set1_epi8(0x80u8 as i8));
            let x = _mm256_set1_epi32(i32::from_le_bytes(x.map(|v| v as u8)));
            let one = _mm256_set1_epi16(1);
            let half = |acc: __m256i, w: __m256i| {
                let a = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_and_si256(w, low), x), one);
                let b = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_and_si256(w, top), x), one);
                _mm256_add_epi32(acc, _mm256_add_epi32(a, b))
            };
            [half(acc[0], w[0]), half(acc[1], w[1])]
        }
        fn dot4_small(self, acc: [__m256i; 2], w: [__m256i; 2], x: [i8; 4]) -> [__m256i; 2] {
            let x = _mm256_set1_epi32(i32::from_le_bytes(x.map(|v| v as u8)));
            let one = _mm256_set1_epi16(1);
            [
                _mm256_add_epi32(acc[0], _mm256_madd_epi16(_mm256_maddubs_epi16(w[0], x), one)),
                _mm256_add_epi32(acc[1], _mm256_madd_epi16(_mm256_maddubs_epi16(w[1], x), one)),
            ]
        }
        fn dot2_bf16(self, acc: [__m256; 2], a: [__m256i; 2], b: [__m256i; 2]) -> [__m256; 2] {
            let odd = _mm256_set1_epi32(0xffff_0000u32 as i32);
            let half = |acc: __m256, a: __m256i, b: __m256i| {
                let hi = |v: __m256i| _mm256_castsi256_ps(_mm256_and_si256(v, odd));
                let lo = |v: __m256i| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v));
                _mm256_fmadd_ps(lo(a), lo(b), _mm256_fmadd_ps(hi(a), hi(b), acc))
            };
            [half(acc[0], a[0], b[0]), half(acc[1], a[1], b[1])]
        }

        fn widen_pairs(self, v: [__m256i; 2]) -> [[__m256; 2]; 2] {
            let odd = _mm256_set1_epi32(0xffff_0000u32 as i32);
            let low = |v: __m256i| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v));
            let high = |v: __m256i| _mm256_castsi256_ps(_mm256_and_si256(v, odd));
            [[low(v[0]), low(v[1])], [high(v[0]), high(v[1])]]
        }
        fn transpose(self, v: [[__m256i; 2]; 16]) -> [[__m256i; 2]; 16] {
            let mut out = v;
            for half in 0..2 {
                let rows = |first: usize| std::array::from_fn(|i| v[first + i][half]);
                let (top, bottom) = (turned(rows(0)), turned(rows(8)));
                for i in 0..8 {
                    out[8 * half + i] = [top[i], bottom[i]];
                }
            }
            out
        }
        fn turn(self, rows: &[[u8; 32]; 16]) -> [[__m256i; 2]; 8] {
            let load = |i: usize| _mm256_loadu_si256(rows[i].as_ptr().cast());
            let top = turned(std::array::from_fn(load));
            let bottom = turned(std::array::from_fn(|i| load(8 + i)));
            std::array::from_fn(|i| [top[i], bottom[i]])
        }
        fn load_words(self, x: &[u32; 16]) -> [__m256i; 2] {
            [_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(8).cast())]
        }
        fn store_words(self, v: [__m256i; 2], out: &mut [u32; 16]) {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(out.as_mut_ptr().add(8).cast(), v[1])
        }
        fn splat_word(self, x: u32) -> [__m256i; 2] { [_mm256_set1_epi32(x as i32); 2] }
        fn bits(self, v: [__m256; 2]) -> [__m256i; 2] { [_mm256_castps_si256(v[0]), _mm256_castps_si256(v[1])] }
        fn numbers(self, v: [__m256i; 2]) -> [__m256; 2] { [_mm256_castsi256_ps(v[0]), _mm256_castsi256_ps(v[1])] }
        fn bf16(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256i; 2] {
            [round_bf16(a), round_bf16(b)]
        }
        fn bf16_pairs(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256i; 2] {
            let [a, b] = [round_bf16(a), round_bf16(b)];
            let (lo, hi) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
            [_mm256_permute2x128_si256::<0x20>(lo, hi), _mm256_permute2x128_si256::<0x31>(lo, hi)]
        }
    }
}
