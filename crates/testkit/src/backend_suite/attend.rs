//! Attention over paged caches and fresh tensors, grouped-query and latent.

use fathom_core::rng::Rng;
use fathom_core::{
    AttendSpec, Backend, DType, FormatId, HeadProj, KvCache, KvStream, KvView, LatentForm, LatentSpec, Mask, Result,
    Span, Spans, Tensor, Weight, format,
};

use super::Suite;
use super::rows::matrix;
use crate::random::{normals, weight};

/// One sequence's `(start, rows, held)`: rows `start..start + rows` are asked for, positions `0..held` are cached.
type Part = (usize, usize, usize);

/// Several sequences in a paged cache: which rows of each are asked for, and where its blocks lie.
pub(super) struct Scene {
    pub block: usize,
    pub spans: Vec<Span>,
    pub tables: Vec<u32>,
    pub slots: usize,
    /// Positions of each sequence that the cache holds.
    pub held: Vec<usize>,
    pub rows: usize,
}

impl Scene {
    /// Blocks are dealt in random order.
    pub(super) fn new(rng: &mut Rng, block: usize, parts: &[Part], form: LatentForm) -> Self {
        let blocks: usize = parts.iter().map(|p| p.2.div_ceil(block)).sum::<usize>() + 2;
        let mut free: Vec<u32> = (0..blocks as u32).collect();
        for i in (1..free.len()).rev() {
            free.swap(i, rng.below(i as u32 + 1) as usize);
        }
        let (mut spans, mut tables, mut row) = (Vec::new(), Vec::new(), 0);
        for &(start, rows, held) in parts {
            spans.push(Span { row, rows, start, table: tables.len(), form });
            row += rows;
            tables.extend(free.drain(..held.div_ceil(block)));
        }
        let held = parts.iter().map(|p| p.2).collect();
        Scene { block, spans, tables, slots: blocks * block, held, rows: row }
    }

    pub(super) fn view(&self) -> Spans<'_> {
        Spans { spans: &self.spans, tables: &self.tables, block: self.block }
    }

    /// A cache that holds the first positions of every sequence; sequence i's rows come from `data[i]`.
    pub(super) fn fill(&self, b: &dyn Backend, stream: KvStream, dtype: DType, data: &[Vec<f32>]) -> Result<KvCache> {
        let (mut cache, width) = (b.kv_alloc(self.slots, stream, dtype)?, stream.width());
        for ((span, &held), rows) in self.spans.iter().zip(&self.held).zip(data) {
            let slots: Vec<u32> = (0..held).map(|p| self.view().slot(span, p) as u32).collect();
            // In two strokes, as a prefill in chunks writes it.
            let cut = held / 2;
            for (from, to) in [(0, cut), (cut, held)] {
                let x = matrix(b, to - from, width, &rows[from * width..to * width])?;
                b.kv_write(&mut cache, &x, &slots[from..to])?;
            }
        }
        Ok(cache)
    }
}

pub(super) fn histories(rng: &mut Rng, scene: &Scene, width: usize) -> Vec<Vec<f32>> {
    scene.held.iter().map(|&n| normals(rng, n * width)).collect()
}

pub(super) fn gqa(heads: usize, kv_heads: usize, head_dim: usize, v_dim: usize) -> AttendSpec {
    AttendSpec { heads, kv_heads, head_dim, v_dim, scale: 1.0 / (head_dim as f32).sqrt(), mask: Mask::Causal }
}

/// Batches as an engine makes them, with lengths at and around the boundaries of blocks and of 256.
const BATCHES: &[(&str, &[Part])] = &[
    ("one token", &[(0, 1, 1)]),
    ("a prompt", &[(0, 37, 37)]),
    ("a later chunk", &[(64, 19, 83)]),
    ("decoding at boundaries", &[(62, 1, 63), (63, 1, 64), (64, 1, 65), (254, 1, 255), (255, 1, 256), (256, 1, 257)]),
    ("a chunk across 256", &[(250, 12, 262)]),
    ("a long one", &[(700, 3, 703)]),
    ("everything at once", &[(0, 5, 5), (300, 1, 301), (130, 70, 200), (0, 1, 1), (511, 2, 513)]),
];

pub(super) fn cases(s: &mut Suite) {
    let mut rng = Rng::new(4, 0);
    for &(name, parts) in BATCHES {
        for (heads, kv_heads, head_dim, v_dim) in
            [(1, 1, 8, 8), (4, 2, 16, 16), (7, 1, 24, 8), (12, 3, 40, 40), (2, 2, 64, 128), (4, 1, 128, 128)]
        {
            let spec = gqa(heads, kv_heads, head_dim, v_dim);
            for (block, dtype) in [(64, DType::F32), (16, DType::F16), (16, DType::Q8_0)] {
                let scene = Scene::new(&mut rng, block, parts, LatentForm::Plain);
                let q = normals(&mut rng, scene.rows * heads * head_dim);
                let k = histories(&mut rng, &scene, kv_heads * head_dim);
                let v = histories(&mut rng, &scene, kv_heads * v_dim);
                let label = format!("attend {name}, {heads}/{kv_heads} heads of {head_dim}/{v_dim}, {}", dtype.name());
                s.like_reference(label, s.tolerance.attend, &|b| {
                    let k = scene.fill(b, spec.keys(), dtype, &k)?;
                    let v = scene.fill(b, spec.values(), dtype, &v)?;
                    let q = matrix(b, scene.rows, heads * head_dim, &q)?;
                    Ok(vec![b.attend(&q, KvView::Paged { k: &k, v: &v }, &scene.view(), &spec)?])
                });
            }
        }
    }
    sharp(s, &mut rng);
    fresh(s, &mut rng);
    copies(s, &mut rng);
    rounded(s, &mut rng);
    latent(s, &mut rng);
}

/// Large scores: softmax must subtract the maximum, also when a later stretch raises it.
fn sharp(s: &mut Suite, rng: &mut Rng) {
    let spec = AttendSpec { scale: 12.0, ..gqa(2, 1, 16, 16) };
    let scene = Scene::new(rng, 32, &[(590, 10, 600)], LatentForm::Plain);
    let q = normals(rng, scene.rows * 32);
    let (k, v) = (histories(rng, &scene, 16), histories(rng, &scene, 16));
    // Scores reach the hundreds, where f32 keeps about five digits of an exponent.
    s.like_reference("attend with large scores", 100.0 * s.tolerance.attend, &|b| {
        let (k, v) = (scene.fill(b, spec.keys(), DType::F32, &k)?, scene.fill(b, spec.values(), DType::F32, &v)?);
        Ok(vec![b.attend(&matrix(b, 10, 32, &q)?, KvView::Paged { k: &k, v: &v }, &scene.view(), &spec)?])
    });
}

fn fresh(s: &mut Suite, rng: &mut Rng) {
    for mask in [Mask::Causal, Mask::Full] {
        for lengths in [&[1][..], &[5, 1, 70], &[300]] {
            let spec = AttendSpec { mask, ..gqa(6, 3, 16, 24) };
            let mut spans = Vec::new();
            let mut rows = 0;
            for &n in lengths {
                spans.push(Span { row: rows, rows: n, start: 0, table: 0, form: LatentForm::Plain });
                rows += n;
            }
            let (q, k, v) = (normals(rng, rows * 96), normals(rng, rows * 48), normals(rng, rows * 72));
            s.like_reference(format!("attend fresh {mask:?} {lengths:?}"), s.tolerance.attend, &|b| {
                let (k, v) = (matrix(b, rows, 48, &k)?, matrix(b, rows, 72, &v)?);
                let spans = Spans { spans: &spans, tables: &[], block: 0 };
                Ok(vec![b.attend(&matrix(b, rows, 96, &q)?, KvView::Fresh { k: &k, v: &v }, &spans, &spec)?])
            });
        }
    }
}

/// A copied block serves as well as the one it was copied from.
fn copies(s: &mut Suite, rng: &mut Rng) {
    let spec = gqa(2, 1, 16, 16);
    let q = normals(rng, 32);
    for (dtype, block) in [(DType::F32, 8), (DType::F16, 8), (DType::Q8_0, 8), (DType::Q8_0, 16)] {
        let scene = Scene::new(rng, block, &[(20, 1, 21)], LatentForm::Plain);
        let (k, v) = (histories(rng, &scene, 16), histories(rng, &scene, 16));
        let free = (0..).find(|b| !scene.tables.contains(b)).expect("invariant: a scene has spare blocks");
        let attend = |b: &dyn Backend, copy: bool| -> Result<Vec<Tensor>> {
            let (mut k, mut v) = (scene.fill(b, spec.keys(), dtype, &k)?, scene.fill(b, spec.values(), dtype, &v)?);
            let mut tables = scene.tables.clone();
            if copy {
                for c in [&mut k, &mut v] {
                    b.kv_copy(c, tables[1] as usize * block, free as usize * block, block)?;
                    let junk = matrix(b, block, 16, &vec![9.0; block * 16])?;
                    let slots: Vec<u32> = (0..block as u32).map(|i| tables[1] * block as u32 + i).collect();
                    b.kv_write(c, &junk, &slots)?;
                }
                tables[1] = free;
            }
            let spans = Spans { spans: &scene.spans, tables: &tables, block };
            Ok(vec![b.attend(&matrix(b, 1, 32, &q)?, KvView::Paged { k: &k, v: &v }, &spans, &spec)?])
        };
        s.same_bits(format!("kv_copy {}, blocks of {block}", dtype.name()), &|b| attend(b, false), &|b| {
            attend(b, true)
        });
    }
}

/// What a cache in q8_0 keeps is what the codec makes of every 32 numbers of a head, the last ones with zeros behind: over one
/// position, attention gives its value.
fn rounded(s: &mut Suite, rng: &mut Rng) {
    for dim in [8, 32, 40, 100, 128] {
        let (heads, scene) = (3, Scene::new(rng, 16, &[(0, 1, 1)], LatentForm::Plain));
        let spec = gqa(heads, heads, 8, dim);
        let (q, k, mut v) = (normals(rng, heads * 8), vec![normals(rng, heads * 8)], normals(rng, heads * dim));
        // Zeros, and halves that are to be rounded.
        v[..dim].iter_mut().enumerate().for_each(|(i, x)| *x = if i < 32 { 0.0 } else { i as f32 - 63.5 });
        v[dim + 7] = -127.0;
        let mut kept = Vec::new();
        for run in v.chunks_exact(dim).flat_map(|head| head.chunks(32)) {
            let (mut block, mut bytes) = ([0.0; 32], [0; 34]);
            block[..run.len()].copy_from_slice(run);
            format::Q8_0.get().encode_block(&block, &mut bytes);
            format::Q8_0.get().decode_block(&bytes, &mut block);
            kept.extend_from_slice(&block[..run.len()]);
        }
        let v = vec![v];
        let attend = |b: &dyn Backend| {
            let (k, v) = (scene.fill(b, spec.keys(), DType::Q8_0, &k)?, scene.fill(b, spec.values(), DType::Q8_0, &v)?);
            let q = matrix(b, 1, heads * 8, &q)?;
            Ok(vec![b.attend(&q, KvView::Paged { k: &k, v: &v }, &scene.view(), &spec)?])
        };
        s.same_bits(format!("q8_0 of {dim} = the codec's"), &attend, &|b| Ok(vec![matrix(b, 1, heads * dim, &kept)?]));
    }
}

/// The projections of latent attention as a file may hold them.
pub(super) struct Heads {
    pub name: String,
    pub k: Weight,
    pub v: Weight,
    fused: bool,
}

impl Heads {
    /// One weight, `[heads × (nope + v_dim), rank]`.
    pub(super) fn fused(rng: &mut Rng, f: FormatId, spec: &LatentSpec) -> Self {
        let w = weight(rng, f, spec.heads * (spec.nope + spec.v_dim), spec.rank);
        Heads { name: format!("fused {f}"), k: w.clone(), v: w, fused: true }
    }

    /// Two, the keys' transposed: `[heads × rank, nope]` and `[heads × v_dim, rank]`.
    pub(super) fn split(rng: &mut Rng, f: FormatId, spec: &LatentSpec) -> Self {
        let k = if spec.nope.is_multiple_of(f.get().block_elems()) { f } else { format::F16 };
        Heads {
            name: format!("split {f}"),
            k: weight(rng, k, spec.heads * spec.rank, spec.nope),
            v: weight(rng, f, spec.heads * spec.v_dim, spec.rank),
            fused: false,
        }
    }

    pub(super) fn attend(
        &self,
        b: &dyn Backend,
        q: &Tensor,
        cache: &KvCache,
        spans: &Spans<'_>,
        spec: &LatentSpec,
    ) -> Result<Tensor> {
        let (k, v) = (b.upload(&self.k)?, b.upload(&self.v)?);
        let head_stride = spec.nope + spec.v_dim;
        let proj = |weight, first_row, head_stride, head_rows, transposed| HeadProj {
            weight,
            first_row,
            head_stride,
            head_rows,
            transposed,
        };
        let (k, v) = if self.fused {
            (proj(&k, 0, head_stride, spec.nope, false), proj(&k, spec.nope, head_stride, spec.v_dim, false))
        } else {
            (proj(&k, 0, spec.rank, spec.rank, true), proj(&v, 0, spec.v_dim, spec.v_dim, false))
        };
        b.attend_latent(q, cache, k, v, spans, spec)
    }
}

pub(super) fn mla(heads: usize, rank: usize, nope: usize, rope: usize, v_dim: usize) -> LatentSpec {
    LatentSpec { heads, rank, nope, rope, v_dim, scale: 0.7 / ((rank * nope + rope) as f32).sqrt() }
}

fn latent(s: &mut Suite, rng: &mut Rng) {
    for (i, &(name, parts)) in BATCHES.iter().enumerate() {
        for spec in [mla(3, 32, 16, 8, 24), mla(2, 256, 32, 16, 32), mla(4, 64, 64, 64, 64), mla(2, 48, 16, 24, 16)] {
            for form in [LatentForm::Plain, LatentForm::Absorbed] {
                let formats: Vec<FormatId> =
                    FormatId::all().filter(|f| spec.rank.is_multiple_of(f.get().block_elems())).collect();
                // Every batch meets some format; one batch meets all of them.
                let all = name == "a later chunk" && spec.heads == 2;
                let formats = if all { &formats[..] } else { &formats[i % formats.len()..][..1] };
                for &f in formats {
                    for heads in [Heads::fused(rng, f, &spec), Heads::split(rng, f, &spec)] {
                        for dtype in [DType::F32, DType::F16, DType::Q8_0] {
                            let scene = Scene::new(rng, 64, parts, form);
                            let q = normals(rng, scene.rows * spec.heads * (spec.nope + spec.rope));
                            let cached = histories(rng, &scene, spec.rank + spec.rope);
                            let label = format!("latent {form:?} {name}, {}, {}", heads.name, dtype.name());
                            s.like_reference(label, s.tolerance.attend.max(s.tolerance.linear), &|b| {
                                let cache = scene.fill(b, spec.latents(), dtype, &cached)?;
                                let q = matrix(b, scene.rows, spec.heads * (spec.nope + spec.rope), &q)?;
                                Ok(vec![heads.attend(b, &q, &cache, &scene.view(), &spec)?])
                            });
                        }
                    }
                }
            }
        }
    }
}
