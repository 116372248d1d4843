//! Convolutions and norms over pictures: how they are cut into tasks.

use std::sync::Arc;

use fathom_core::{ConvSpec, DType, GroupNormSpec, Precision, Proj, Resident, Result, Shape, Tensor, Weight, check};
use half::bf16;

use crate::backend::lock;
use crate::kernels::picture::{Affine, ConvBlock, Lattice, Moments, Pair, Tap, ToPairs, WIDTH};
use crate::pool::Grid;
use crate::simd::LANES;
use crate::{Cpu, DEVICE};

/// Output pixels per task: their inputs stay in the cache while a block of kernels passes over them.
const PIXELS: usize = 256;
/// Pixels whose moments are taken together.
const CHUNK: usize = 64;

/// The kernels of a convolution, [`WIDTH`] side by side: `[blocks][kernel, kernel, channels][WIDTH]`, zeros beyond the last; and a
/// pixel of zeros.
enum Kernels {
    F32(Vec<[f32; WIDTH]>, Vec<f32>),
    /// Two channels at a time.
    Brain(Vec<<Pair as Tap>::Row>, Vec<Pair>),
}

impl Cpu {
    /// Whether a convolution of so many channels is computed in bfloat16.
    fn conv_in_brain(&self, channels: usize) -> bool {
        self.precision == Precision::Fast && self.isa.brain() && channels.is_multiple_of(2 * LANES)
    }

    pub(crate) fn pack_conv(&self, weight: &Weight, kernel: usize) -> Result<Resident> {
        check::upload_conv(weight, kernel)?;
        let (taps, depth) = (kernel * kernel, weight.cols);
        let channels = depth / taps;
        let blocks = weight.rows.div_ceil(WIDTH);
        let outs_of = |block: usize| block * WIDTH..weight.rows.min((block + 1) * WIDTH);
        // From PyTorch's order, channels outermost, to ours.
        let place = |at: usize| at % channels * taps + at / channels;
        let kernels = if self.conv_in_brain(channels) {
            let mut panels = vec![[[0; 2 * LANES]; 2]; blocks * depth / 2];
            self.pool.chunks_mut(&mut panels, depth / 2, |first, panel| {
                let mut row = vec![0.0; depth];
                for (lane, out) in outs_of(first / (depth / 2)).enumerate() {
                    weight.decode_row(out, &mut row);
                    for (pair, to) in panel.iter_mut().enumerate() {
                        for half in 0..2 {
                            let v = bf16::from_f32(row[place(2 * pair + half)]);
                            to[lane / LANES][lane % LANES * 2 + half] = v.to_bits();
                        }
                    }
                }
            });
            Kernels::Brain(panels, vec![[0; 2]; channels / 2])
        } else {
            let mut panels = vec![[0.0; WIDTH]; blocks * depth];
            self.pool.chunks_mut(&mut panels, depth, |first, panel| {
                let mut row = vec![0.0; depth];
                for (lane, out) in outs_of(first / depth).enumerate() {
                    weight.decode_row(out, &mut row);
                    panel.iter_mut().enumerate().for_each(|(at, to)| to[lane] = row[place(at)]);
                }
            });
            Kernels::F32(panels, vec![0.0; channels])
        };
        Ok(Resident::new(DEVICE, weight.rows, depth, weight.format, Arc::new(kernels)))
    }

    pub(crate) fn convolve(&self, x: &Tensor, p: Proj<'_>, spec: &ConvSpec) -> Result<Tensor> {
        let op = "conv2d";
        let shape = check::conv2d(x, &p, spec)?;
        let kernels: &Kernels = p.weight.data(op, DEVICE)?;
        let bias = p.bias.map(|b| self.vector(op, b)).transpose()?;
        let side = |t: Shape| [t.dims()[1], t.dims()[2]];
        let lattice = Lattice {
            from: side(x.shape),
            to: side(shape),
            kernel: spec.kernel,
            stride: spec.stride,
            pad: spec.pad.0,
            magnify: spec.magnify,
        };
        let xs = self.arena.f32s(op, x)?;
        let mut out = self.arena.alloc(shape, DType::F32);
        let ys = self.arena.f32s_mut(op, &mut out)?;
        match kernels {
            Kernels::F32(panels, zeros) => self.convolve_with(xs, zeros, panels, bias, lattice, ys, shape),
            Kernels::Brain(panels, zeros) => {
                let mut pixels = lock(&self.pixels);
                let vectors = xs.len() / LANES;
                if pixels.len() < vectors {
                    pixels.resize(vectors, [0; LANES]);
                }
                let n = Self::grain(vectors, LANES);
                self.pool.chunks_mut(&mut pixels[..vectors], n, |first, out| {
                    self.isa.run(ToPairs { x: &xs[first * LANES..(first + out.len()) * LANES], out });
                });
                let (pairs, _) = pixels[..vectors].as_flattened().as_chunks::<2>();
                self.convolve_with(pairs, zeros, panels, bias, lattice, ys, shape);
            }
        }
        Ok(out)
    }

    #[allow(clippy::too_many_arguments)]
    fn convolve_with<T: Tap + Sync>(
        &self,
        x: &[T],
        zeros: &[T],
        panels: &[T::Row],
        bias: Option<&[f32]>,
        lattice: Lattice,
        out: &mut [f32],
        shape: Shape,
    ) where
        T::Row: Sync,
    {
        let depth = lattice.kernel * lattice.kernel * zeros.len();
        let bands: Vec<usize> = (0..shape.rows()).step_by(PIXELS).chain([shape.rows()]).collect();
        let mut grid = Grid::new(shape.rows(), WIDTH).out(out, shape.cols()).bands(&bands);
        self.pool.rects(&mut grid, |_, mut rect| {
            let panel = &panels[rect.first / WIDTH * depth..][..depth];
            let bias = bias.map(|b| &b[rect.first..rect.first + rect.width]);
            self.isa.run(ConvBlock { x, zeros, lattice, panel, bias, rect: &mut rect });
        });
    }

    pub(crate) fn normalise_groups(
        &self,
        x: &Tensor,
        weight: &Resident,
        bias: &Resident,
        spec: &GroupNormSpec,
    ) -> Result<Tensor> {
        let op = "group_norm";
        let [_, pixels, channels] = check::group_norm(x, weight, bias, spec)?;
        let (xs, w, b) = (self.arena.f32s(op, x)?, self.vector(op, weight)?, self.vector(op, bias)?);
        let mut out = self.arena.alloc(x.shape, DType::F32);
        let (picture, chunk) = (pixels * channels, CHUNK * channels);
        let chunks = pixels.div_ceil(CHUNK);
        let mut moments = vec![0.0; chunks * 2 * channels];
        let mut affine = vec![0.0; 2 * channels];
        let outs = self.arena.f32s_mut(op, &mut out)?;
        for (xs, outs) in xs.chunks_exact(picture).zip(outs.chunks_exact_mut(picture)) {
            self.pool.chunks_mut(&mut moments, 2 * channels, |first, m| {
                let (mean, squares) = m.split_at_mut(channels);
                let at = first / (2 * channels) * chunk;
                self.isa.run(Moments { x: &xs[at..picture.min(at + chunk)], mean, squares });
            });
            let (factor, shift) = affine.split_at_mut(channels);
            fold(&moments, pixels, (w, b), spec, factor, shift);
            let (factor, shift) = (&*factor, &*shift);
            let n = Self::grain(pixels, 8 * channels) * channels;
            self.pool.chunks_mut(outs, n, |first, out| {
                let x = &xs[first..first + out.len()];
                self.isa.run(Affine { x, factor, shift, silu: spec.silu, out });
            });
        }
        Ok(out)
    }
}

/// From moments of chunks to `factor · x + shift` per channel: the moments of a group are put together chunk by chunk, channel by
/// channel (Chan, Golub & LeVeque 1979), in f64.
fn fold(
    moments: &[f32],
    pixels: usize,
    (weight, bias): (&[f32], &[f32]),
    spec: &GroupNormSpec,
    factor: &mut [f32],
    shift: &mut [f32],
) {
    let channels = weight.len();
    let size = channels / spec.groups;
    for group in (0..channels).step_by(size) {
        let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
        for (chunk, m) in moments.chunks_exact(2 * channels).enumerate() {
            let n = CHUNK.min(pixels - chunk * CHUNK) as f64;
            for c in group..group + size {
                let delta = f64::from(m[c]) - mean;
                let total = count + n;
                mean += delta * n / total;
                squares += f64::from(m[channels + c]) + delta * delta * count * n / total;
                count = total;
            }
        }
        let r = 1.0 / (squares / count + f64::from(spec.eps)).sqrt();
        for c in group..group + size {
            let f = r * f64::from(weight[c]);
            factor[c] = f as f32;
            shift[c] = (f64::from(bias[c]) - mean * f) as f32;
        }
    }
}
