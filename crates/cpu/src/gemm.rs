//! Products of training on the pool: several at once that share their width, such as one per expert.
//!
//! First the right factors are packed, then bands of rows are computed, each task packing its own rows of the left factor. Work is cut by
//! shapes alone, so a result does not depend on the number of threads.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Mutex;

use arrayvec::ArrayVec;
use fathom_core::backend::Outputs;
use fathom_core::{DType, Proj, ResidentExperts, Result, Shape, Tensor, format};

use crate::Cpu;
use crate::backend::lock;
use crate::kernels::gemm::{
    PANEL, PackPanel, Pair, Product, ROWS, Single, Strided, WIDTH, Word, depth_step, tile_words,
};
use crate::kernels::rows::AddScaled;
use crate::matrix::Matrix;
use crate::product::{Order, Part};
use crate::simd::LANES;

/// What the products of training multiply; sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// The factors as they are.
    F32,
    /// The factors rounded to bfloat16 (Micikevicius et al. 2018, mixed precision), but for products with fewer columns than a
    /// panel has: those are cheap, and a router is among them, whose choices hang on the last bits.
    Bf16,
}

/// `[rows, depth] · [depth, columns]`.
#[derive(Clone, Copy)]
pub(crate) struct Factors<'a> {
    pub(crate) a: Strided<'a>,
    pub(crate) b: Strided<'a>,
    pub(crate) rows: usize,
    pub(crate) depth: usize,
}

/// Words of memory for [`Cpu::gemm_here`] of a product of this size.
pub(crate) fn room(rows: usize, cols: usize, depth: usize) -> usize {
    cols.div_ceil(WIDTH) * depth.div_ceil(LANES) * PANEL + tile_words(rows)
}

/// Tiles of rows in a task, at most.
const TILES: usize = 8;

impl Cpu {
    /// What derivatives multiply.
    pub(crate) fn factors(&self) -> Products {
        self.training.unwrap_or(Products::F32)
    }

    /// `out = α·A·B + β·out`, the products' rows one below the other, each `cols` wide.
    pub(crate) fn gemm(
        &self,
        products: Products,
        all: &[Factors<'_>],
        out: &mut [f32],
        cols: usize,
        alpha: f32,
        beta: f32,
    ) {
        if out.is_empty() {
            return;
        }
        match products {
            Products::Bf16 if cols >= WIDTH => self.gemm_of::<Pair>(all, out, cols, alpha, beta),
            _ => self.gemm_of::<Single>(all, out, cols, alpha, beta),
        }
    }

    fn gemm_of<W: Word>(&self, all: &[Factors<'_>], out: &mut [f32], cols: usize, alpha: f32, beta: f32) {
        let panels = cols.div_ceil(WIDTH);
        // Where each product's packed columns begin, in blocks of LANES words of depth and WIDTH columns.
        let mut starts = vec![0];
        for f in all {
            starts.push(starts.last().copied().unwrap_or(0) + panels * f.depth.div_ceil(W::NUMBERS).div_ceil(LANES));
        }
        let total = starts[all.len()];
        let mut packed = lock(&self.packed);
        if packed.len() < total * PANEL {
            packed.resize(total * PANEL, 0);
        }
        let grain = Self::grain(total, PANEL);
        self.pool.chunks_mut(&mut packed[..total * PANEL], grain * PANEL, |first, chunk| {
            for (i, out) in chunk.chunks_exact_mut(PANEL).enumerate() {
                let block = first / PANEL + i;
                let which = starts.partition_point(|&s| s <= block) - 1;
                self.pack_block::<W>(all[which].b, all[which].depth, cols, block - starts[which], out);
            }
        });
        // Bands of rows: each within one product.
        let rows: usize = all.iter().map(|f| f.rows).sum();
        let work = all.iter().map(|f| f.rows * f.depth).sum::<usize>() * cols;
        let tiles = if work < 1 << 18 { rows } else { (rows / ROWS / 4).clamp(1, TILES) };
        let (mut bands, mut of) = (vec![0], Vec::new());
        let mut top = 0;
        for (which, f) in all.iter().enumerate() {
            for first in (0..f.rows).step_by(tiles * ROWS) {
                bands.push(top + f.rows.min(first + tiles * ROWS));
                of.push((which, first));
            }
            top += f.rows;
        }
        self.tiles.reserve(tile_words(rows.min(tiles * ROWS)));
        let packed = &packed[..];
        let mut rest = out;
        let outs: Vec<Mutex<&mut [f32]>> = bands
            .windows(2)
            .map(|band| {
                let (out, below) = std::mem::take(&mut rest).split_at_mut((band[1] - band[0]) * cols);
                rest = below;
                Mutex::new(out)
            })
            .collect();
        self.pool.run(outs.len(), |task| {
            let (which, first) = of[task.index];
            let Factors { a, depth, .. } = all[which];
            let panels = &packed[starts[which] * PANEL..starts[which + 1] * PANEL];
            let (tiles, out) = (&mut self.tiles.lock(task.worker)[..], &mut lock(&outs[task.index])[..]);
            let (rows, stride, across, word) = (out.len() / cols, cols, cols.div_ceil(WIDTH), PhantomData::<W>);
            self.isa.run(Product {
                a,
                first,
                rows,
                depth,
                panels,
                across,
                cols,
                out,
                stride,
                alpha,
                beta,
                tiles,
                word,
            });
        });
    }

    /// Packs block `block` of a right factor, `LANES` words deep and a panel wide: blocks of one panel follow each other within a step of
    /// depth (see [`depth_step`]), so that panels which are packed one after the other read the same rows.
    fn pack_block<W: Word>(&self, b: Strided<'_>, depth: usize, cols: usize, block: usize, out: &mut [u32]) {
        let units = depth.div_ceil(W::NUMBERS);
        let (deep, step) = (units.div_ceil(LANES), depth_step(units) / LANES);
        let panels = cols.div_ceil(WIDTH);
        let top = block / (panels * step) * step;
        let (n, rest) = (step.min(deep - top), block - top * panels);
        let (first, from) = (rest / n * WIDTH, (top + rest % n) * LANES * W::NUMBERS);
        let (width, k) = (WIDTH.min(cols - first), from..depth.min(from + LANES * W::NUMBERS));
        self.isa.run(PackPanel { b, first, width, k, out, word: PhantomData::<W> });
    }

    /// [`Cpu::gemm`] of one product within a task; element (i, j) of the result is `out[i × stride + j]`. `words` has room
    /// for [`room`].
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn gemm_here(
        &self,
        products: Products,
        f: Factors<'_>,
        cols: usize,
        (out, stride): (&mut [f32], usize),
        alpha: f32,
        beta: f32,
        words: &mut [u32],
    ) {
        let bands = std::iter::once((0..f.rows, cols));
        match products {
            Products::Bf16 => self.gemm_here_of::<Pair>(f, cols, (out, stride), alpha, beta, words, bands),
            Products::F32 => self.gemm_here_of::<Single>(f, cols, (out, stride), alpha, beta, words, bands),
        }
    }

    /// [`Cpu::gemm_here`] where A·B and C are symmetric: what lies below the diagonal is computed, and mirrored.
    pub(crate) fn symmetric_here(
        &self,
        products: Products,
        f: Factors<'_>,
        out: &mut [f32],
        alpha: f32,
        beta: f32,
        words: &mut [u32],
    ) {
        let n = f.rows;
        let bands = (0..n).step_by(2 * ROWS).map(|first| {
            let end = n.min(first + 2 * ROWS);
            (first..end, end)
        });
        match products {
            Products::Bf16 => self.gemm_here_of::<Pair>(f, n, (out, n), alpha, beta, words, bands),
            Products::F32 => self.gemm_here_of::<Single>(f, n, (out, n), alpha, beta, words, bands),
        }
        // Blocks of 16 × 16, so that columns are not walked through all of memory.
        for i in (0..n).step_by(LANES) {
            for j in (0..=i).step_by(LANES) {
                for row in i..n.min(i + LANES) {
                    for col in j..row.min(j + LANES) {
                        out[col * n + row] = out[row * n + col];
                    }
                }
            }
        }
    }

    /// Computes bands: some rows, and of these the first so many columns.
    #[allow(clippy::too_many_arguments)]
    fn gemm_here_of<W: Word>(
        &self,
        Factors { a, b, depth, .. }: Factors<'_>,
        cols: usize,
        (out, stride): (&mut [f32], usize),
        alpha: f32,
        beta: f32,
        words: &mut [u32],
        bands: impl Iterator<Item = (Range<usize>, usize)>,
    ) {
        let across = cols.div_ceil(WIDTH);
        let (packed, tiles) = words.split_at_mut(across * depth.div_ceil(W::NUMBERS).div_ceil(LANES) * PANEL);
        for (block, out) in packed.chunks_exact_mut(PANEL).enumerate() {
            self.pack_block::<W>(b, depth, cols, block, out);
        }
        let word = PhantomData::<W>;
        let panels = &*packed;
        for (rows, cols) in bands {
            let (first, rows, out) = (rows.start, rows.len(), &mut out[rows.start * stride..]);
            self.isa.run(Product {
                a,
                first,
                rows,
                depth,
                panels,
                across,
                cols,
                out,
                stride,
                alpha,
                beta,
                tiles,
                word,
            });
        }
    }

    /// As [`Cpu::products`], in the way of training; `x` has a row for each of the bands'.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn trained_products(
        &self,
        op: &'static str,
        products: Products,
        x: Strided<'_>,
        cols: usize,
        bands: &[usize],
        experts: &[usize],
        parts: &[Part<'_>],
        outs: &mut Outputs,
    ) -> Result<()> {
        for (y, p) in outs.iter_mut().zip(parts) {
            let y = self.arena.f32s_mut(op, y)?;
            let weights: Vec<Cow<'_, [f32]>> =
                experts.iter().map(|&e| self.values(&p.each[e], 0..p.rows, cols)).collect();
            let all: Vec<Factors<'_>> = bands
                .windows(2)
                .zip(&weights)
                .map(|(band, w)| Factors {
                    a: x.below(band[0]),
                    b: Strided::rows(w, cols).transposed(),
                    rows: band[1] - band[0],
                    depth: cols,
                })
                .collect();
            self.gemm(products, &all, y, p.rows, 1.0, 0.0);
            if let Some(bias) = p.bias {
                self.pool.chunks_mut(y, Self::grain(y.len() / p.rows, p.rows) * p.rows, |_, y| {
                    for x in y.chunks_exact_mut(p.rows) {
                        self.isa.run(AddScaled { x, y: bias, factor: 1.0 });
                    }
                });
            }
        }
        Ok(())
    }

    /// Projections of the rows of `x` that go to experts, in sorted order; slot s reads row `s / sharing`.
    pub(crate) fn trained_experts(
        &self,
        op: &'static str,
        products: Products,
        x: &Tensor,
        order: &Order,
        sharing: usize,
        projs: &[&ResidentExperts],
    ) -> Result<Outputs> {
        let mut outs = Outputs::new();
        let mut parts = ArrayVec::<Part<'_>, 4>::new();
        for p in projs {
            outs.push(self.arena.alloc(Shape::matrix(order.slots.len(), p.each.rows), DType::F32));
            parts.push(self.part(op, Proj { weight: &p.each, bias: None })?);
        }
        let (rows, cols) = (order.rows(sharing), x.cols());
        let xs = Strided::picked(self.arena.f32s(op, x)?, cols, &rows);
        self.trained_products(op, products, xs, cols, &order.bands, &order.experts, &parts, &mut outs)?;
        Ok(outs)
    }

    /// The values of some rows of a matrix: its own memory if that holds f32, else decoded.
    pub(crate) fn values<'a>(&self, m: &'a Matrix, rows: Range<usize>, cols: usize) -> Cow<'a, [f32]> {
        if let Matrix::Plain(w) = m
            && w.format == format::F32
            && let Ok(values) = bytemuck::try_cast_slice(w.bytes.as_slice())
        {
            let values: &[f32] = values;
            return Cow::Borrowed(&values[rows.start * cols..rows.end * cols]);
        }
        let mut room = vec![0.0; rows.len() * cols];
        let n = Self::grain(rows.len(), 8 * cols);
        self.pool.chunks_mut(&mut room, n * cols, |first, out| {
            for (i, out) in out.chunks_exact_mut(cols).enumerate() {
                m.decode_row(rows.start + first / cols + i, out);
            }
        });
        Cow::Owned(room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Level, Pool};

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// Both ways of reading a matrix `[rows, cols]`.
    fn strided(data: &[f32], rows: usize, cols: usize, transposed: bool) -> Strided<'_> {
        if transposed { Strided::rows(data, rows).transposed() } else { Strided::rows(data, cols) }
    }

    /// Products of every shape that edges, tiles, panels and blocks of depth make, against sums in f64; with two threads
    /// as with one, bit for bit.
    #[test]
    fn products_are_right_at_every_level() {
        for isa in Level::present() {
            let cpus = [1, 2].map(|n| Cpu::training(Pool::new(n).unwrap(), Some(isa), Products::F32).unwrap());
            for (case, &(cols, depths, rows)) in [
                (1, [1, 1], [1, 1]),
                (33, [5, 0], [12, 7]),
                (32, [33, 31], [25, 1]),
                (80, [64, 65], [13, 48]),
                (193, [401, 390], [97, 30]),
                (64, [800, 3], [20, 130]),
            ]
            .iter()
            .enumerate()
            {
                for layout in 0..4 {
                    let (ta, tb) = (layout & 1 != 0, layout & 2 != 0);
                    let factors: Vec<(Vec<f32>, Vec<f32>)> = (0..2)
                        .map(|g| (numbers(rows[g] * depths[g], case + g), numbers(depths[g] * cols, 7 * case + g)))
                        .collect();
                    let all: Vec<Factors<'_>> = (0..2)
                        .map(|g| Factors {
                            a: strided(&factors[g].0, rows[g], depths[g], ta),
                            b: strided(&factors[g].1, depths[g], cols, tb),
                            rows: rows[g],
                            depth: depths[g],
                        })
                        .collect();
                    let old = numbers((rows[0] + rows[1]) * cols, 3);
                    for (products, rounding) in [(Products::F32, 1e-6), (Products::Bf16, 8e-3)] {
                        let mut out = [old.clone(), old.clone()];
                        for (cpu, out) in cpus.iter().zip(&mut out) {
                            cpu.gemm(products, &all, out, cols, 0.5, 2.0);
                        }
                        assert!(out[0] == out[1], "{isa:?} {products:?} {cols} {depths:?} {rows:?}: threads");
                        for (i, found) in out[0].iter().enumerate() {
                            let (row, col) = (i / cols, i % cols);
                            let (g, row) = if row < rows[0] { (0, row) } else { (1, row - rows[0]) };
                            let term = |k: usize| f64::from(all[g].a.get(row, k)) * f64::from(all[g].b.get(k, col));
                            let size: f64 = (0..depths[g]).map(|k| term(k).abs()).sum::<f64>() + 2.0;
                            let exact = 0.5 * (0..depths[g]).map(term).sum::<f64>() + 2.0 * f64::from(old[i]);
                            let off = (f64::from(*found) - exact).abs();
                            assert!(
                                off <= rounding * size,
                                "{isa:?} {products:?} {cols} {depths:?} {rows:?} {layout}: {off}"
                            );
                        }
                    }
                }
            }
        }
    }
}
