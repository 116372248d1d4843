//! Products with weights: several projections, one matrix or many experts, in one region.
//!
//! In fast precision activations are rounded, to one digit or to two ([`After`]). What attention reads needs the second digit most (softmax
//! amplifies it, and all later positions see it) and costs least.
//!
//! Rows arrive sorted into bands, one per expert in use (a plain linear layer is one band and one expert). A task is a band times a block
//! of a projection's outputs.

use std::ops::Range;
use std::sync::Mutex;

use arrayvec::ArrayVec;
use fathom_core::backend::Outputs;
use fathom_core::{DType, Precision, Proj, ResidentExperts, Result, Shape, Tensor};

use crate::Cpu;
use crate::backend::lock;
use crate::kernels::dot::{Brain, DotBlock, PairsBlock, ToBrain};
use crate::kernels::pack::PackPanel;
use crate::kernels::packed::{Act, PackedBlock, Quantise};
use crate::kernels::rows::{AddScaled, SwiGlu};
use crate::matrix::{Matrix, Way};
use crate::pack::{BLOCK, Layout, ROWS};
use crate::pool::{Grid, Rect};
use crate::simd::LANES;

/// One projection.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    /// Its matrix, or one per expert.
    pub(crate) each: &'a [Matrix],
    /// Outputs.
    pub(crate) rows: usize,
    /// Added to every row of the result.
    pub(crate) bias: Option<&'a [f32]>,
}

/// What an error of rounding does after a product, which decides how many digits activations get.
#[derive(Clone, Copy)]
pub(crate) enum After {
    /// Attention amplifies it, and experts may be chosen by it: two digits.
    Attention,
    /// The same without experts ([`Backend::linear_steady`](fathom_core::Backend::linear_steady)): one digit does for K formats, which llama.cpp
    /// multiplies with one scale for 256 activations.
    Steady,
    /// Little: one digit, unless two are no slower.
    Little,
}

/// Memory for activations rounded to `DIGITS` digits.
#[derive(Default)]
pub(crate) struct Rounded<const DIGITS: usize> {
    /// For packed weights.
    pub(crate) acts: Vec<Act<DIGITS>>,
    /// The same before they are sorted.
    unsorted: Vec<Act<DIGITS>>,
    /// For bfloat16 weights.
    brains: Vec<Brain<DIGITS>>,
}

/// Rows that are multiplied: as numbers, and in the roundings that the matrices want.
#[derive(Clone, Copy)]
struct Rows<'a, const DIGITS: usize> {
    x: &'a [f32],
    acts: &'a [Act<DIGITS>],
    brains: &'a [Brain<DIGITS>],
    cols: usize,
}

/// Slots sorted by expert.
#[derive(Default)]
pub(crate) struct Order {
    /// Slot numbers, expert after expert, ascending within each.
    pub(crate) slots: Vec<usize>,
    /// Band b is `slots[bands[b]..bands[b + 1]]`.
    pub(crate) bands: Vec<usize>,
    /// The expert of each band; experts that nobody chose have none.
    pub(crate) experts: Vec<usize>,
    /// Where each slot went: the inverse of `slots`.
    pub(crate) places: Vec<usize>,
    ends: Vec<usize>,
}

impl Order {
    /// Sorts: `chosen[slot]` is an expert below `experts`.
    pub(crate) fn sort(&mut self, chosen: &[u32], experts: usize) {
        self.ends.clear();
        self.ends.resize(experts, 0);
        chosen.iter().for_each(|&e| self.ends[e as usize] += 1);
        self.bands.clear();
        self.experts.clear();
        self.bands.push(0);
        let mut total = 0;
        for (e, end) in self.ends.iter_mut().enumerate() {
            let n = std::mem::replace(end, total);
            total += n;
            if n > 0 {
                self.bands.push(total);
                self.experts.push(e);
            }
        }
        self.slots.clear();
        self.slots.resize(chosen.len(), 0);
        self.places.clear();
        for (slot, &e) in chosen.iter().enumerate() {
            self.slots[self.ends[e as usize]] = slot;
            self.places.push(self.ends[e as usize]);
            self.ends[e as usize] += 1;
        }
    }
}

impl Order {
    /// The row that each sorted slot reads, of an input whose rows are shared by so many slots.
    pub(crate) fn rows(&self, sharing: usize) -> Vec<usize> {
        self.slots.iter().map(|s| s / sharing).collect()
    }
}

impl Cpu {
    /// Whether activations get a second digit for these matrices.
    fn finely(&self, after: After, parts: &[Part<'_>]) -> bool {
        let all = |holds: &dyn Fn(Layout) -> bool| {
            parts.iter().all(|p| matches!(self.way(&p.each[0]), Way::Packed(layout) if holds(layout)))
        };
        match after {
            After::Attention => true,
            After::Steady => !all(&Layout::is_k),
            After::Little => self.isa.words() && all(&|layout| layout.bits == 8),
        }
    }

    /// `outs[p][t] = x[t]·Wᵀ + b` for every projection p and row t of band b with `parts[p].each[experts[b]]`.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn products(
        &self,
        op: &'static str,
        after: After,
        x: &[f32],
        cols: usize,
        bands: &[usize],
        experts: &[usize],
        parts: &[Part<'_>],
        outs: &mut Outputs,
    ) -> Result<()> {
        if self.finely(after, parts) {
            self.rounded_products(op, &self.fine, x, cols, bands, experts, parts, outs)
        } else {
            self.rounded_products(op, &self.coarse, x, cols, bands, experts, parts, outs)
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn rounded_products<const DIGITS: usize>(
        &self,
        op: &'static str,
        rounded: &Mutex<Rounded<DIGITS>>,
        x: &[f32],
        cols: usize,
        bands: &[usize],
        experts: &[usize],
        parts: &[Part<'_>],
        outs: &mut Outputs,
    ) -> Result<()> {
        let rows = *bands.last().expect("invariant: bands have an end");
        if rows == 0 {
            return Ok(());
        }
        let mut memory = lock(rounded);
        let Rounded { acts, brains, .. } = &mut *memory;
        let (mut rounded, mut halved) = (false, false);
        for m in parts.iter().flat_map(|p| p.each) {
            match self.way(m) {
                Way::Packed(_) if !rounded => {
                    self.quantise(x, cols, acts);
                    rounded = true;
                }
                Way::Brain if !halved && self.isa.brain() => {
                    self.halve(x, cols, brains);
                    halved = true;
                }
                _ => {}
            }
        }
        self.rectangles(op, Rows { x, acts, brains, cols }, bands, experts, parts, outs)
    }

    fn way(&self, m: &Matrix) -> Way {
        match self.precision {
            Precision::Fast => m.fast_way(self.reads_pairs()),
            Precision::Exact => Way::Widened,
        }
    }

    /// Makes the memory that a task needs to multiply with one of these.
    fn reserve(&self, parts: &[Part<'_>], cols: usize) {
        for m in parts.iter().flat_map(|p| p.each) {
            match (self.way(m), m) {
                (Way::Widened, _) => self.scratch.reserve(DotBlock::scratch(cols)),
                (Way::Packed(layout), Matrix::Plain(_)) => self.panels.reserve(layout.panel_bytes(cols)),
                (Way::Brain, Matrix::Plain(_)) => self.panels.reserve(Layout::PAIRS.panel_bytes(cols)),
                (Way::Packed(_) | Way::Brain, Matrix::Packed(_)) => {}
            }
        }
    }

    /// The products themselves.
    fn rectangles<const DIGITS: usize>(
        &self,
        op: &'static str,
        x: Rows<'_, DIGITS>,
        bands: &[usize],
        experts: &[usize],
        parts: &[Part<'_>],
        outs: &mut Outputs,
    ) -> Result<()> {
        self.reserve(parts, x.cols);
        let rows = *bands.last().expect("invariant: bands have an end");
        let mut grid = Grid::new(rows, block(parts, x.cols, rows, bands.len() - 1)).bands(bands);
        for (y, p) in outs.iter_mut().zip(parts) {
            grid = grid.out(self.arena.f32s_mut(op, y)?, p.rows);
        }
        self.pool.rects(&mut grid, |task, mut rect| {
            let Part { each, bias, .. } = parts[rect.out];
            let matrix = &each[experts[rect.band]];
            match (self.way(matrix), matrix) {
                (Way::Widened, Matrix::Plain(weight)) => {
                    let scratch = &mut self.scratch.lock(task.worker)[..];
                    self.isa.run(DotBlock { weight, x: x.x, bias, rect, scratch });
                }
                (Way::Packed(layout), _) => {
                    self.packed_rect(task.worker, layout, matrix, x.acts, x.cols, bias, &mut rect);
                }
                (Way::Brain, _) => {
                    self.each_panels(task.worker, Layout::PAIRS, matrix, x.cols, rect.columns(), |panels, at| {
                        self.isa.run(PairsBlock {
                            cols: x.cols,
                            panels,
                            numbers: x.x,
                            x: x.brains,
                            bias,
                            at,
                            rect: &mut rect,
                        });
                    });
                }
                (Way::Widened, Matrix::Packed(_)) => unreachable!("invariant: only fast precision packs"),
            }
        });
        Ok(())
    }

    /// A rectangle of a product with a matrix that is packed, or is packed on the way.
    #[allow(clippy::too_many_arguments)]
    fn packed_rect<const DIGITS: usize>(
        &self,
        worker: usize,
        layout: Layout,
        matrix: &Matrix,
        acts: &[Act<DIGITS>],
        cols: usize,
        bias: Option<&[f32]>,
        rect: &mut Rect<'_>,
    ) {
        let stride = Act::<DIGITS>::stride(cols);
        self.each_panels(worker, layout, matrix, cols, rect.columns(), |panels, at| {
            self.isa.run(PackedBlock { layout, cols, panels, acts, stride, bias, at, rect: &mut *rect });
        });
    }

    /// Calls `f` with the panels of the rows `columns` of a matrix, and the first one's distance from where they begin: all of them at once
    /// of a packed matrix, one by one of one that is packed on the way.
    fn each_panels(
        &self,
        worker: usize,
        layout: Layout,
        matrix: &Matrix,
        cols: usize,
        columns: Range<usize>,
        mut f: impl FnMut(&[u8], usize),
    ) {
        let panels = columns.start / ROWS..columns.end.div_ceil(ROWS);
        match matrix {
            Matrix::Packed(p) => f(p.panels(panels), 0),
            Matrix::Plain(weight) => {
                let mut panel = self.panels.lock(worker);
                let panel = &mut panel[..layout.panel_bytes(cols)];
                for (i, p) in panels.enumerate() {
                    self.isa.run(PackPanel { layout, weight, first: p * ROWS, out: panel });
                    f(panel, i * ROWS);
                }
            }
        }
    }

    /// `down(silu(gate x) ⊙ up x)` for matrices that multiply rounded activations: the hidden layer is rounded where it is computed
    /// and never lies in memory as numbers. `false`: these matrices want something else.
    pub(crate) fn gated(
        &self,
        op: &'static str,
        x: &[f32],
        order: Option<(&Order, usize)>,
        parts: [Part<'_>; 3],
        cols: usize,
        outs: &mut Outputs,
    ) -> Result<bool> {
        if !parts.iter().flat_map(|p| p.each).all(|m| matches!(self.way(m), Way::Packed(_))) {
            return Ok(false);
        }
        let [gate, up, down] = parts;
        let mut hidden = lock(&self.hidden);
        let (one, two) = &mut *hidden;
        match [self.finely(After::Little, &[gate, up]), self.finely(After::Little, &[down])] {
            [false, false] => self.gated_rounded(op, &self.coarse, one, x, order, parts, cols, outs),
            [false, true] => self.gated_rounded(op, &self.coarse, two, x, order, parts, cols, outs),
            [true, false] => self.gated_rounded(op, &self.fine, one, x, order, parts, cols, outs),
            [true, true] => self.gated_rounded(op, &self.fine, two, x, order, parts, cols, outs),
        }?;
        Ok(true)
    }

    /// The same with `X` digits for what it reads, and `H` for the hidden layer.
    #[allow(clippy::too_many_arguments)]
    fn gated_rounded<const X: usize, const H: usize>(
        &self,
        op: &'static str,
        rounded: &Mutex<Rounded<X>>,
        hidden: &mut Vec<Act<H>>,
        x: &[f32],
        order: Option<(&Order, usize)>,
        [gate, up, down]: [Part<'_>; 3],
        cols: usize,
        outs: &mut Outputs,
    ) -> Result<()> {
        let mut memory = lock(rounded);
        let Rounded { acts, unsorted, .. } = &mut *memory;
        let all = [0, x.len() / cols];
        let (bands, experts) = match order {
            None => {
                self.quantise(x, cols, acts);
                (&all[..], &[0][..])
            }
            Some((order, sharing)) => {
                // Rounded before they are sorted: a token's experts share its rounding.
                self.quantise(x, cols, unsorted);
                self.gather_acts(unsorted, Act::<X>::stride(cols), order, sharing, acts);
                (&order.bands[..], &order.experts[..])
            }
        };
        let rows = *bands.last().expect("invariant: bands have an end");
        if rows == 0 {
            return Ok(());
        }
        let (wide, stride) = (gate.rows, Act::<H>::stride(gate.rows));
        if hidden.len() < rows * stride {
            hidden.resize(rows * stride, Act::ZERO);
        }
        let columns = (block(&[gate, up], cols, rows, bands.len() - 1) / 2).next_multiple_of(BLOCK);
        self.reserve(&[gate, up], cols);
        self.scratch.reserve(2 * GATED * columns);
        let mut grid = Grid::new(rows, columns / BLOCK).bands(bands);
        grid = grid.padded(&mut hidden[..rows * stride], wide / BLOCK, stride);
        let acts = &acts[..];
        self.pool.rects(&mut grid, |task, mut rect| {
            let (first, width) = (rect.first * BLOCK, rect.width * BLOCK);
            let mut scratch = self.scratch.lock(task.worker);
            let (all, end) = (rect.rows.clone(), rect.rows.end);
            for from in all.step_by(GATED) {
                let rows = from..end.min(from + GATED);
                let (gates, rest) = scratch.split_at_mut(rows.len() * width);
                let ups = &mut rest[..rows.len() * width];
                for (part, out) in [(gate, &mut *gates), (up, &mut *ups)] {
                    let matrix = &part.each[experts[rect.band]];
                    let Way::Packed(layout) = self.way(matrix) else { unreachable!("invariant: checked above") };
                    let mut out = Rect::apart(out, rows.clone(), first, width);
                    self.packed_rect(task.worker, layout, matrix, acts, cols, part.bias, &mut out);
                }
                self.isa.run(SwiGlu { gate: gates, up: ups });
                for (x, row) in gates.chunks_exact(width).zip(rows) {
                    self.isa.run(Quantise { x, cols: width, out: rect.row(row), stride: width / BLOCK });
                }
            }
        });
        let x = Rows { x: &[], acts: hidden, brains: &[], cols: wide };
        self.rectangles(op, x, bands, experts, &[down], outs)
    }

    /// Rounded rows in sorted order: slot s reads row `s / sharing`.
    fn gather_acts<const DIGITS: usize>(
        &self,
        from: &[Act<DIGITS>],
        stride: usize,
        order: &Order,
        sharing: usize,
        to: &mut Vec<Act<DIGITS>>,
    ) {
        let rows = order.slots.len();
        if to.len() < rows * stride {
            to.resize(rows * stride, Act::ZERO);
        }
        let n = Self::grain(rows, stride * 12) * stride;
        self.pool.chunks_mut(&mut to[..rows * stride], n, |first, out| {
            for (o, slot) in out.chunks_exact_mut(stride).zip(&order.slots[first / stride..]) {
                o.copy_from_slice(&from[slot / sharing * stride..][..stride]);
            }
        });
    }

    /// Rounds the rows of `x` to integers.
    pub(crate) fn quantise<const DIGITS: usize>(&self, x: &[f32], cols: usize, acts: &mut Vec<Act<DIGITS>>) {
        let (rows, stride) = (x.len() / cols, Act::<DIGITS>::stride(cols));
        if acts.len() < rows * stride {
            acts.resize(rows * stride, Act::ZERO);
        }
        let n = Self::grain(rows, 2 * cols);
        self.pool.chunks_mut(&mut acts[..rows * stride], n * stride, |first, out| {
            let first = first / stride * cols;
            let x = &x[first..first + out.len() / stride * cols];
            self.isa.run(Quantise { x, cols, out, stride });
        });
    }

    /// Rounds the rows of `x` to bfloat16.
    fn halve<const DIGITS: usize>(&self, x: &[f32], cols: usize, brains: &mut Vec<Brain<DIGITS>>) {
        let steps = cols / 32;
        let rows = x.len() / cols;
        if brains.len() < rows * steps {
            brains.resize(rows * steps, [[0; LANES]; DIGITS]);
        }
        let n = Self::grain(rows, cols);
        self.pool.chunks_mut(&mut brains[..rows * steps], n * steps, |first, out| {
            let x = &x[first * 32..(first + out.len()) * 32];
            self.isa.run(ToBrain { x, out });
        });
    }

    /// Rows of `x` in sorted order: slot s reads row `s / sharing`.
    pub(crate) fn gather(&self, op: &'static str, x: &Tensor, order: &Order, sharing: usize) -> Result<Tensor> {
        let (xs, cols) = (self.arena.f32s(op, x)?, x.cols());
        let mut out = self.arena.alloc(Shape::matrix(order.slots.len(), cols), DType::F32);
        let n = Self::grain(order.slots.len(), cols) * cols;
        self.pool.chunks_mut(self.arena.f32s_mut(op, &mut out)?, n, |first, out| {
            for (o, slot) in out.chunks_exact_mut(cols).zip(&order.slots[first / cols..]) {
                o.copy_from_slice(&xs[slot / sharing * cols..(slot / sharing + 1) * cols]);
            }
        });
        Ok(out)
    }

    /// Sorted rows back in the order of their slots.
    pub(crate) fn scatter(&self, op: &'static str, y: &Tensor, order: &Order) -> Result<Tensor> {
        let (ys, cols) = (self.arena.f32s(op, y)?, y.cols());
        let mut out = self.arena.alloc(y.shape, DType::F32);
        let n = Self::grain(order.slots.len(), cols) * cols;
        self.pool.chunks_mut(self.arena.f32s_mut(op, &mut out)?, n, |first, out| {
            for (o, place) in out.chunks_exact_mut(cols).zip(&order.places[first / cols..]) {
                o.copy_from_slice(&ys[place * cols..(place + 1) * cols]);
            }
        });
        Ok(out)
    }

    /// Projections of sorted rows.
    pub(crate) fn sorted_products(
        &self,
        op: &'static str,
        x: &Tensor,
        order: &Order,
        projs: &[&ResidentExperts],
    ) -> Result<Outputs> {
        let xs = self.arena.f32s(op, x)?;
        let mut outs = Outputs::new();
        let mut parts = ArrayVec::<Part<'_>, 4>::new();
        for p in projs {
            outs.push(self.arena.alloc(Shape::matrix(x.rows(), p.each.rows), DType::F32));
            parts.push(self.part(op, Proj { weight: &p.each, bias: None })?);
        }
        self.products(op, After::Little, xs, x.cols(), &order.bands, &order.experts, &parts, &mut outs)?;
        Ok(outs)
    }

    /// `out[t] = plus[t] + Σ_s weights[t, s] · y[row of slot (t, s)]`, in the order of the slots.
    pub(crate) fn combine(
        &self,
        op: &'static str,
        y: &Tensor,
        row_of: impl Fn(usize) -> usize + Sync,
        weights: &Tensor,
        plus: Option<Tensor>,
    ) -> Result<Tensor> {
        let (top_k, dim) = (weights.cols(), y.cols());
        let shape = Shape::matrix(weights.rows(), dim);
        let mut out = match plus {
            Some(p) => self.arena.owned_f32(op, p)?.reshape(shape)?,
            None => {
                let mut out = self.arena.alloc(shape, DType::F32);
                self.arena.f32s_mut(op, &mut out)?.fill(0.0);
                out
            }
        };
        let (ys, weights) = (self.arena.f32s(op, y)?, self.arena.f32s(op, weights)?);
        let n = Self::grain(shape.rows(), top_k * dim);
        self.pool.chunks_mut(self.arena.f32s_mut(op, &mut out)?, n * dim, |first, rows| {
            for (i, x) in rows.chunks_exact_mut(dim).enumerate() {
                let t = first / dim + i;
                for slot in t * top_k..(t + 1) * top_k {
                    let y = &ys[row_of(slot) * dim..][..dim];
                    self.isa.run(AddScaled { x, y, factor: weights[slot] });
                }
            }
        });
        Ok(out)
    }
}

/// Rows of a hidden layer that a task computes at a time: few enough for the cache.
const GATED: usize = 32;

/// Outputs per task: a multiple of 16, for some fifty tasks of 16 to 256 KB of weights; everything if the whole is small.
fn block(parts: &[Part<'_>], cols: usize, rows: usize, bands: usize) -> usize {
    let bytes = parts.iter().map(|p| p.each[0].row_bytes()).max().unwrap_or(0).max(1);
    let outputs: usize = parts.iter().map(|p| p.rows).sum();
    let widest = parts.iter().map(|p| p.rows).max().unwrap_or(1).max(1);
    let whole = outputs * bands * bytes + rows * outputs * cols / 16;
    let task = (outputs * bands * bytes / 48).clamp(16 << 10, 256 << 10);
    if whole < 64 << 10 { widest } else { (task / bytes / 16 * 16).clamp(16, 512) }
}
