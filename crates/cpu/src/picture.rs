//! Convolutions and norms over pictures: how they are cut into tasks.

use std::sync::Arc;

use fathom_core::{ConvSpec, DType, GroupNormSpec, Proj, Resident, Result, Tensor, Weight, check};

use crate::kernels::picture::{Affine, ConvBlock, Lattice, Moments, WIDTH};
use crate::pool::Grid;
use crate::{Cpu, DEVICE};

/// Output pixels per task: their inputs stay in the cache while a block of kernels passes over them.
const PIXELS: usize = 256;
/// Pixels whose moments are taken together.
const CHUNK: usize = 64;

/// The kernels of a convolution, [`WIDTH`] side by side: `[blocks][kernel, kernel, channels][WIDTH]`, zeros beyond the last.
struct Kernels {
    panels: Vec<f32>,
    /// A pixel of zeros.
    zeros: Vec<f32>,
}

impl Cpu {
    pub(crate) fn pack_conv(&self, weight: &Weight, kernel: usize) -> Result<Resident> {
        check::upload_conv(weight, kernel)?;
        let (taps, depth) = (kernel * kernel, weight.cols);
        let channels = depth / taps;
        let mut panels = vec![0.0; weight.rows.div_ceil(WIDTH) * depth * WIDTH];
        self.pool.chunks_mut(&mut panels, depth * WIDTH, |first, panel| {
            let mut row = vec![0.0; depth];
            let outs = first / depth..weight.rows.min(first / depth + WIDTH);
            for (lane, out) in outs.enumerate() {
                weight.decode_row(out, &mut row);
                for (at, to) in panel[lane..].iter_mut().step_by(WIDTH).enumerate() {
                    *to = row[at % channels * taps + at / channels];
                }
            }
        });
        let kernels = Kernels { panels, zeros: vec![0.0; channels] };
        Ok(Resident::new(DEVICE, weight.rows, depth, weight.format, Arc::new(kernels)))
    }

    pub(crate) fn convolve(&self, x: &Tensor, p: Proj<'_>, spec: &ConvSpec) -> Result<Tensor> {
        let op = "conv2d";
        let shape = check::conv2d(x, &p, spec)?;
        let kernels: &Kernels = p.weight.data(op, DEVICE)?;
        let bias = p.bias.map(|b| self.vector(op, b)).transpose()?;
        let side = |t: fathom_core::Shape| [t.dims()[1], t.dims()[2]];
        let lattice = Lattice {
            from: side(x.shape),
            to: side(shape),
            kernel: spec.kernel,
            stride: spec.stride,
            pad: spec.pad.0,
            magnify: spec.magnify,
        };
        let (xs, outs, depth) = (self.arena.f32s(op, x)?, p.weight.rows, p.weight.cols);
        let mut out = self.arena.alloc(shape, DType::F32);
        let bands: Vec<usize> = (0..shape.rows()).step_by(PIXELS).chain([shape.rows()]).collect();
        let mut grid = Grid::new(shape.rows(), WIDTH).out(self.arena.f32s_mut(op, &mut out)?, outs).bands(&bands);
        self.pool.rects(&mut grid, |_, mut rect| {
            let panel = &kernels.panels[rect.first * depth..][..depth * WIDTH];
            let bias = bias.map(|b| &b[rect.first..rect.first + rect.width]);
            self.isa.run(ConvBlock { x: xs, zeros: &kernels.zeros, lattice, panel, bias, rect: &mut rect });
        });
        Ok(out)
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
