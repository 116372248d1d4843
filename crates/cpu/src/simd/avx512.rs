//! One 512-bit register per vector.

use std::arch::x86_64::*;

use half::f16;

use super::{Kernel, Simd, proven};

/// Proof of AVX-512 F, BW, VL, DQ, VNNI, BF16 and VBMI (Zen 4, Cooper Lake's successors), and of all that AVX2 proves.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The proof, if the machine has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx512vbmi")
            && super::Avx2::detect().is_some();
        all.then_some(Avx512(()))
    }
}

/// Sixteen-bit units of two halves, in turn.
const ALTERNATE: [u16; 32] = [
    0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
    31,
];

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;

    const TILE: usize = 8;
    const TILES: &'static [(usize, usize)] = &[(8, 1), (4, 1), (2, 1), (1, 1)];
    const TILES_OF_HALVES: &'static [(usize, usize)] = Self::TILES;
    const AHEAD: usize = 0;
    const BRAIN: bool = true;
    const WORDS: bool = false;
    const QUERIES: usize = 6;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Out {
        #[inline(never)]
        #[target_feature(
            enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx512vbmi,avx2,fma,f16c,bmi1,bmi2,popcnt"
        )]
        fn with_features<K: Kernel>(s: Avx512, kernel: K) -> K::Out {
            kernel.run(s)
        }
        // SAFETY: `self` proves the features.
        unsafe { with_features(self, kernel) }
    }

    proven! {
        fn ask(self, at: *const i8) { _mm_prefetch::<_MM_HINT_T0>(at) }
        fn ask_far(self, at: *const i8) { _mm_prefetch::<_MM_HINT_T1>(at) }
        fn splat(self, x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn load(self, x: &[f32; 16]) -> __m512 { _mm512_loadu_ps(x.as_ptr()) }
        fn store(self, v: __m512, out: &mut [f32; 16]) { _mm512_storeu_ps(out.as_mut_ptr(), v) }
        fn add(self, a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(self, a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(self, a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(self, a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn max(self, a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn min(self, a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn sum(self, v: __m512) -> f32 {
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
        fn sum4(self, v: [__m512; 4]) -> [f32; 4] {
            // Quarters of 128 bits: first [low halves of a and b] onto the high ones, then the same for quarters.
            let halves = |a, b| {
                _mm512_add_ps(_mm512_shuffle_f32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b))
            };
            let (ab, cd) = (halves(v[0], v[1]), halves(v[2], v[3]));
            let q = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
            );
            let q = _mm512_add_ps(q, _mm512_permute_ps::<0b11_10_11_10>(q));
            let q = _mm512_add_ps(q, _mm512_permute_ps::<0b01_01_01_01>(q));
            let each = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), q);
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(each));
            out
        }
        fn peak(self, v: __m512) -> f32 {
            let v = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }

        fn load_f32_bytes(self, x: &[u8; 64]) -> __m512 { _mm512_loadu_ps(x.as_ptr().cast()) }
        fn load_f16_bytes(self, x: &[u8; 32]) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
        fn load_bf16_bytes(self, x: &[u8; 32]) -> __m512 {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
        fn load_e4m3(self, x: &[u8; 16]) -> __m512 {
            // Binary16 with the same fields is 2^8 times smaller.
            let x = _mm256_cvtepu8_epi16(_mm_loadu_si128(x.as_ptr().cast()));
            let magnitude = _mm256_and_si256(x, _mm256_set1_epi16(0x7f));
            let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(x, _mm256_set1_epi16(0x80)));
            let nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f));
            let half = _mm256_or_si256(sign, _mm256_slli_epi16::<7>(magnitude));
            let v = _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0));
            _mm512_mask_blend_ps(nan, v, _mm512_set1_ps(f32::NAN))
        }
        fn load_f16(self, x: &[f16; 16]) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
        fn store_f16(self, v: __m512, out: &mut [f16; 16]) {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v))
        }
        fn store_bf16(self, v: __m512, out: &mut [u16; 16]) {
            // Integer rounding instead of vcvtneps2bf16, which flushes denormals.
            let v = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(v), _mm512_set1_epi32(1));
            let v = _mm512_add_epi32(v, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(v)))
        }
        fn load_u8(self, x: &[u8; 16]) -> __m512 {
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast())))
        }
        fn load_i8(self, x: &[u8; 16]) -> __m512 {
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast())))
        }

        fn round(self, v: __m512) -> __m512i { _mm512_cvtps_epi32(v) }
        fn to_f(self, v: __m512i) -> __m512 { _mm512_cvtepi32_ps(v) }
        fn pow2(self, n: __m512i) -> __m512 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(n, _mm512_set1_epi32(127))))
        }
        fn splat_i(self, x: i32) -> __m512i { _mm512_set1_epi32(x) }
        fn add_i(self, a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn shl_i<const N: u32>(self, a: __m512i) -> __m512i { _mm512_slli_epi32::<N>(a) }
        fn store_i8(self, v: __m512i, out: &mut [i8; 16]) {
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v))
        }
        fn sum_i(self, v: __m512i) -> i32 { _mm512_reduce_add_epi32(v) }

        fn load_pairs(self, x: &[u16; 32]) -> __m512i { _mm512_loadu_si512(x.as_ptr().cast()) }
        fn load_b(self, x: &[u8; 64]) -> __m512i { _mm512_loadu_si512(x.as_ptr().cast()) }
        fn store_b(self, v: __m512i, out: &mut [u8; 64]) { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) }
        fn splat_b(self, x: u8) -> __m512i { _mm512_set1_epi8(x as i8) }
        fn and(self, a: __m512i, b: __m512i) -> __m512i { _mm512_and_si512(a, b) }
        fn xor(self, a: __m512i, b: __m512i) -> __m512i { _mm512_xor_si512(a, b) }
        fn or(self, a: __m512i, b: __m512i) -> __m512i { _mm512_or_si512(a, b) }
        fn shl<const N: u32>(self, a: __m512i) -> __m512i { _mm512_slli_epi16::<N>(a) }
        fn shr<const N: u32>(self, a: __m512i) -> __m512i { _mm512_srli_epi16::<N>(a) }
        fn dot4(self, acc: __m512i, w: __m512i, x: [i8; 4]) -> __m512i {
            _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(i32::from_le_bytes(x.map(|v| v as u8))))
        }
        fn dot4_small(self, acc: __m512i, w: __m512i, x: [i8; 4]) -> __m512i {
            _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(i32::from_le_bytes(x.map(|v| v as u8))))
        }
        fn dot2_bf16(self, acc: __m512, a: __m512i, b: __m512i) -> __m512 {
            _mm512_dpbf16_ps(acc, std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b))
        }

        fn widen_pairs(self, v: __m512i) -> [__m512; 2] {
            let odd = _mm512_set1_epi32(0xffff_0000u32 as i32);
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(v)), _mm512_castsi512_ps(_mm512_and_si512(v, odd))]
        }
        fn load_words(self, x: &[u32; 16]) -> __m512i { _mm512_loadu_si512(x.as_ptr().cast()) }
        fn store_words(self, v: __m512i, out: &mut [u32; 16]) { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) }
        fn splat_word(self, x: u32) -> __m512i { _mm512_set1_epi32(x as i32) }
        fn bits(self, v: __m512) -> __m512i { _mm512_castps_si512(v) }
        fn numbers(self, v: __m512i) -> __m512 { _mm512_castsi512_ps(v) }
        fn bf16(self, a: __m512, b: __m512) -> __m512i {
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a))
        }
        fn bf16_pairs(self, a: __m512, b: __m512) -> __m512i {
            let order = _mm512_loadu_si512(ALTERNATE.as_ptr().cast());
            _mm512_permutexvar_epi16(order, std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a)))
        }
        fn transpose(self, v: [__m512i; 16]) -> [__m512i; 16] {
            // Words of two rows, pairs of words of four, then quarters of 128 bits of all sixteen.
            let mut out = v;
            for g in 0..4 {
                let at = 4 * g;
                let (lo, hi) = (_mm512_unpacklo_epi32(v[at], v[at + 1]), _mm512_unpackhi_epi32(v[at], v[at + 1]));
                let (lo2, hi2) =
                    (_mm512_unpacklo_epi32(v[at + 2], v[at + 3]), _mm512_unpackhi_epi32(v[at + 2], v[at + 3]));
                out[at] = _mm512_unpacklo_epi64(lo, lo2);
                out[at + 1] = _mm512_unpackhi_epi64(lo, lo2);
                out[at + 2] = _mm512_unpacklo_epi64(hi, hi2);
                out[at + 3] = _mm512_unpackhi_epi64(hi, hi2);
            }
            let u = out;
            for j in 0..4 {
                let even = _mm512_shuffle_i32x4::<0b10_00_10_00>(u[j], u[4 + j]);
                let even2 = _mm512_shuffle_i32x4::<0b10_00_10_00>(u[8 + j], u[12 + j]);
                let odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(u[j], u[4 + j]);
                let odd2 = _mm512_shuffle_i32x4::<0b11_01_11_01>(u[8 + j], u[12 + j]);
                out[j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(even, even2);
                out[4 + j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(odd, odd2);
                out[8 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(even, even2);
                out[12 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(odd, odd2);
            }
            out
        }
    }
}
