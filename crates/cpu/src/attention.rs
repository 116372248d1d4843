//! Grouped-query attention: how a batch is cut into tasks, and which kernels they run.

use fathom_core::host::{HostData, HostStorage};
use fathom_core::{AttendSpec, DType, Error, KvView, Mask, Result, Shape, Span, Spans, Tensor, check};

use crate::backend::lock;
use crate::kernels::attend::{Flash, SPLIT};
use crate::kernels::grouped::{Attend, Band, Join, band_scratch};
use crate::kv::{CacheMemory, History, Numbers, Places};
use crate::pool::Grid;
use crate::{Cpu, DEVICE};

/// Queries that share a block of keys and values.
const QUERIES: usize = 96;
/// Most queries of a span whose blocks are tasks of their own: few queries against a long cache.
const FEW: usize = 48;

/// Most blocks of a task.
const RUN: usize = 4;
/// Tasks that are wanted before they get longer.
const TASKS: usize = 32;

/// How the rows of a batch are cut: kept, so that a step allocates nothing.
#[derive(Default)]
pub(crate) struct Bands {
    /// Where each band begins, and the end.
    pub(crate) starts: Vec<usize>,
    /// The span that each band belongs to.
    pub(crate) span: Vec<usize>,
    /// Blocks of spans that are cut along the cache: span and number of the block.
    pub(crate) blocks: Vec<(usize, usize)>,
    /// Where each span's blocks begin in `blocks`, and the end.
    pub(crate) first: Vec<usize>,
    /// Where in `blocks` each task begins, and the end.
    pub(crate) runs: Vec<usize>,
}

impl Bands {
    /// Bands of at most `rows` rows, each in one span.
    pub(crate) fn cut(&mut self, spans: &[Span], rows: usize) {
        self.starts.clear();
        self.span.clear();
        self.starts.push(0);
        for (i, s) in spans.iter().enumerate() {
            for first in (0..s.rows).step_by(rows) {
                self.starts.push(s.row + s.rows.min(first + rows));
                self.span.push(i);
            }
        }
    }

    /// Lists the blocks of the spans that `along` names, which see their positions up to the last row's, and cuts them into
    /// tasks. A task has up to [`RUN`] blocks of a span: what it reads first, nobody has asked for ahead. Few tasks would leave
    /// threads idle, so they are shorter where `columns`, the tasks beside each other, are few and the cache is short.
    pub(crate) fn cut_cache(&mut self, spans: &[Span], columns: usize, along: impl Fn(&Span) -> bool) {
        self.blocks.clear();
        self.first.clear();
        for (i, s) in spans.iter().enumerate() {
            self.first.push(self.blocks.len());
            let n = if along(s) { (s.start + s.rows).div_ceil(SPLIT) } else { 0 };
            self.blocks.extend((0..n).map(|b| (i, b)));
        }
        self.first.push(self.blocks.len());
        let run = (self.blocks.len() * columns / TASKS).clamp(1, RUN);
        self.runs.clear();
        self.runs.push(0);
        for ends in self.first.windows(2) {
            self.runs.extend((ends[0]..ends[1]).step_by(run).map(|b| ends[1].min(b + run)));
        }
    }
}

/// Numbers of a tensor or of a cache.
pub(crate) fn numbers<'a>(op: &'static str, t: &'a Tensor) -> Result<Numbers<'a>> {
    if let Some(cache) = t.buf.get::<CacheMemory>() {
        return Ok(cache.numbers());
    }
    let storage = t.buf.get::<HostStorage>().filter(|_| t.buf.device() == DEVICE);
    match storage.ok_or(Error::Foreign { op, expected: DEVICE, found: t.buf.device() })?.data() {
        HostData::F32(v) => Ok(Numbers::F32(v)),
        _ => Err(Error::Type { op, expected: "f32", found: t.dtype.name() }),
    }
}

impl Cpu {
    pub(crate) fn attend_rows(
        &self,
        q: &Tensor,
        kv: KvView<'_>,
        spans: &Spans<'_>,
        spec: &AttendSpec,
    ) -> Result<Tensor> {
        let op = "attend";
        let shape = check::attend(q, kv, spans, spec)?;
        let (k, v, paged) = match kv {
            KvView::Fresh { k, v } => (k, v, false),
            KvView::Paged { k, v } => (&k.data, &v.data, true),
        };
        let mut out = self.arena.alloc(shape, DType::F32);
        if self.training.is_some() && !paged {
            self.attend_trained(op, [q, k, v], spans, spec, &mut out)?;
            return Ok(out);
        }
        let (qs, o) = (self.arena.f32s(op, q)?, self.arena.f32s_mut(op, &mut out)?);
        let (k, v) = (numbers(op, k)?, numbers(op, v)?);
        self.attend_over(qs, k, v, paged, spans, spec, o)?;
        Ok(out)
    }

    #[allow(clippy::too_many_arguments)]
    fn attend_over(
        &self,
        q: &[f32],
        k: Numbers<'_>,
        v: Numbers<'_>,
        paged: bool,
        spans: &Spans<'_>,
        spec: &AttendSpec,
        out: &mut [f32],
    ) -> Result<()> {
        let AttendSpec { heads, kv_heads, head_dim: dim, v_dim, scale, mask } = *spec;
        let group = heads / kv_heads;
        let rows = QUERIES.div_ceil(group);
        let causal = mask == Mask::Causal;
        let tokens = out.len() / (heads * v_dim);
        let mut bands = lock(&self.bands);
        // Blocks of a long cache are tasks; which spans are cut so depends on shapes alone and changes no bit.
        let along = |s: &Span| paged && causal && s.rows * group <= FEW && s.start + s.rows > SPLIT;
        bands.cut(spans.spans, rows);
        bands.cut_cache(spans.spans, kv_heads, along);
        let most = spans.spans.iter().map(|s| s.rows.min(rows.max(FEW / group))).max().unwrap_or(0);
        self.scratch.reserve(band_scratch(most * group, dim, v_dim));
        let places = |span: &Span| match paged {
            true => Places::Paged { table: &spans.tables[span.table..], block: spans.block },
            false => Places::Run { first: span.row },
        };
        let band = |span: &Span, row: usize, rows: usize, head: usize| Band {
            q,
            q_width: heads * dim,
            q_first: head * group * dim,
            row,
            rows,
            group,
            head,
            dim,
            v_dim,
            scale,
            k: History { numbers: k, stream: spec.keys(), places: places(span) },
            v: History { numbers: v, stream: spec.values(), places: places(span) },
            seen: span.start + if causal { row - span.row + 1 } else { span.rows },
            causal,
        };
        if spans.spans.iter().any(|s| !along(s)) {
            let mut grid = Grid::new(tokens, group * v_dim).out(out, heads * v_dim).bands(&bands.starts);
            self.pool.rects(&mut grid, |task, rect| {
                let span = &spans.spans[bands.span[rect.band]];
                if along(span) {
                    return;
                }
                let head = rect.first / (group * v_dim);
                let band = band(span, rect.rows.start, rect.rows.len(), head);
                let scratch = &mut self.scratch.lock(task.worker);
                self.isa.run(Attend { band, from: None, rect, scratch });
            });
        }
        let blocks = bands.blocks.len();
        if blocks == 0 {
            return Ok(());
        }
        let queries = group * spans.spans.iter().filter(|s| along(s)).map(|s| s.rows).max().unwrap_or(0);
        let state = Flash::state(queries, v_dim);
        let mut states = self.arena.alloc(Shape::matrix(blocks, kv_heads * state), DType::F32);
        let st = self.arena.f32s_mut("attend", &mut states)?;
        let mut grid = Grid::new(blocks, state).out(st, kv_heads * state).bands(&bands.runs);
        self.pool.rects(&mut grid, |task, rect| {
            let (span, block) = bands.blocks[rect.rows.start];
            let span = &spans.spans[span];
            let band = band(span, span.row, span.rows, rect.first / state);
            let scratch = &mut self.scratch.lock(task.worker);
            self.isa.run(Attend { band, from: Some(block * SPLIT), rect, scratch });
        });
        let states = self.arena.f32s("attend", &states)?;
        bands.cut(spans.spans, usize::MAX);
        let mut grid = Grid::new(tokens, v_dim).out(out, heads * v_dim).bands(&bands.starts);
        self.pool.rects(&mut grid, |_, mut rect| {
            let (i, head) = (bands.span[rect.band], rect.first / v_dim);
            let span = &spans.spans[i];
            if !along(span) {
                return;
            }
            for r in 0..span.rows {
                self.isa.run(Join {
                    states: &states[(bands.first[i] * kv_heads + head / group) * state..],
                    stride: kv_heads * state,
                    blocks: (span.start + r + 1).div_ceil(SPLIT),
                    query: r * group + head % group,
                    queries: span.rows * group,
                    out: rect.row(span.row + r),
                });
            }
        });
        Ok(())
    }
}
