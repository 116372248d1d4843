//! Latent attention: how a batch is cut into tasks, and which kernels they run.

use fathom_core::{DType, HeadProj, KvCache, LatentSpec, Precision, Result, Shape, Span, Spans, Tensor, check};
use half::f16;

use crate::Cpu;
use crate::attention::{Bands, numbers};
use crate::backend::lock;
use crate::kernels::attend::{Num, SPLIT};
use crate::kernels::latent::{
    Absorb, Absorbed, AbsorbedJoin, AttendAbsorbed, Expand, Expansion, HEADS, PlainBand, Slabs, Spread,
    absorbed_scratch, absorbed_state, expansion, is_plain, plain_scratch,
};
use crate::kernels::packed::{Act, Columns, PackedBlock};
use crate::kernels::rows::ToF16;
use crate::kv::{History, Numbers, Places};
use crate::matrix::{Held, Matrix, Wide};
use crate::pack::{Layout, Packed, ROWS};
use crate::pool::{Grid, Rect};

/// Rows of a task of the absorbed form.
const BAND: usize = 4;
/// Most rows of a span whose blocks are tasks of their own: few rows against a long cache.
const ROWS_APART: usize = BAND;
/// Heads that share latents widened; as many as the second-level cache holds sums of.
const SHARED: usize = 4 * HEADS;
/// Rows that share the expansion of a head's keys and values.
const PLAIN_ROWS: usize = 512;

/// A head projection in packed form: head h is whole panels.
#[derive(Clone, Copy)]
struct Panels<'a> {
    matrix: &'a Packed,
    first_row: usize,
    head_stride: usize,
    head_rows: usize,
}

impl<'a> Panels<'a> {
    /// The panels of head `h`.
    fn head(&self, h: usize) -> &'a [u8] {
        let row = self.first_row + h * self.head_stride;
        self.matrix.panels(row / ROWS..(row + self.head_rows) / ROWS)
    }
}

/// The two head projections of latent attention.
#[derive(Clone, Copy)]
enum Heads<'a, W> {
    /// Every number widened, `[features, rank]` per head.
    Wide { k: Slabs<'a, W>, v: Slabs<'a, W> },
    /// As packed, the key's stored transposed: what the absorbed form multiplies are rows.
    Packed { k: Panels<'a>, v: Panels<'a> },
}

/// A latent cache and the head projections.
struct Latent<'a, W> {
    cache: Numbers<'a>,
    heads: Heads<'a, W>,
}

impl Cpu {
    pub(crate) fn attend_latent_rows(
        &self,
        q: &Tensor,
        cache: &KvCache,
        k: HeadProj<'_>,
        v: HeadProj<'_>,
        spans: &Spans<'_>,
        spec: &LatentSpec,
    ) -> Result<Tensor> {
        let op = "attend_latent";
        let shape = check::attend_latent(q, cache, k, v, spans, spec)?;
        let mut out = self.arena.alloc(shape, DType::F32);
        let cache = numbers(op, &cache.data)?;
        if let Some(heads) = self.packed_heads(op, k, v)? {
            self.latent(op, q, &Latent { cache, heads }, spans, spec, &mut out)?;
            return Ok(out);
        }
        let (wk, wv) = (self.wide(op, k, spec.heads)?, self.wide(op, v, spec.heads)?);
        macro_rules! over {
            ($k:expr, $v:expr) => {{
                let heads = Heads::Wide { k: slabs($k, k), v: slabs($v, v) };
                self.latent(op, q, &Latent { cache, heads }, spans, spec, &mut out)?;
            }};
        }
        match (wk, wv) {
            (Wide::F32(wk), Wide::F32(wv)) => over!(wk, wv),
            (Wide::F16(wk), Wide::F16(wv)) => over!(wk, wv),
            _ => unreachable!("invariant: one backend widens to one type"),
        }
        Ok(out)
    }

    fn latent<W: Num>(
        &self,
        op: &'static str,
        q: &Tensor,
        kv: &Latent<'_, W>,
        spans: &Spans<'_>,
        spec: &LatentSpec,
        out: &mut Tensor,
    ) -> Result<()> {
        self.latent_absorbed(op, q, kv, spans, spec, out)?;
        self.latent_plain(op, q, kv, spans, spec, out)
    }

    /// The projections as they are packed, if both are, in the orientation that absorbed products want.
    fn packed_heads<'a>(&self, op: &'static str, k: HeadProj<'a>, v: HeadProj<'a>) -> Result<Option<Heads<'a, f16>>> {
        let whole = |p: HeadProj<'_>| [p.first_row, p.head_stride, p.head_rows].iter().all(|n| n.is_multiple_of(ROWS));
        if !(k.transposed && !v.transposed && whole(k) && whole(v)) {
            return Ok(None);
        }
        let (Matrix::Packed(km), Matrix::Packed(vm)) =
            (&self.held(op, k.weight)?.each[0], &self.held(op, v.weight)?.each[0])
        else {
            return Ok(None);
        };
        if [km, vm].iter().any(|m| m.layout == Layout::PAIRS) {
            return Ok(None);
        }
        let panels = |matrix, p: HeadProj<'_>| Panels {
            matrix,
            first_row: p.first_row,
            head_stride: p.head_stride,
            head_rows: p.head_rows,
        };
        Ok(Some(Heads::Packed { k: panels(km, k), v: panels(vm, v) }))
    }

    /// `y[t, h] = W_h x[t, h]` for every head: `x` is `[tokens × heads, cols]`; a rectangle is one head, `width` columns wide, and the
    /// product its first ones.
    fn head_products(
        &self,
        w: Panels<'_>,
        x: &[f32],
        heads: usize,
        width: usize,
        grid: &mut Grid<'_>,
        wanted: impl Fn(usize) -> bool + Sync,
    ) {
        let (layout, cols) = (w.matrix.layout, w.matrix.cols());
        let mut memory = lock(&self.fine);
        self.quantise(x, cols, &mut memory.acts);
        let (acts, stride) = (&memory.acts[..], Act::<2>::stride(cols));
        self.pool.rects(grid, |_, mut rect: Rect<'_>| {
            if wanted(rect.band) {
                let head = rect.first / width;
                let (panels, acts, stride) = (w.head(head), &acts[head * stride..], heads * stride);
                let rect = &mut rect;
                self.isa.run(PackedBlock { layout, cols, panels, acts, stride, bias: None, at: 0, rect });
            }
        });
    }

    /// Head `h` of a packed projection that is stored transposed, widened to `[features, rank]`; `tile` holds a panel.
    fn key_rows(&self, w: Panels<'_>, h: usize, rank: usize, out: &mut [f32], tile: &mut [f32]) {
        let (layout, cols) = (w.matrix.layout, w.matrix.cols());
        let tile = &mut tile[..cols * ROWS];
        for (p, panel) in w.head(h).chunks_exact(w.matrix.panel_bytes()).enumerate() {
            self.isa.run(Columns { layout, cols, panel, out: tile });
            for (c, column) in tile.chunks_exact(ROWS).enumerate() {
                out[c * rank + p * ROWS..][..ROWS].copy_from_slice(column);
            }
        }
    }

    /// Head `h` of a packed projection widened to tiles of sixteen features: what a panel is.
    fn value_tiles(&self, w: Panels<'_>, h: usize, out: &mut [f32]) {
        let (layout, cols) = (w.matrix.layout, w.matrix.cols());
        let panels = w.head(h).chunks_exact(w.matrix.panel_bytes());
        for (panel, out) in panels.zip(out.chunks_exact_mut(cols * ROWS)) {
            self.isa.run(Columns { layout, cols, panel, out });
        }
    }

    /// Spans in absorbed form: queries into the latent space, attention with the latent as key and value, results back.
    fn latent_absorbed<W: Num>(
        &self,
        op: &'static str,
        q: &Tensor,
        kv: &Latent<'_, W>,
        spans: &Spans<'_>,
        spec: &LatentSpec,
        out: &mut Tensor,
    ) -> Result<()> {
        if spans.spans.iter().all(|s| is_plain(s.form)) {
            return Ok(());
        }
        let LatentSpec { heads, rank, nope, rope, v_dim, .. } = *spec;
        let (tokens, dim) = (q.rows(), rank + rope);
        let mut bands = lock(&self.bands);
        bands.cut(spans.spans, BAND);
        let width = heads.min(SHARED);
        // Blocks of a long cache are tasks; which spans are cut so depends on shapes alone and changes no bit.
        let along = |s: &Span| !is_plain(s.form) && s.rows <= ROWS_APART && s.start + s.rows > SPLIT;
        bands.cut_cache(spans.spans, heads.div_ceil(width), along);
        let span_of = |band: usize| &spans.spans[bands.span[band]];
        let mut moved = self.arena.alloc(Shape::matrix(tokens, heads * dim), DType::F32);
        let qs = self.arena.f32s(op, q)?;
        let m = self.arena.f32s_mut(op, &mut moved)?;
        let absorbed = |band: usize| !is_plain(span_of(band).form);
        match kv.heads {
            Heads::Wide { k, .. } => {
                self.pool.rects(&mut Grid::new(tokens, dim).out(m, heads * dim).bands(&bands.starts), |_, rect| {
                    if absorbed(rect.band) {
                        self.isa.run(Absorb { q: qs, k, spec, rect });
                    }
                });
            }
            Heads::Packed { k, .. } => {
                let mut flat = self.arena.alloc(Shape::matrix(tokens * heads, nope), DType::F32);
                let f = self.arena.f32s_mut(op, &mut flat)?;
                let rows = qs.chunks_exact(nope + rope).zip(f.chunks_exact_mut(nope)).zip(m.chunks_exact_mut(dim));
                for ((q, flat), moved) in rows {
                    flat.copy_from_slice(&q[..nope]);
                    moved[rank..].copy_from_slice(&q[nope..]);
                }
                let mut grid = Grid::new(tokens, dim).out(m, heads * dim).bands(&bands.starts);
                self.head_products(k, self.arena.f32s(op, &flat)?, heads, dim, &mut grid, absorbed);
            }
        }
        let mut latent = self.arena.alloc(Shape::matrix(tokens, heads * rank), DType::F32);
        let (moved, l) = (self.arena.f32s(op, &moved)?, self.arena.f32s_mut(op, &mut latent)?);
        let part = |span: &Span, row: usize, rows: usize, head: usize| Absorbed {
            q: moved,
            latents: latents(kv, spans, span, spec),
            spec,
            row,
            rows,
            head,
            heads: width.min(heads - head),
            seen: span.start + row - span.row + 1,
        };
        self.scratch.reserve(absorbed_scratch(BAND, width, spec));
        if spans.spans.iter().any(|s| !is_plain(s.form) && !along(s)) {
            let mut grid = Grid::new(tokens, width * rank).out(&mut *l, heads * rank).bands(&bands.starts);
            self.pool.rects(&mut grid, |task, rect| {
                let span = span_of(rect.band);
                if is_plain(span.form) || along(span) {
                    return;
                }
                let part = part(span, rect.rows.start, rect.rows.len(), rect.first / rank);
                let scratch = &mut self.scratch.lock(task.worker);
                self.isa.run(AttendAbsorbed { part, from: None, rect, scratch });
            });
        }
        self.absorbed_along(op, &bands, spans, spec, part, l)?;
        let (latent, o) = (self.arena.f32s(op, &latent)?, self.arena.f32s_mut(op, out)?);
        let mut grid = Grid::new(tokens, v_dim).out(o, heads * v_dim).bands(&bands.starts);
        match kv.heads {
            Heads::Wide { v, .. } => self.pool.rects(&mut grid, |_, rect| {
                if absorbed(rect.band) {
                    self.isa.run(Expand { latent, v, spec, rect });
                }
            }),
            Heads::Packed { v, .. } => self.head_products(v, latent, heads, v_dim, &mut grid, absorbed),
        }
        Ok(())
    }

    /// Spans whose blocks are tasks: a state for each block, then their merging in order.
    fn absorbed_along<'a>(
        &self,
        op: &'static str,
        bands: &Bands,
        spans: &Spans<'_>,
        spec: &LatentSpec,
        part: impl Fn(&Span, usize, usize, usize) -> Absorbed<'a> + Sync,
        out: &mut [f32],
    ) -> Result<()> {
        let blocks = bands.blocks.len();
        if blocks == 0 {
            return Ok(());
        }
        let LatentSpec { heads, rank, .. } = *spec;
        let (width, one) = (heads.min(SHARED), absorbed_state(1, 1, rank));
        let state = absorbed_state(ROWS_APART, width, rank);
        let tasks = heads.div_ceil(width);
        let mut states = self.arena.alloc(Shape::matrix(blocks, tasks * state), DType::F32);
        let st = self.arena.f32s_mut(op, &mut states)?;
        let mut grid = Grid::new(blocks, state).out(st, tasks * state).bands(&bands.runs);
        self.pool.rects(&mut grid, |task, rect| {
            let (span, block) = bands.blocks[rect.rows.start];
            let span = &spans.spans[span];
            let part = part(span, span.row, span.rows, rect.first / state * width);
            let scratch = &mut self.scratch.lock(task.worker);
            self.isa.run(AttendAbsorbed { part, from: Some(block * SPLIT), rect, scratch });
        });
        let states = self.arena.f32s(op, &states)?;
        let rows = out.len() / (heads * rank);
        let mut grid = Grid::new(rows, HEADS * rank).out(out, heads * rank).bands(&bands.starts);
        self.pool.rects(&mut grid, |task, mut rect| {
            let i = bands.span[rect.band];
            let (span, first) = (&spans.spans[i], bands.first[i]);
            if bands.first[i + 1] == first {
                return;
            }
            let head = rect.first / rank;
            let units = width.min(heads - head / width * width).div_ceil(HEADS);
            for row in rect.rows.clone() {
                let unit = (row - span.row) * units + head % width / HEADS;
                self.isa.run(AbsorbedJoin {
                    states: &states[(first * tasks + head / width) * state + unit * one..],
                    stride: tasks * state,
                    blocks: (span.start + row - span.row + 1).div_ceil(SPLIT),
                    rank,
                    out: rect.row(row),
                    scratch: &mut self.scratch.lock(task.worker),
                });
            }
        });
        Ok(())
    }

    /// Spans in plain form: a task per head expands keys and values for many rows.
    fn latent_plain<W: Num>(
        &self,
        op: &'static str,
        q: &Tensor,
        kv: &Latent<'_, W>,
        spans: &Spans<'_>,
        spec: &LatentSpec,
        out: &mut Tensor,
    ) -> Result<()> {
        if !spans.spans.iter().any(|s| is_plain(s.form)) {
            return Ok(());
        }
        let LatentSpec { heads, rank, nope, v_dim, .. } = *spec;
        let mut bands = lock(&self.bands);
        bands.cut(spans.spans, PLAIN_ROWS);
        let most = spans.spans.iter().map(|s| s.rows).max().unwrap_or(0);
        let (k_size, v_size) = expansion(spec);
        let room = ROWS * rank.max(nope);
        self.scratch.reserve(plain_scratch(most.min(PLAIN_ROWS), spec) + k_size + v_size + room);
        let (q, o) = (self.arena.f32s(op, q)?, self.arena.f32s_mut(op, out)?);
        let mut grid = Grid::new(o.len() / (heads * v_dim), v_dim).out(o, heads * v_dim).bands(&bands.starts);
        self.pool.rects(&mut grid, |task, rect| {
            let span = &spans.spans[bands.span[rect.band]];
            if !is_plain(span.form) {
                return;
            }
            let (head, seen) = (rect.first / v_dim, span.start + rect.rows.start - span.row + 1);
            let scratch = &mut self.scratch.lock(task.worker)[..];
            let (k_out, rest) = scratch.split_at_mut(k_size);
            let (v_out, rest) = rest.split_at_mut(v_size);
            let (room, scratch) = rest.split_at_mut(room);
            match kv.heads {
                Heads::Wide { k, v } => self.isa.run(Spread { k, v, spec, head, k_out, v_out, room }),
                Heads::Packed { k, v } => {
                    self.key_rows(k, head, rank, k_out, room);
                    self.value_tiles(v, head, v_out);
                }
            }
            let heads = Expansion { k: k_out, v: v_out };
            let latents = latents(kv, spans, span, spec);
            self.isa.run(PlainBand { q, latents, heads, spec, seen, rect, scratch });
        });
        Ok(())
    }

    /// The matrix of a head projection, every number widened, for those that are not packed in the right orientation: they
    /// would be decoded again for every token otherwise. Made once, when a model first attends; two bytes a number, four in exact
    /// precision, beside the stored form.
    fn wide<'a>(&self, op: &'static str, p: HeadProj<'a>, heads: usize) -> Result<&'a Wide> {
        let held: &Held = self.held(op, p.weight)?;
        Ok(held.wide[usize::from(p.transposed)].get_or_init(|| {
            let (rows, cols) = (p.weight.rows, p.weight.cols);
            let mut all = vec![0.0; rows * cols];
            self.pool.chunks_mut(&mut all, 16 * cols, |first, out| {
                for (i, row) in out.chunks_exact_mut(cols).enumerate() {
                    held.each[0].decode_row(first / cols + i, row);
                }
            });
            if p.transposed {
                let mut slab = vec![0.0; p.head_rows * cols];
                for h in 0..heads {
                    let at = (p.first_row + h * p.head_stride) * cols;
                    let stored = &mut all[at..at + p.head_rows * cols];
                    for (r, row) in stored.chunks_exact(cols).enumerate() {
                        row.iter().enumerate().for_each(|(f, v)| slab[f * p.head_rows + r] = *v);
                    }
                    stored.copy_from_slice(&slab);
                }
            }
            if self.precision == Precision::Exact {
                return Wide::F32(all);
            }
            let mut narrow = vec![f16::ZERO; all.len()];
            self.isa.run(ToF16 { x: &all, out: &mut narrow });
            Wide::F16(narrow)
        }))
    }
}

fn slabs<'a, W>(data: &'a [W], p: HeadProj<'_>) -> Slabs<'a, W> {
    Slabs { data, cols: p.weight.cols, first_row: p.first_row, head_stride: p.head_stride }
}

fn latents<'a, W>(kv: &Latent<'a, W>, spans: &Spans<'a>, span: &Span, spec: &LatentSpec) -> History<'a> {
    let places = Places::Paged { table: &spans.tables[span.table..], block: spans.block };
    History { numbers: kv.cache, stream: spec.latents(), places }
}
