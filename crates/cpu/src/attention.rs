//! Attention: how a batch is cut into tasks, and which kernels they run.

use fathom_core::host::{HostData, HostStorage};
use fathom_core::{
    AttendSpec, DType, Error, HeadProj, KvCache, KvView, LatentSpec, Mask, Precision, Result, Shape, Span, Spans,
    Tensor, check,
};
use half::f16;

use crate::backend::lock;
use crate::kernels::attend::{AttendBand, Num, Places, Stream, band_scratch};
use crate::kernels::latent::{Absorb, Expand, PlainBand, Slabs, is_plain, plain_scratch};
use crate::kernels::packed::{Act, Columns, PackedBlock};
use crate::kernels::rows::ToF16;
use crate::matrix::{Held, Matrix, Wide};
use crate::pack::{Layout, Packed, ROWS};
use crate::pool::{Grid, Rect};
use crate::{Cpu, DEVICE};

/// Queries that share the loads of a key and value head.
const QUERIES: usize = 64;
/// Heads that share the loads of a latent row.
const HEADS: usize = 8;
/// Rows that share the expansion of a head's keys and values.
const PLAIN_ROWS: usize = 512;

/// How the rows of a batch are cut: kept, so that a step allocates nothing.
#[derive(Default)]
pub(crate) struct Bands {
    /// Where each band begins, and the end.
    starts: Vec<usize>,
    /// The span that each band belongs to.
    span: Vec<usize>,
}

impl Bands {
    /// Bands of at most `rows` rows, each in one span.
    fn cut(&mut self, spans: &[Span], rows: usize) {
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
}

/// Elements of a tensor as they lie in memory.
enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
}

fn elements<'a>(op: &'static str, t: &'a Tensor) -> Result<Elements<'a>> {
    let storage = t.buf.get::<HostStorage>().filter(|_| t.buf.device() == DEVICE);
    match storage.ok_or(Error::Foreign { op, expected: DEVICE, found: t.buf.device() })?.data() {
        HostData::F32(v) => Ok(Elements::F32(&v[..t.shape.numel()])),
        HostData::F16(v) => Ok(Elements::F16(&v[..t.shape.numel()])),
        HostData::U32(_) => Err(Error::Type { op, expected: "f32 or f16", found: t.dtype.name() }),
    }
}

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
struct Latent<'a, E, W> {
    cache: &'a [E],
    heads: Heads<'a, W>,
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
        match (elements(op, k)?, elements(op, v)?) {
            (Elements::F32(k), Elements::F32(v)) => self.attend_over(qs, k, v, paged, spans, spec, o),
            (Elements::F16(k), Elements::F16(v)) => self.attend_over(qs, k, v, paged, spans, spec, o),
            _ => return Err(Error::Type { op, expected: k.dtype.name(), found: v.dtype.name() }),
        }
        Ok(out)
    }

    #[allow(clippy::too_many_arguments)]
    fn attend_over<E: Num>(
        &self,
        q: &[f32],
        k: &[E],
        v: &[E],
        paged: bool,
        spans: &Spans<'_>,
        spec: &AttendSpec,
        out: &mut [f32],
    ) {
        let AttendSpec { heads, kv_heads, head_dim: dim, v_dim, scale, mask } = *spec;
        let group = heads / kv_heads;
        let rows = QUERIES.div_ceil(group);
        let mut bands = lock(&self.bands);
        bands.cut(spans.spans, rows);
        self.scratch.reserve(band_scratch(rows * group, dim, v_dim));
        let tokens = out.len() / (heads * v_dim);
        let mut grid = Grid::new(tokens, group * v_dim).out(out, heads * v_dim).bands(&bands.starts);
        self.pool.rects(&mut grid, |task, rect| {
            let span = &spans.spans[bands.span[rect.band]];
            let places = match paged {
                true => Places::Paged { table: &spans.tables[span.table..], block: spans.block },
                false => Places::Run { first: span.row },
            };
            let causal = mask == Mask::Causal;
            let seen = span.start + if causal { rect.rows.start - span.row + 1 } else { span.rows };
            let head = rect.first / (group * v_dim);
            self.isa.run(AttendBand {
                q,
                q_width: heads * dim,
                q_first: head * group * dim,
                group,
                dim,
                v_dim,
                scale,
                k: Stream { data: k, width: kv_heads * dim, first: head * dim },
                v: Stream { data: v, width: kv_heads * v_dim, first: head * v_dim },
                places,
                seen,
                causal,
                rect,
                scratch: &mut self.scratch.lock(task.worker),
            });
        });
    }

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
        let cache = elements(op, &cache.data)?;
        if let Some(heads) = self.packed_heads(op, k, v)? {
            match cache {
                Elements::F32(cache) => self.latent(op, q, &Latent { cache, heads }, spans, spec, &mut out)?,
                Elements::F16(cache) => self.latent(op, q, &Latent { cache, heads }, spans, spec, &mut out)?,
            }
            return Ok(out);
        }
        let (wk, wv) = (self.wide(op, k, spec.heads)?, self.wide(op, v, spec.heads)?);
        // The four pairs of element types that caches and projections can have.
        macro_rules! over {
            ($cache:expr, $k:expr, $v:expr) => {{
                let heads = Heads::Wide { k: slabs($k, k), v: slabs($v, v) };
                self.latent(op, q, &Latent { cache: $cache, heads }, spans, spec, &mut out)?;
            }};
        }
        match (cache, wk, wv) {
            (Elements::F32(c), Wide::F32(wk), Wide::F32(wv)) => over!(c, wk, wv),
            (Elements::F16(c), Wide::F32(wk), Wide::F32(wv)) => over!(c, wk, wv),
            (Elements::F32(c), Wide::F16(wk), Wide::F16(wv)) => over!(c, wk, wv),
            (Elements::F16(c), Wide::F16(wk), Wide::F16(wv)) => over!(c, wk, wv),
            _ => unreachable!("invariant: one backend widens to one type"),
        }
        Ok(out)
    }

    fn latent<E: Num, W: Num>(
        &self,
        op: &'static str,
        q: &Tensor,
        kv: &Latent<'_, E, W>,
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

    /// Head `h` of a packed projection widened to `[features, rank]`; `tile` holds a panel.
    fn slab(&self, w: Panels<'_>, h: usize, transposed: bool, rank: usize, out: &mut [f32], tile: &mut [f32]) {
        let (layout, cols) = (w.matrix.layout, w.matrix.cols());
        let tile = &mut tile[..cols * ROWS];
        for (p, panel) in w.head(h).chunks_exact(w.matrix.panel_bytes()).enumerate() {
            self.isa.run(Columns { layout, cols, panel, out: tile });
            for (c, column) in tile.chunks_exact(ROWS).enumerate() {
                if transposed {
                    out[c * rank + p * ROWS..][..ROWS].copy_from_slice(column);
                } else {
                    let below = out[p * ROWS * rank + c..].iter_mut().step_by(rank);
                    below.zip(column).for_each(|(o, x)| *o = *x);
                }
            }
        }
    }

    /// Spans in absorbed form: queries into the latent space, attention with the latent as key and value, results back.
    fn latent_absorbed<E: Num, W: Num>(
        &self,
        op: &'static str,
        q: &Tensor,
        kv: &Latent<'_, E, W>,
        spans: &Spans<'_>,
        spec: &LatentSpec,
        out: &mut Tensor,
    ) -> Result<()> {
        if spans.spans.iter().all(|s| is_plain(s.form)) {
            return Ok(());
        }
        let LatentSpec { heads, rank, nope, rope, v_dim, scale } = *spec;
        let (tokens, dim) = (q.rows(), rank + rope);
        let mut bands = lock(&self.bands);
        bands.cut(spans.spans, QUERIES / HEADS);
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
        self.scratch.reserve(band_scratch(QUERIES, dim, rank));
        self.pool.rects(
            &mut Grid::new(tokens, HEADS * rank).out(l, heads * rank).bands(&bands.starts),
            |task, rect| {
                let span = span_of(rect.band);
                if is_plain(span.form) {
                    return;
                }
                let stream = Stream { data: kv.cache, width: dim, first: 0 };
                self.isa.run(AttendBand {
                    q: moved,
                    q_width: heads * dim,
                    q_first: rect.first / rank * dim,
                    group: rect.width / rank,
                    dim,
                    v_dim: rank,
                    scale,
                    k: stream,
                    v: stream,
                    places: Places::Paged { table: &spans.tables[span.table..], block: spans.block },
                    seen: span.start + rect.rows.start - span.row + 1,
                    causal: true,
                    rect,
                    scratch: &mut self.scratch.lock(task.worker),
                });
            },
        );
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

    /// Spans in plain form: a task per head expands keys and values for many rows.
    fn latent_plain<E: Num, W: Num>(
        &self,
        op: &'static str,
        q: &Tensor,
        kv: &Latent<'_, E, W>,
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
        let widened = (nope + v_dim) * rank + ROWS * rank.max(nope);
        self.scratch.reserve(plain_scratch(most.min(PLAIN_ROWS), spec) + widened);
        let (q, o) = (self.arena.f32s(op, q)?, self.arena.f32s_mut(op, out)?);
        let mut grid = Grid::new(o.len() / (heads * v_dim), v_dim).out(o, heads * v_dim).bands(&bands.starts);
        self.pool.rects(&mut grid, |task, rect| {
            let span = &spans.spans[bands.span[rect.band]];
            if !is_plain(span.form) {
                return;
            }
            let (cache, seen) = (kv.cache, span.start + rect.rows.start - span.row + 1);
            let places = Places::Paged { table: &spans.tables[span.table..], block: spans.block };
            let scratch = &mut self.scratch.lock(task.worker)[..];
            match kv.heads {
                Heads::Wide { k, v } => {
                    self.isa.run(PlainBand { q, cache, places, k, v, spec, seen, rect, scratch });
                }
                Heads::Packed { k, v } => {
                    let head = rect.first / v_dim;
                    let (wk, rest) = scratch.split_at_mut(nope * rank);
                    let (wv, rest) = rest.split_at_mut(v_dim * rank);
                    let (tile, scratch) = rest.split_at_mut(ROWS * rank.max(nope));
                    self.slab(k, head, true, rank, wk, tile);
                    self.slab(v, head, false, rank, wv, tile);
                    // One head's slab, whichever head is asked for.
                    let slab = |data| Slabs { data, cols: rank, first_row: 0, head_stride: 0 };
                    let (k, v) = (slab(&*wk), slab(&*wv));
                    self.isa.run(PlainBand { q, cache, places, k, v, spec, seen, rect, scratch });
                }
            }
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
