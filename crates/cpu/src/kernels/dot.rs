//! Products in f32: weight rows are decoded into scratch memory and multiplied there. Any format works; exact precision and
//! formats without a kernel of their own come here.
//!
//! Order of additions, for any number of tokens: lane l adds the products of columns l, l + 16, … in order;
//! the lanes are added at the end, halves onto halves; then the bias.

use fathom_core::Weight;

use super::rows::put;
use crate::matrix::Widen;
use crate::pool::Rect;
use crate::simd::{Kernel, LANES, Simd};

/// Weight rows decoded at a time.
const ROWS: usize = 4;

/// One rectangle of `x·Wᵀ + b`.
pub(crate) struct DotBlock<'a> {
    /// The weight; the rectangle's columns are its rows.
    pub(crate) weight: &'a Weight,
    /// `[tokens, weight.cols]`.
    pub(crate) x: &'a [f32],
    /// One per weight row.
    pub(crate) bias: Option<&'a [f32]>,
    /// Where the results go.
    pub(crate) rect: Rect<'a>,
    /// At least [`DotBlock::scratch`] long.
    pub(crate) scratch: &'a mut [f32],
}

/// `cols` rounded up to whole vectors.
fn padded(cols: usize) -> usize {
    cols.next_multiple_of(LANES)
}

impl DotBlock<'_> {
    /// Scratch memory for weights of `cols` columns.
    pub(crate) fn scratch(cols: usize) -> usize {
        ROWS * padded(cols)
    }
}

impl Kernel for DotBlock<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (cols, width) = (self.weight.cols, padded(self.weight.cols));
        let tokens = self.rect.rows.clone();
        let (scratch, _) = self.scratch.split_at_mut(ROWS * width);
        let mut at = 0;
        while at < self.rect.width {
            let n = ROWS.min(self.rect.width - at);
            for (r, out) in scratch.chunks_exact_mut(width).take(n).enumerate() {
                out[cols..].fill(0.0);
                decode(s, self.weight, self.rect.first + at + r, &mut out[..cols]);
            }
            let w: &[f32] = scratch;
            let x = self.x;
            let mut t = tokens.start;
            if n == ROWS && S::TILE >= 8 {
                while t + 4 <= tokens.end {
                    tile::<S, ROWS, 4>(s, w, x, cols, t, at, &mut self.rect, self.bias);
                    t += 4;
                }
            }
            if n == ROWS && S::TILE < 8 {
                while t + 2 <= tokens.end {
                    tile::<S, 2, 2>(s, w, x, cols, t, at, &mut self.rect, self.bias);
                    tile::<S, 2, 2>(s, &w[2 * width..], x, cols, t, at + 2, &mut self.rect, self.bias);
                    t += 2;
                }
            }
            while t < tokens.end {
                if n == ROWS {
                    tile::<S, ROWS, 1>(s, w, x, cols, t, at, &mut self.rect, self.bias);
                } else {
                    for r in 0..n {
                        tile::<S, 1, 1>(s, &w[r * width..], x, cols, t, at + r, &mut self.rect, self.bias);
                    }
                }
                t += 1;
            }
            at += n;
        }
    }
}

/// Products of `R` decoded rows with `T` tokens from `t` on, written from column `at` of the rectangle on.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn tile<S: Simd, const R: usize, const T: usize>(
    s: S,
    w: &[f32],
    x: &[f32],
    cols: usize,
    t: usize,
    at: usize,
    rect: &mut Rect<'_>,
    bias: Option<&[f32]>,
) {
    let width = padded(cols);
    let full = cols / LANES;
    let mut acc = [[s.zero(); T]; R];
    let mut w16 = [&[] as &[[f32; LANES]]; R];
    for r in 0..R {
        w16[r] = &w[r * width..(r + 1) * width].as_chunks().0[..width / LANES];
    }
    let mut x16 = [&[] as &[[f32; LANES]]; T];
    for j in 0..T {
        x16[j] = &x[(t + j) * cols..(t + j + 1) * cols].as_chunks().0[..full];
    }
    for c in 0..full {
        let mut v = [s.zero(); T];
        for j in 0..T {
            v[j] = s.load(&x16[j][c]);
        }
        for r in 0..R {
            let w = s.load(&w16[r][c]);
            for j in 0..T {
                acc[r][j] = s.fma(w, v[j], acc[r][j]);
            }
        }
    }
    if full * LANES < cols {
        for j in 0..T {
            let v = s.load_part(&x[(t + j) * cols + full * LANES..(t + j + 1) * cols]);
            for r in 0..R {
                acc[r][j] = s.fma(s.load(&w16[r][full]), v, acc[r][j]);
            }
        }
    }
    for j in 0..T {
        let first = rect.first + at;
        let out = &mut rect.row(t + j)[at..at + R];
        for r in 0..R {
            out[r] = s.sum(acc[r][j]) + bias.map_or(0.0, |b| b[first + r]);
        }
    }
}

/// Decodes row `row` of a weight: formats of single numbers in registers, the others by their codec.
#[inline(always)]
fn decode<S: Simd>(s: S, weight: &Weight, row: usize, out: &mut [f32]) {
    let (o16, tail) = out.as_chunks_mut::<LANES>();
    let Some(widen) = Widen::of(weight).filter(|_| tail.is_empty()) else {
        return weight.decode_row(row, out);
    };
    let bytes = weight.row(row);
    match widen {
        Widen::F32 => {
            for (o, b) in o16.iter_mut().zip(bytes.as_chunks().0) {
                s.store(s.load_f32_bytes(b), o);
            }
        }
        Widen::F16 => {
            for (o, b) in o16.iter_mut().zip(bytes.as_chunks().0) {
                s.store(s.load_f16_bytes(b), o);
            }
        }
        Widen::Bf16 => {
            for (o, b) in o16.iter_mut().zip(bytes.as_chunks().0) {
                s.store(s.load_bf16_bytes(b), o);
            }
        }
        Widen::E4m3 => {
            for (o, b) in o16.iter_mut().zip(bytes.as_chunks().0) {
                s.store(s.load_e4m3(b), o);
            }
        }
    }
    let Some(scales) = &weight.scales else { return };
    let (per_row, n) = (weight.cols.div_ceil(scales.block.1), scales.format.get().block_bytes());
    let first = (row + scales.first_row) / scales.block.0 * per_row;
    for (i, out) in out.chunks_mut(scales.block.1).enumerate() {
        let mut scale = [0.0];
        scales.format.get().decode_block(&scales.bytes.as_slice()[(first + i) * n..][..n], &mut scale);
        out.iter_mut().for_each(|v| *v *= scale[0]);
    }
}

/// 32 activations as sums of `DIGITS` bfloat16, the largest first; two successive ones are a word.
pub(crate) type Brain<const DIGITS: usize> = [[u32; LANES]; DIGITS];

/// Rounds to bfloat16: a number, then what is left of it.
pub(crate) struct ToBrain<'a, const DIGITS: usize> {
    pub(crate) x: &'a [f32],
    pub(crate) out: &'a mut [Brain<DIGITS>],
}

impl<const DIGITS: usize> Kernel for ToBrain<'_, DIGITS> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.x.as_chunks::<{ 2 * LANES }>().0.iter().zip(self.out) {
            for (half, x) in x.as_chunks::<LANES>().0.iter().enumerate() {
                let mut rest = s.load(x);
                for digit in out.iter_mut() {
                    let mut numbers = [0; LANES];
                    s.store_bf16(rest, &mut numbers);
                    let mut bytes = [0; 2 * LANES];
                    for (b, v) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(numbers) {
                        *b = v.to_le_bytes();
                    }
                    for (word, b) in digit[half * LANES / 2..].iter_mut().zip(bytes.as_chunks::<4>().0) {
                        *word = u32::from_le_bytes(*b);
                    }
                    rest = s.sub(rest, s.load_bf16_bytes(&bytes));
                }
            }
        }
    }
}

/// Panels of a rectangle of `x·Wᵀ + b` for packed BF16 weights (`Layout::PAIRS`) and activations rounded to BF16, or as they are where no
/// instruction multiplies BF16. Lanes are output rows; pairs of columns are added in order, digit after digit, whatever the number of tokens.
pub(crate) struct PairsBlock<'a, 'r, const DIGITS: usize> {
    /// Columns, whole multiples of 32.
    pub(crate) cols: usize,
    /// The panels, one behind the other.
    pub(crate) panels: &'a [u8],
    /// `[tokens, cols]`, read where [`Simd::BRAIN`] is false.
    pub(crate) numbers: &'a [f32],
    /// `[tokens, cols / 32]`, read where it is true.
    pub(crate) x: &'a [Brain<DIGITS>],
    /// One per weight row.
    pub(crate) bias: Option<&'a [f32]>,
    /// Column of the rectangle at which the first panel begins.
    pub(crate) at: usize,
    /// Where the results go.
    pub(crate) rect: &'a mut Rect<'r>,
}

/// 32 columns of a panel: sixteen vectors.
type Vectors = [[u8; 64]; LANES];

impl<const DIGITS: usize> Kernel for PairsBlock<'_, '_, DIGITS> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (mut t, end) = (self.rect.rows.start, self.rect.rows.end);
        while t < end {
            // So many panels at a time that enough sums are under way.
            t += match end - t {
                4.. if !S::BRAIN => self.tile::<S, 4, 1>(s, t, self.numbers(t)),
                2.. if !S::BRAIN => self.tile::<S, 2, 2>(s, t, self.numbers(t)),
                _ if !S::BRAIN => self.tile::<S, 1, 2>(s, t, self.numbers(t)),
                8.. if S::TILE >= 8 => self.tile::<S, 8, 2>(s, t, self.rounded(t)),
                4.. if S::TILE >= 4 => self.tile::<S, 4, 2>(s, t, self.rounded(t)),
                2.. => self.tile::<S, 2, 2>(s, t, self.rounded(t)),
                _ => self.tile::<S, 1, 2>(s, t, self.rounded(t)),
            };
        }
    }
}

impl<'a, const DIGITS: usize> PairsBlock<'a, '_, DIGITS> {
    /// `T` tokens from `t` on, rounded.
    #[inline(always)]
    fn rounded<const T: usize>(&self, t: usize) -> [&'a [Brain<DIGITS>]; T] {
        let (x, steps) = (self.x, self.cols / (2 * LANES));
        std::array::from_fn(|i| &x[(t + i) * steps..][..steps])
    }

    /// `T` tokens from `t` on, as they are.
    #[inline(always)]
    fn numbers<const T: usize>(&self, t: usize) -> [&'a [[f32; 2 * LANES]]; T] {
        let (x, cols) = (self.numbers, self.cols);
        std::array::from_fn(|i| x[(t + i) * cols..][..cols].as_chunks().0)
    }

    /// All panels for the `T` tokens `x`, which are those from `t` on, `P` panels at a time.
    #[inline(always)]
    fn tile<S: Simd, const T: usize, const P: usize>(&mut self, s: S, t: usize, x: impl Factors<T>) -> usize {
        let steps = self.cols / (2 * LANES);
        let panels = self.panels.as_chunks::<64>().0.as_chunks::<LANES>().0.chunks_exact(P * steps);
        let (rest, mut at) = (panels.remainder(), self.at);
        for some in panels {
            let some: [&[Vectors]; P] = std::array::from_fn(|p| &some[p * steps..][..steps]);
            at += self.write::<S, T, P>(s, t, at, x.times(s, some));
        }
        for one in rest.chunks_exact(steps) {
            at += self.write::<S, T, 1>(s, t, at, x.times(s, [one]));
        }
        T
    }

    #[inline(always)]
    fn write<S: Simd, const T: usize, const P: usize>(
        &mut self,
        s: S,
        t: usize,
        at: usize,
        sums: [[S::F; T]; P],
    ) -> usize {
        for (p, sums) in sums.into_iter().enumerate() {
            for (i, sums) in sums.into_iter().enumerate() {
                put(s, sums, self.bias, self.rect, t + i, at + p * LANES);
            }
        }
        P * LANES
    }
}

/// `T` rows of activations that panels of BF16 are multiplied by.
trait Factors<const T: usize>: Copy {
    /// Products with `P` panels.
    fn times<S: Simd, const P: usize>(self, s: S, panels: [&[Vectors]; P]) -> [[S::F; T]; P];
}

/// Rounded, digit after digit.
impl<const DIGITS: usize, const T: usize> Factors<T> for [&[Brain<DIGITS>]; T] {
    #[inline(always)]
    fn times<S: Simd, const P: usize>(self, s: S, panels: [&[Vectors]; P]) -> [[S::F; T]; P] {
        let mut acc = [[s.zero(); T]; P];
        let steps = self[0].len();
        // Cut to what is read, so that the loop checks nothing.
        let panels = panels.map(|p| &p[..steps]);
        let x = self.map(|x| &x[..steps]);
        for c in 0..steps {
            for k in 0..LANES {
                let w = panels.map(|p| s.load_b(&p[c][k]));
                for d in 0..DIGITS {
                    for i in 0..T {
                        let x = s.splat_word(x[i][c][d][k]);
                        for p in 0..P {
                            acc[p][i] = s.dot2_bf16(acc[p][i], w[p], x);
                        }
                    }
                }
            }
        }
        acc
    }
}

/// As they are: weights are widened.
impl<const T: usize> Factors<T> for [&[[f32; 2 * LANES]]; T] {
    #[inline(always)]
    fn times<S: Simd, const P: usize>(self, s: S, panels: [&[Vectors]; P]) -> [[S::F; T]; P] {
        let mut acc = [[s.zero(); T]; P];
        let steps = self[0].len();
        let panels = panels.map(|p| &p[..steps]);
        let x = self.map(|x| &x[..steps]);
        for c in 0..steps {
            for k in 0..LANES {
                for p in 0..P {
                    if T <= 2 && S::AHEAD > 0 && c + 1 < steps {
                        s.fetch(&panels[p][c + 1][k]);
                    }
                    let [low, high] = s.widen_pairs(s.load_b(&panels[p][c][k]));
                    for i in 0..T {
                        acc[p][i] = s.fma(low, s.splat(x[i][c][2 * k]), acc[p][i]);
                        acc[p][i] = s.fma(high, s.splat(x[i][c][2 * k + 1]), acc[p][i]);
                    }
                }
            }
        }
        acc
    }
}
