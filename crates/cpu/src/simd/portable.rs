//! Vectors as arrays: any machine, and what the others are tested against.

use half::{bf16, f16};

use super::{Kernel, Simd};

/// The level that every machine has.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline]
fn lanes<T, const N: usize>(f: impl FnMut(usize) -> T) -> [T; N] {
    std::array::from_fn(f)
}

#[inline]
fn fold<T: Copy>(v: [T; 16], f: impl Fn(T, T) -> T) -> T {
    let mut v = v;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            v[i] = f(v[i], v[i + half]);
        }
    }
    v[0]
}

#[inline]
fn units(a: [u8; 64], f: impl Fn(u16) -> u16) -> [u8; 64] {
    let mut out = [0; 64];
    for (o, a) in out.chunks_exact_mut(2).zip(a.chunks_exact(2)) {
        o.copy_from_slice(&f(u16::from_le_bytes([a[0], a[1]])).to_le_bytes());
    }
    out
}

impl Simd for Portable {
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [u8; 64];

    const TILE: usize = 2;
    const TILES: &'static [(usize, usize)] = &[(2, 1), (1, 1)];
    const TILES_OF_HALVES: &'static [(usize, usize)] = Self::TILES;
    const AHEAD: usize = 0;
    const BRAIN: bool = false;
    const WORDS: bool = false;
    const QUERIES: usize = 2;

    #[inline(never)]
    fn call<K: Kernel>(self, kernel: K) -> K::Out {
        kernel.run(self)
    }

    #[inline]
    fn splat(self, x: f32) -> [f32; 16] {
        [x; 16]
    }
    #[inline]
    fn load(self, x: &[f32; 16]) -> [f32; 16] {
        *x
    }
    #[inline]
    fn store(self, v: [f32; 16], out: &mut [f32; 16]) {
        *out = v;
    }
    #[inline]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        lanes(|i| a[i] + b[i])
    }
    #[inline]
    fn sub(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        lanes(|i| a[i] - b[i])
    }
    #[inline]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        lanes(|i| a[i] * b[i])
    }
    #[inline]
    fn div(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        lanes(|i| a[i] / b[i])
    }
    #[inline]
    fn max(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline]
    fn min(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        lanes(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline]
    fn fma(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        lanes(|i| a[i] * b[i] + c[i])
    }
    #[inline]
    fn sum(self, v: [f32; 16]) -> f32 {
        fold(v, |a, b| a + b)
    }
    #[inline]
    fn peak(self, v: [f32; 16]) -> f32 {
        fold(v, |a, b| if a > b { a } else { b })
    }

    #[inline]
    fn load_f32_bytes(self, x: &[u8; 64]) -> [f32; 16] {
        lanes(|i| f32::from_le_bytes([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]))
    }
    #[inline]
    fn load_f16_bytes(self, x: &[u8; 32]) -> [f32; 16] {
        lanes(|i| f16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32())
    }
    #[inline]
    fn load_bf16_bytes(self, x: &[u8; 32]) -> [f32; 16] {
        lanes(|i| f32::from_bits(u32::from(u16::from_le_bytes([x[2 * i], x[2 * i + 1]])) << 16))
    }
    #[inline]
    fn load_e4m3(self, x: &[u8; 16]) -> [f32; 16] {
        lanes(|i| {
            // Binary16 with the same fields is 2^8 times smaller.
            let bits = u16::from(x[i] & 0x7f) << 7 | u16::from(x[i] & 0x80) << 8;
            if x[i] & 0x7f == 0x7f { f32::NAN } else { f16::from_bits(bits).to_f32() * 256.0 }
        })
    }
    #[inline]
    fn load_f16(self, x: &[f16; 16]) -> [f32; 16] {
        lanes(|i| x[i].to_f32())
    }
    #[inline]
    fn store_f16(self, v: [f32; 16], out: &mut [f16; 16]) {
        *out = lanes(|i| f16::from_f32(v[i]));
    }
    #[inline]
    fn store_bf16(self, v: [f32; 16], out: &mut [u16; 16]) {
        *out = lanes(|i| bf16::from_f32(v[i]).to_bits());
    }
    #[inline]
    fn load_u8(self, x: &[u8; 16]) -> [f32; 16] {
        lanes(|i| f32::from(x[i]))
    }
    #[inline]
    fn load_i8(self, x: &[u8; 16]) -> [f32; 16] {
        lanes(|i| f32::from(x[i] as i8))
    }

    #[inline]
    fn round(self, v: [f32; 16]) -> [i32; 16] {
        lanes(|i| v[i].round_ties_even() as i32)
    }
    #[inline]
    fn to_f(self, v: [i32; 16]) -> [f32; 16] {
        lanes(|i| v[i] as f32)
    }
    #[inline]
    fn pow2(self, n: [i32; 16]) -> [f32; 16] {
        lanes(|i| f32::from_bits(((n[i] + 127) << 23) as u32))
    }
    #[inline]
    fn splat_i(self, x: i32) -> [i32; 16] {
        [x; 16]
    }
    #[inline]
    fn add_i(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        lanes(|i| a[i] + b[i])
    }
    #[inline]
    fn shl_i<const N: u32>(self, a: [i32; 16]) -> [i32; 16] {
        lanes(|i| a[i] << N)
    }
    #[inline]
    fn store_i8(self, v: [i32; 16], out: &mut [i8; 16]) {
        *out = lanes(|i| v[i] as i8);
    }
    #[inline]
    fn sum_i(self, v: [i32; 16]) -> i32 {
        fold(v, |a, b| a + b)
    }

    #[inline]
    fn load_pairs(self, x: &[u16; 32]) -> [u8; 64] {
        lanes(|i| x[i / 2].to_le_bytes()[i % 2])
    }
    #[inline]
    fn load_b(self, x: &[u8; 64]) -> [u8; 64] {
        *x
    }
    #[inline]
    fn store_b(self, v: [u8; 64], out: &mut [u8; 64]) {
        *out = v;
    }
    #[inline]
    fn splat_b(self, x: u8) -> [u8; 64] {
        [x; 64]
    }
    #[inline]
    fn and(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        lanes(|i| a[i] & b[i])
    }
    #[inline]
    fn or(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        lanes(|i| a[i] | b[i])
    }
    #[inline]
    fn xor(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        lanes(|i| a[i] ^ b[i])
    }
    #[inline]
    fn shl<const N: u32>(self, a: [u8; 64]) -> [u8; 64] {
        units(a, |u| u << N)
    }
    #[inline]
    fn shr<const N: u32>(self, a: [u8; 64]) -> [u8; 64] {
        units(a, |u| u >> N)
    }
    #[inline(never)] // many copies of a slow loop only cost compile time
    fn dot4(self, acc: [i32; 16], w: [u8; 64], x: [i8; 4]) -> [i32; 16] {
        lanes(|l| acc[l] + (0..4).map(|j| i32::from(w[4 * l + j]) * i32::from(x[j])).sum::<i32>())
    }
    #[inline]
    fn dot4_small(self, acc: [i32; 16], w: [u8; 64], x: [i8; 4]) -> [i32; 16] {
        self.dot4(acc, w, x)
    }
    #[inline]
    fn dot2_bf16(self, acc: [f32; 16], a: [u8; 64], b: [u8; 64]) -> [f32; 16] {
        let at = |v: &[u8; 64], i: usize| f32::from_bits(u32::from(u16::from_le_bytes([v[2 * i], v[2 * i + 1]])) << 16);
        lanes(|l| (acc[l] + at(&a, 2 * l + 1) * at(&b, 2 * l + 1)) + at(&a, 2 * l) * at(&b, 2 * l))
    }

    #[inline]
    fn widen_pairs(self, v: [u8; 64]) -> [[f32; 16]; 2] {
        let at = |i: usize| f32::from_bits(u32::from(u16::from_le_bytes([v[2 * i], v[2 * i + 1]])) << 16);
        [lanes(|l| at(2 * l)), lanes(|l| at(2 * l + 1))]
    }
    fn load_words(self, x: &[u32; 16]) -> [u8; 64] {
        lanes(|i| x[i / 4].to_le_bytes()[i % 4])
    }
    #[inline]
    fn store_words(self, v: [u8; 64], out: &mut [u32; 16]) {
        *out = lanes(|i| u32::from_le_bytes([v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]]));
    }
    #[inline]
    fn splat_word(self, x: u32) -> [u8; 64] {
        self.load_words(&[x; 16])
    }
    #[inline]
    fn bits(self, v: [f32; 16]) -> [u8; 64] {
        self.load_words(&v.map(f32::to_bits))
    }
    #[inline]
    fn numbers(self, v: [u8; 64]) -> [f32; 16] {
        self.load_f32_bytes(&v)
    }
    #[inline]
    fn bf16(self, a: [f32; 16], b: [f32; 16]) -> [u8; 64] {
        self.load_pairs(&lanes(|i| bf16::from_f32(if i < 16 { a[i] } else { b[i - 16] }).to_bits()))
    }
    #[inline]
    fn bf16_pairs(self, a: [f32; 16], b: [f32; 16]) -> [u8; 64] {
        self.load_pairs(&lanes(|i| bf16::from_f32(if i % 2 == 0 { a[i / 2] } else { b[i / 2] }).to_bits()))
    }
}
