//! Products with weights: several projections, one matrix or many experts, in one region.
//!
//! Rows arrive sorted into bands, one per expert in use (a plain linear layer is one band and one expert). A task is a band times a block
//! of a projection's outputs.

use fathom_core::backend::Outputs;
use fathom_core::{DType, Result, Shape, Tensor};

use crate::Cpu;
use crate::kernels::dot::DotBlock;
use crate::matrix::Matrix;
use crate::pool::Grid;

/// One projection.
pub(crate) struct Part<'a> {
    /// Its matrix, or one per expert.
    pub(crate) each: &'a [Matrix],
    /// Outputs.
    pub(crate) rows: usize,
    /// Added to every row of the result.
    pub(crate) bias: Option<&'a [f32]>,
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
        for (slot, &e) in chosen.iter().enumerate() {
            self.slots[self.ends[e as usize]] = slot;
            self.ends[e as usize] += 1;
        }
    }
}

impl Cpu {
    /// `outs[p][t] = x[t]·Wᵀ + b` for every projection p and row t of band b with `parts[p].each[experts[b]]`.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn products(
        &self,
        op: &'static str,
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
        self.scratch.reserve(DotBlock::scratch(cols));
        let mut grid = Grid::new(rows, block(parts, cols, rows, bands.len() - 1)).bands(bands);
        for (y, p) in outs.iter_mut().zip(parts) {
            grid = grid.out(self.arena.f32s_mut(op, y)?, p.rows);
        }
        self.pool.rects(&mut grid, |task, rect| {
            let part = &parts[rect.out];
            let scratch = &mut self.scratch.lock(task.worker)[..];
            match &part.each[experts[rect.band]] {
                Matrix::Plain(weight) => self.isa.run(DotBlock { weight, x, bias: part.bias, rect, scratch }),
            }
        });
        Ok(())
    }

    /// Rows of `x` in sorted order: slot s reads row `s / sharing`.
    pub(crate) fn gather(&self, op: &'static str, x: &Tensor, order: &Order, sharing: usize) -> Result<Tensor> {
        let (xs, cols) = (self.arena.f32s(op, x)?, x.cols());
        let mut out = self.arena.alloc(Shape::matrix(order.slots.len(), cols), DType::F32);
        for (o, slot) in self.arena.f32s_mut(op, &mut out)?.chunks_exact_mut(cols).zip(&order.slots) {
            o.copy_from_slice(&xs[slot / sharing * cols..(slot / sharing + 1) * cols]);
        }
        Ok(out)
    }

    /// Sorted rows back in the order of their slots.
    pub(crate) fn scatter(&self, op: &'static str, y: &Tensor, order: &Order) -> Result<Tensor> {
        let (ys, cols) = (self.arena.f32s(op, y)?, y.cols());
        let mut out = self.arena.alloc(y.shape, DType::F32);
        let o = self.arena.f32s_mut(op, &mut out)?;
        for (y, slot) in ys.chunks_exact(cols).zip(&order.slots) {
            o[slot * cols..(slot + 1) * cols].copy_from_slice(y);
        }
        Ok(out)
    }
}

/// Outputs per task: a multiple of 16, so large that a task reads some 64 KB of weights; everything if the whole is small.
fn block(parts: &[Part<'_>], cols: usize, rows: usize, bands: usize) -> usize {
    const TASK_BYTES: usize = 1 << 16;
    let bytes = parts.iter().map(|p| p.each[0].row_bytes()).max().unwrap_or(0).max(1);
    let outputs: usize = parts.iter().map(|p| p.rows).sum();
    let widest = parts.iter().map(|p| p.rows).max().unwrap_or(1).max(1);
    let whole = outputs * bands * bytes + rows * outputs * cols / 16;
    if whole < TASK_BYTES { widest } else { (TASK_BYTES / bytes / 16 * 16).clamp(16, 512) }
}
