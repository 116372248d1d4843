//! Every primitive of every level present against the portable one.

use super::*;

/// A small generator, so that failures repeat.
struct Lcg(u64);

impl Lcg {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }
    fn floats(&mut self) -> [f32; 16] {
        std::array::from_fn(|_| (self.next() as f32 / u32::MAX as f32 - 0.5) * 300.0)
    }
}

/// Bits of everything that the primitives give for one random input.
struct Probe(u64);

impl Kernel for Probe {
    type Out = Vec<u32>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let mut rng = Lcg(self.0);
        let mut out = Vec::new();
        let f = |v: S::F, out: &mut Vec<u32>| {
            let mut a = [0.0; 16];
            s.store(v, &mut a);
            out.extend(a.map(|x| if x.is_nan() { 1 } else { x.to_bits() }));
        };
        let (a, b) = (rng.floats(), rng.floats());
        let (a, b) = (s.load(&a), s.load(&b));
        for v in [s.add(a, b), s.sub(a, b), s.mul(a, b), s.div(a, b), s.max(a, b), s.min(a, b), s.to_f(s.round(a))] {
            f(v, &mut out);
        }
        out.extend([s.sum(a).to_bits(), s.peak(a).to_bits(), s.sum_i(s.round(b)) as u32]);
        out.extend(s.sum4([a, b, s.mul(a, b), s.div(a, b)]).map(f32::to_bits));
        let bytes: [u8; 64] = rng.bytes();
        f(s.load_f32_bytes(&bytes), &mut out);
        let (x32, x16): ([u8; 32], [u8; 16]) = (rng.bytes(), rng.bytes());
        for v in [s.load_f16_bytes(&x32), s.load_bf16_bytes(&x32), s.load_e4m3(&x16), s.load_u8(&x16), s.load_i8(&x16)]
        {
            f(v, &mut out);
        }
        let mut halves = [half::f16::ZERO; 16];
        s.store_f16(a, &mut halves);
        out.extend(halves.map(|h| u32::from(h.to_bits())));
        f(s.load_f16(&halves), &mut out);
        let mut brain = [0; 16];
        s.store_bf16(b, &mut brain);
        out.extend(brain.map(u32::from));
        let mut small = [0i8; 16];
        s.store_i8(s.round(s.mul(a, s.splat(127.0 / 150.0))), &mut small);
        out.extend(small.map(|v| v as u32));
        f(s.pow2(s.round(s.mul(a, s.splat(0.8)))), &mut out);
        let (w, v): (S::B, S::B) = (s.load_b(&rng.bytes()), s.load_b(&rng.bytes()));
        let pairs = rng.bytes::<32>().map(|v| u16::from(v) * 251);
        f(s.to_f(s.dot4(s.splat_i(0), s.load_pairs(&pairs), [3, -5, 7, 11])), &mut out);
        let x = rng.bytes::<4>().map(|v| (v as i8).max(-127));
        let acc = s.splat_i(rng.next() as i32 >> 8);
        let low = s.and(w, s.splat_b(63));
        for i in [s.dot4(acc, w, x), s.dot4_small(acc, low, x), s.dot4(acc, s.shl::<3>(v), [127; 4]), s.shl_i::<7>(acc)]
        {
            f(s.to_f(i), &mut out);
        }
        let masked = s.and(s.or(s.shr::<4>(v), s.shl::<1>(w)), s.splat_b(0x2f));
        f(s.to_f(s.dot4(s.splat_i(0), masked, [1, 2, 3, 4])), &mut out);
        f(s.to_f(s.dot4(s.splat_i(0), s.splat_b(255), [-127; 4])), &mut out);
        let rows = [0; 16].map(|_: u32| s.load_words(&[0; 16].map(|_: u32| rng.next())));
        let words = [s.splat_word(rng.next()), s.bits(a), s.bf16(a, b), s.bf16_pairs(a, b)];
        let turned = s.turn(&[0; 16].map(|_: u8| rng.bytes()));
        let words = words.into_iter().chain(s.transpose(rows)).chain(turned).chain([s.xor(w, v)]);
        for v in words {
            let mut w = [0; 16];
            s.store_words(v, &mut w);
            out.extend(w);
            let mut bytes = [0; 64];
            s.store_b(v, &mut bytes);
            out.extend(bytes.map(u32::from));
        }
        f(s.numbers(s.bits(b)), &mut out);
        out
    }
}

#[test]
fn levels_agree_bit_for_bit() {
    for seed in 0..500 {
        let expected = Isa::Portable(Portable).run(Probe(seed));
        for isa in crate::isa::Level::present().filter_map(crate::isa::Level::isa) {
            assert_eq!(isa.run(Probe(seed)), expected, "seed {seed}");
        }
    }
}

struct Exp([f32; 16]);

impl Kernel for Exp {
    type Out = [f32; 16];
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; 16] {
        let mut out = [0.0; 16];
        s.store(s.exp(s.load(&self.0)), &mut out);
        out
    }
}

#[test]
fn exp_is_within_two_ulp_and_saturates() {
    let mut rng = Lcg(7);
    for isa in crate::isa::Level::present().filter_map(crate::isa::Level::isa) {
        for _ in 0..2000 {
            let x = rng.floats().map(|v| v * 0.58);
            for (x, y) in x.iter().zip(isa.run(Exp(x))) {
                let exact = f64::from(*x).exp();
                let ulp = (exact * f64::from(f32::EPSILON)).max(f64::from(f32::MIN_POSITIVE));
                assert!((f64::from(y) - exact).abs() <= 2.0 * ulp, "exp({x}) = {y}, not {exact}");
            }
        }
        assert!(isa.run(Exp([-1e30; 16]))[0] < 1e-37 && isa.run(Exp([1e30; 16]))[0] > 1e37);
        assert_eq!(isa.run(Exp([0.0; 16])), [1.0; 16]);
    }
}

/// bfloat16 products against f64, at every level.
struct Bf(u64);

impl Kernel for Bf {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut rng = Lcg(self.0);
        let (mut a, mut b, mut out) = ([[0u16; 16]; 2], [[0u16; 16]; 2], [0.0; 16]);
        let mut bytes = [[0u8; 64]; 2];
        for (half, x) in bytes.iter_mut().zip([&mut a, &mut b]) {
            for h in x.iter_mut() {
                let v = rng.floats();
                s.store_bf16(s.load(&v), h);
            }
            for (o, v) in half.chunks_exact_mut(2).zip(x.as_flattened()) {
                o.copy_from_slice(&v.to_le_bytes());
            }
        }
        s.store(s.dot2_bf16(s.splat(0.5), s.load_b(&bytes[0]), s.load_b(&bytes[1])), &mut out);
        let value = |v: u16| f64::from(f32::from_bits(u32::from(v) << 16));
        for (l, &found) in out.iter().enumerate() {
            let term = |j: usize| value(a.as_flattened()[2 * l + j]) * value(b.as_flattened()[2 * l + j]);
            let (exact, size) = (0.5 + term(0) + term(1), 0.5 + term(0).abs() + term(1).abs());
            assert!((f64::from(found) - exact).abs() <= size * 3e-7, "{found} {exact}");
        }
    }
}

#[test]
fn bf16_products_are_right() {
    for isa in crate::isa::Level::present().filter_map(crate::isa::Level::isa) {
        (0..200).for_each(|seed| isa.run(Bf(seed)));
    }
}

/// Levels of a block, sixteen rows by eight groups of four columns.
struct Stored<const BITS: u32, const OFFSET: i32>([[u8; 64]; 8]);

impl<S: Simd, const BITS: u32, const OFFSET: i32> Levels<S> for Stored<BITS, OFFSET> {
    const BITS: u32 = BITS;
    const OFFSET: i32 = OFFSET;
    fn group(&self, s: S, g: usize) -> S::B {
        s.load_b(&self.0[g])
    }
}

/// Blocks of products against sums in 64 bits: random levels and digits, and the largest of both, which must not overflow.
struct Dots<const BITS: u32, const OFFSET: i32, const D: usize, const H: usize, const T: usize>(u64);

impl<const BITS: u32, const OFFSET: i32, const D: usize, const H: usize, const T: usize> Kernel
    for Dots<BITS, OFFSET, D, H, T>
{
    type Out = ();
    fn run<S: Simd>(self, s: S) {
        let mut rng = Lcg(self.0);
        let top = ((1u32 << BITS) - 1) as u8;
        let edge = |rng: &mut Lcg, least: i32, most: i32| match rng.next() % 4 {
            0 => least,
            1 => most,
            _ => least + (rng.next() % (most - least + 1) as u32) as i32,
        };
        let mut levels = [[0; 64]; 8];
        levels.as_flattened_mut().iter_mut().for_each(|w| *w = edge(&mut rng, 0, i32::from(top)) as u8);
        let most = if D == 1 { 127 } else { 127 * 128 };
        let mut q = [[0; 32]; T];
        q.as_flattened_mut().iter_mut().for_each(|q| *q = edge(&mut rng, -most, most));
        if self.0 < 2 {
            levels = [[top; 64]; 8];
            q = [[if self.0 == 0 { most } else { -most }; 32]; T];
        }
        let quants = q.map(|q| {
            let half = |h: usize| s.round(s.load(&std::array::from_fn(|c| q[16 * h + c] as f32)));
            let mut x = Quants::<D>::ZERO;
            s.set_quants([half(0), half(1)], &mut x);
            x
        });
        let x = std::array::from_fn(|i| &quants[i]);
        let stored = Stored::<BITS, OFFSET>(levels);
        for (i, sums) in s.dots::<_, D, H, T>(&stored, x).into_iter().enumerate() {
            for (h, sum) in sums.into_iter().enumerate() {
                let mut found = [0.0; 16];
                s.store(s.to_f(sum), &mut found);
                for (l, found) in found.into_iter().enumerate() {
                    let columns = 32 / H * h..32 / H * (h + 1);
                    let term =
                        |c: usize| (i64::from(levels[c / 4][4 * l + c % 4]) - i64::from(OFFSET)) * i64::from(q[i][c]);
                    let exact: i64 = columns.map(term).sum();
                    assert_eq!(found, exact as f32, "{BITS} bits, {D} digits, half {h} of {H}, row {l}, token {i}");
                }
            }
        }
        if H == 2 {
            let scales: [[i8; 16]; 2] =
                std::array::from_fn(|_| std::array::from_fn(|_| edge(&mut rng, -128, 127) as i8));
            let bytes = scales.map(|s| s.map(|s| s as u8));
            for (i, sums) in s.half_dots::<_, D, T>(&stored, x, [&bytes[0], &bytes[1]]).into_iter().enumerate() {
                let mut found = [0.0; 16];
                s.store(sums, &mut found);
                for (l, found) in found.into_iter().enumerate() {
                    let level = |c: usize| i64::from(levels[c / 4][4 * l + c % 4]) - i64::from(OFFSET);
                    let exact: i64 =
                        (0..32).map(|c| level(c) * i64::from(q[i][c]) * i64::from(scales[c / 16][l])).sum();
                    // Exact for one digit; two round each half.
                    let bound = if D == 1 { 0.0 } else { 2e9 * f64::from(f32::EPSILON) };
                    let error = (f64::from(found) - exact as f64).abs();
                    assert!(error <= bound, "{BITS} bits, {D} digits, row {l}, token {i}: {found} for {exact}");
                }
            }
        }
    }
}

#[test]
fn blocks_of_products_are_exact() {
    for isa in crate::isa::Level::present().filter_map(crate::isa::Level::isa) {
        for seed in 0..60 {
            isa.run(Dots::<4, 0, 1, 1, 4>(seed));
            isa.run(Dots::<4, 8, 2, 1, 1>(seed));
            isa.run(Dots::<4, 8, 1, 1, 4>(seed));
            isa.run(Dots::<5, 16, 1, 1, 2>(seed));
            isa.run(Dots::<5, 16, 2, 1, 1>(seed));
            isa.run(Dots::<5, 0, 2, 1, 4>(seed));
            isa.run(Dots::<6, 32, 1, 2, 4>(seed));
            isa.run(Dots::<6, 32, 2, 2, 4>(seed));
            isa.run(Dots::<6, 32, 2, 2, 1>(seed));
            isa.run(Dots::<6, 32, 1, 2, 2>(seed));
            isa.run(Dots::<8, 128, 1, 1, 4>(seed));
            isa.run(Dots::<8, 128, 2, 1, 2>(seed));
        }
    }
}
