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
use crate::kernels::rows::ToF16;
use crate::matrix::{Held, Wide};
use crate::pool::Grid;
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

/// A latent cache and the widened projections.
struct Latent<'a, E, W> {
    cache: &'a [E],
    k: Slabs<'a, W>,
    v: Slabs<'a, W>,
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
        let (wk, wv) = (self.wide(op, k, spec.heads)?, self.wide(op, v, spec.heads)?);
        let cache = elements(op, &cache.data)?;
        // The four pairs of element types that caches and projections can have.
        macro_rules! over {
            ($cache:expr, $k:expr, $v:expr) => {{
                let kv = Latent { cache: $cache, k: slabs($k, k), v: slabs($v, v) };
                self.latent_absorbed(op, q, &kv, spans, spec, &mut out)?;
                self.latent_plain(op, q, &kv, spans, spec, &mut out)?;
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
        let LatentSpec { heads, rank, rope, v_dim, scale, .. } = *spec;
        let (tokens, dim) = (q.rows(), rank + rope);
        let mut bands = lock(&self.bands);
        bands.cut(spans.spans, QUERIES / HEADS);
        let span_of = |band: usize| &spans.spans[bands.span[band]];
        let mut moved = self.arena.alloc(Shape::matrix(tokens, heads * dim), DType::F32);
        let qs = self.arena.f32s(op, q)?;
        let m = self.arena.f32s_mut(op, &mut moved)?;
        self.pool.rects(&mut Grid::new(tokens, dim).out(m, heads * dim).bands(&bands.starts), |_, rect| {
            if !is_plain(span_of(rect.band).form) {
                self.isa.run(Absorb { q: qs, k: kv.k, spec, rect });
            }
        });
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
        self.pool.rects(&mut Grid::new(tokens, v_dim).out(o, heads * v_dim).bands(&bands.starts), |_, rect| {
            if !is_plain(span_of(rect.band).form) {
                self.isa.run(Expand { latent, v: kv.v, spec, rect });
            }
        });
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
        let LatentSpec { heads, v_dim, .. } = *spec;
        let mut bands = lock(&self.bands);
        bands.cut(spans.spans, PLAIN_ROWS);
        let most = spans.spans.iter().map(|s| s.rows).max().unwrap_or(0);
        self.scratch.reserve(plain_scratch(most.min(PLAIN_ROWS), spec));
        let (q, o) = (self.arena.f32s(op, q)?, self.arena.f32s_mut(op, out)?);
        let mut grid = Grid::new(o.len() / (heads * v_dim), v_dim).out(o, heads * v_dim).bands(&bands.starts);
        self.pool.rects(&mut grid, |task, rect| {
            let span = &spans.spans[bands.span[rect.band]];
            if !is_plain(span.form) {
                return;
            }
            self.isa.run(PlainBand {
                q,
                cache: kv.cache,
                places: Places::Paged { table: &spans.tables[span.table..], block: spans.block },
                k: kv.k,
                v: kv.v,
                spec,
                seen: span.start + rect.rows.start - span.row + 1,
                rect,
                scratch: &mut self.scratch.lock(task.worker),
            });
        });
        Ok(())
    }

    /// The matrix of a head projection, every number widened: block formats would be decoded again for every token
    /// otherwise. Made once, when a model first attends; half a byte to two bytes a number beside the stored form.
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
