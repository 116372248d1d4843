//! Operations on pictures, channels innermost: convolution as a matrix product whose rows are gathered on the fly, group
//! normalisation, and the row operations of vision towers.
//!
//! Order of additions of a convolution: from the bias on, kernel rows, kernel columns, channels (pairs of them in bfloat16). A picture's
//! result depends on no other.

use crate::pool::Rect;
use crate::simd::{Kernel, LANES, Simd};

/// Outputs that are packed side by side.
pub(crate) const WIDTH: usize = 2 * LANES;
/// Pixels in registers.
const PIXELS: usize = 8;

/// Where a convolution's inputs lie.
#[derive(Clone, Copy)]
pub(crate) struct Lattice {
    /// Height and width of the input.
    pub(crate) from: [usize; 2],
    /// Height and width of the output.
    pub(crate) to: [usize; 2],
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Zeros before the first row and column.
    pub(crate) pad: usize,
    pub(crate) magnify: usize,
}

impl Lattice {
    /// The input pixel under kernel position (u, v) of output pixel `at`, counted over all pictures; none outside.
    #[inline(always)]
    fn source(&self, at: usize, u: usize, v: usize) -> Option<usize> {
        let [height, width] = self.to;
        let (picture, i, j) = (at / (height * width), at / width % height, at % width);
        let inside = |at: usize, side: usize| {
            let at = at.checked_sub(self.pad)?;
            (at < side * self.magnify).then_some(at / self.magnify)
        };
        let (y, x) = (inside(i * self.stride + u, self.from[0])?, inside(j * self.stride + v, self.from[1])?);
        Some((picture * self.from[0] + y) * self.from[1] + x)
    }
}

/// Numbers of a convolution: inputs of a pixel, and kernels of [`WIDTH`] outputs side by side.
pub(crate) trait Tap: Copy {
    /// The kernels that one input meets.
    type Row: Copy;
    /// Adds products to the sums of `V` vectors of outputs of `N` pixels.
    fn multiply<S: Simd, const N: usize, const V: usize>(
        s: S,
        pixels: [&[Self]; N],
        panel: &[Self::Row],
        sums: &mut [[S::F; V]; N],
    );
}

impl Tap for f32 {
    type Row = [f32; WIDTH];
    #[inline(always)]
    fn multiply<S: Simd, const N: usize, const V: usize>(
        s: S,
        pixels: [&[f32]; N],
        panel: &[[f32; WIDTH]],
        sums: &mut [[S::F; V]; N],
    ) {
        for (c, w) in panel.iter().enumerate() {
            let (parts, _) = w.as_chunks::<LANES>();
            let mut v = [s.zero(); V];
            for j in 0..V {
                v[j] = s.load(&parts[j]);
            }
            for i in 0..N {
                let x = s.splat(pixels[i][c]);
                for j in 0..V {
                    sums[i][j] = s.fma(x, v[j], sums[i][j]);
                }
            }
        }
    }
}

/// Two neighbouring channels in bfloat16.
pub(crate) type Pair = [u16; 2];

impl Tap for Pair {
    /// Lane l of either half: the two channels' kernels of an output.
    type Row = [[u16; 2 * LANES]; 2];
    #[inline(always)]
    fn multiply<S: Simd, const N: usize, const V: usize>(
        s: S,
        pixels: [&[Pair]; N],
        panel: &[[[u16; 2 * LANES]; 2]],
        sums: &mut [[S::F; V]; N],
    ) {
        for (c, w) in panel.iter().enumerate() {
            let mut v = [s.splat_b(0); V];
            for j in 0..V {
                v[j] = s.load_pairs(&w[j]);
            }
            for i in 0..N {
                let [low, high] = pixels[i][c];
                let x = s.splat_word(u32::from(low) | u32::from(high) << 16);
                for j in 0..V {
                    sums[i][j] = s.dot2_bf16(sums[i][j], v[j], x);
                }
            }
        }
    }
}

/// Rounds to bfloat16.
pub(crate) struct ToPairs<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) out: &'a mut [[u16; LANES]],
}

impl Kernel for ToPairs<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.x.as_chunks::<LANES>().0.iter().zip(self.out) {
            s.store_bf16(s.load(x), out);
        }
    }
}

/// A block of at most [`WIDTH`] outputs of a convolution.
pub(crate) struct ConvBlock<'a, 'b, 'r, T: Tap> {
    /// `[pixels, channels]`.
    pub(crate) x: &'a [T],
    /// A pixel of zeros.
    pub(crate) zeros: &'a [T],
    pub(crate) lattice: Lattice,
    /// `[kernel, kernel, channels]`.
    pub(crate) panel: &'a [T::Row],
    /// The block's part of the bias.
    pub(crate) bias: Option<&'a [f32]>,
    /// Rows are output pixels.
    pub(crate) rect: &'b mut Rect<'r>,
}

impl<T: Tap> Kernel for ConvBlock<'_, '_, '_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let rows = self.rect.rows.clone();
        let narrow = self.rect.width <= LANES;
        let mut row = rows.start;
        while narrow && row + 2 * PIXELS <= rows.end {
            self.tile::<S, { 2 * PIXELS }, 1>(s, row);
            row += 2 * PIXELS;
        }
        while row + PIXELS <= rows.end {
            self.tile::<S, PIXELS, 2>(s, row);
            row += PIXELS;
        }
        while row < rows.end {
            self.tile::<S, 1, 2>(s, row);
            row += 1;
        }
    }
}

impl<T: Tap> ConvBlock<'_, '_, '_, T> {
    #[inline(always)]
    fn tile<S: Simd, const N: usize, const V: usize>(&mut self, s: S, row: usize) {
        let (channels, k) = (self.zeros.len(), self.lattice.kernel);
        let mut first = [0.0; WIDTH];
        if let Some(bias) = self.bias {
            first[..bias.len()].copy_from_slice(bias);
        }
        let (halves, _) = first.as_chunks::<LANES>();
        let mut sums = [[s.zero(); V]; N];
        for sum in &mut sums {
            for j in 0..V {
                sum[j] = s.load(&halves[j]);
            }
        }
        for (tap, panel) in self.panel.chunks_exact(channels).enumerate() {
            let pixels: [&[T]; N] = std::array::from_fn(|i| match self.lattice.source(row + i, tap / k, tap % k) {
                Some(at) => &self.x[at * channels..][..channels],
                None => self.zeros,
            });
            T::multiply::<S, N, V>(s, pixels, panel, &mut sums);
        }
        for (i, sum) in sums.iter().enumerate() {
            let out = self.rect.row(row + i);
            for (sum, out) in sum.iter().zip(out.chunks_mut(LANES)) {
                s.store_part(*sum, out);
            }
        }
    }
}

/// Mean of each channel over some pixels, and the sum of the squares of what differs from it.
pub(crate) struct Moments<'a> {
    /// `[pixels, channels]`.
    pub(crate) x: &'a [f32],
    /// `[channels]`.
    pub(crate) mean: &'a mut [f32],
    /// `[channels]`.
    pub(crate) squares: &'a mut [f32],
}

impl Kernel for Moments<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.mean.len();
        let share = s.splat(1.0 / (self.x.len() / channels) as f32);
        self.mean.fill(0.0);
        self.squares.fill(0.0);
        for pixel in self.x.chunks_exact(channels) {
            for (m, x) in self.mean.chunks_mut(LANES).zip(pixel.chunks(LANES)) {
                s.store_part(s.add(s.load_part(m), s.load_part(x)), m);
            }
        }
        for m in self.mean.chunks_mut(LANES) {
            s.store_part(s.mul(s.load_part(m), share), m);
        }
        for pixel in self.x.chunks_exact(channels) {
            let ms = self.mean.chunks(LANES);
            for ((q, x), m) in self.squares.chunks_mut(LANES).zip(pixel.chunks(LANES)).zip(ms) {
                let d = s.sub(s.load_part(x), s.load_part(m));
                s.store_part(s.fma(d, d, s.load_part(q)), q);
            }
        }
    }
}

/// `factor · x + shift` per channel, then `silu` if asked for.
pub(crate) struct Affine<'a> {
    /// `[pixels, channels]`.
    pub(crate) x: &'a [f32],
    pub(crate) factor: &'a [f32],
    pub(crate) shift: &'a [f32],
    pub(crate) silu: bool,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for Affine<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.factor.len();
        for (x, out) in self.x.chunks_exact(channels).zip(self.out.chunks_exact_mut(channels)) {
            let coefficients = self.factor.chunks(LANES).zip(self.shift.chunks(LANES));
            for ((x, o), (f, b)) in x.chunks(LANES).zip(out.chunks_mut(LANES)).zip(coefficients) {
                let y = s.fma(s.load_part(x), s.load_part(f), s.load_part(b));
                let y = if self.silu { s.div(y, s.add(s.splat(1.0), s.exp(s.sub(s.zero(), y)))) } else { y };
                s.store_part(y, o);
            }
        }
    }
}

/// `(x − mean) / √(variance + eps) · weight + bias` (Ba et al. 2016, eq. 3).
pub(crate) struct LayerNorm<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) eps: f32,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.weight.len();
        for (x, out) in self.x.chunks_exact(cols).zip(self.out.chunks_exact_mut(cols)) {
            let mut sum = s.zero();
            for x in x.chunks(LANES) {
                sum = s.add(sum, s.load_part(x));
            }
            let mean = s.sum(sum) / cols as f32;
            let mut squares = 0.0;
            for x in x.chunks(LANES) {
                let mut d = [0.0; LANES];
                s.store(s.sub(s.load_part(x), s.splat(mean)), &mut d);
                d[x.len()..].fill(0.0);
                let d = s.load(&d);
                squares += s.sum(s.mul(d, d));
            }
            let r = s.splat(1.0 / (squares / cols as f32 + self.eps).sqrt());
            let coefficients = self.weight.chunks(LANES).zip(self.bias.chunks(LANES));
            for ((x, o), (w, b)) in x.chunks(LANES).zip(out.chunks_mut(LANES)).zip(coefficients) {
                let y = s.mul(s.sub(s.load_part(x), s.splat(mean)), r);
                s.store_part(s.fma(y, s.load_part(w), s.load_part(b)), o);
            }
        }
    }
}

/// `x ← x · Φ(x)`, with the normal distribution by Abramowitz & Stegun 7.1.26 (absolute error 1.5e-7).
pub(crate) struct Gelu<'a> {
    pub(crate) x: &'a mut [f32],
}

impl Kernel for Gelu<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.x.chunks_mut(LANES) {
            let v = s.load_part(x);
            let size = s.max(v, s.sub(s.zero(), v));
            let z = s.mul(size, s.splat(std::f32::consts::FRAC_1_SQRT_2));
            let t = s.div(s.splat(1.0), s.fma(z, s.splat(0.327_591_1), s.splat(1.0)));
            let mut p = s.splat(1.061_405_4);
            for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
                p = s.fma(p, t, s.splat(c));
            }
            // erfc(|x| / √2); x Φ(x) = max(x, 0) − |x| erfc / 2 on both sides of zero.
            let tail = s.mul(s.mul(p, t), s.exp(s.sub(s.zero(), s.mul(z, z))));
            let y = s.sub(s.max(v, s.zero()), s.mul(s.mul(size, tail), s.splat(0.5)));
            s.store_part(y, x);
        }
    }
}
