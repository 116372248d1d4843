//! A row's attention is the same bit for bit however its span is cut, whether its cache is walked by one task or cut into many, for
//! any number of threads, and wherever its blocks lie.

use fathom_core::rng::Rng;
use fathom_core::{
    AttendSpec, Backend, DType, HeadProj, KvCache, KvStream, KvView, LatentForm, LatentSpec, Mask, Precision, Shape,
    Span, Spans, format,
};
use fathom_cpu::{Cpu, CpuOptions, Level};
use fathom_testkit::random::{normals, weight};

/// A sequence of `len` positions in blocks that lie backwards.
struct Sequence {
    block: usize,
    tables: Vec<u32>,
    len: usize,
}

impl Sequence {
    fn new(block: usize, len: usize) -> Self {
        Sequence { block, tables: (0..len.div_ceil(block) as u32).rev().collect(), len }
    }

    fn cache(&self, b: &dyn Backend, stream: KvStream, dtype: DType, data: &[f32]) -> KvCache {
        let mut cache = b.kv_alloc(self.tables.len() * self.block, stream, dtype).unwrap();
        let slot = |p: usize| self.tables[p / self.block] * self.block as u32 + (p % self.block) as u32;
        let slots: Vec<u32> = (0..self.len).map(slot).collect();
        let x = b.tensor(Shape::matrix(self.len, stream.width()), &data[..self.len * stream.width()]).unwrap();
        b.kv_write(&mut cache, &x, &slots).unwrap();
        cache
    }

    /// The last `rows` rows, `step` at a time, as bits; `attend` is told first row and number of rows.
    fn last(&self, rows: usize, step: usize, attend: impl Fn(&Spans<'_>, usize, usize) -> Vec<f32>) -> Vec<u32> {
        let mut all = Vec::new();
        for first in (0..rows).step_by(step) {
            let n = step.min(rows - first);
            let start = self.len - rows + first;
            let spans = [Span { row: 0, rows: n, start, table: 0, form: LatentForm::Absorbed }];
            let spans = Spans { spans: &spans, tables: &self.tables, block: self.block };
            all.extend(attend(&spans, first, n));
        }
        assert!(all.iter().all(|x| x.is_finite()));
        all.into_iter().map(f32::to_bits).collect()
    }
}

fn read(b: &dyn Backend, t: &fathom_core::Tensor) -> Vec<f32> {
    let mut out = vec![0.0; t.shape.numel()];
    b.read(t, &mut out).unwrap();
    out
}

fn backends(precision: Precision) -> Vec<(String, std::sync::Arc<Cpu>)> {
    let mut all = Vec::new();
    for isa in Level::present() {
        for threads in [1, 2, 5] {
            let options = CpuOptions { threads: Some(threads), isa: Some(isa), precision, repack: true };
            all.push((format!("{} {threads} threads", isa.name()), Cpu::new(options).unwrap()));
        }
    }
    all
}

#[test]
fn grouped_queries() {
    let mut rng = Rng::new(11, 0);
    for (heads, kv_heads, head_dim, v_dim) in [(6, 1, 24, 40), (7, 1, 16, 16), (4, 4, 32, 32), (16, 2, 48, 64)] {
        let spec = AttendSpec { heads, kv_heads, head_dim, v_dim, scale: 0.2, mask: Mask::Causal };
        for (len, block, dtype) in [
            (262, 64, DType::F16),
            (523, 16, DType::F16),
            (1300, 24, DType::F16),
            (540, 8, DType::F32),
            (540, 64, DType::Q8_0),
            (279, 24, DType::Q8_0),
        ] {
            let rows = 60;
            let sequence = Sequence::new(block, len);
            let q = normals(&mut rng, rows * heads * head_dim);
            let (k, v) = (normals(&mut rng, len * kv_heads * head_dim), normals(&mut rng, len * kv_heads * v_dim));
            let mut by_level = std::collections::BTreeMap::new();
            for (name, b) in backends(Precision::Fast) {
                let (k, v) =
                    (sequence.cache(&*b, spec.keys(), dtype, &k), sequence.cache(&*b, spec.values(), dtype, &v));
                for step in [rows, 7, 1] {
                    let bits = sequence.last(rows, step, |spans, first, n| {
                        let width = heads * head_dim;
                        let q = b.tensor(Shape::matrix(n, width), &q[first * width..(first + n) * width]).unwrap();
                        read(&*b, &b.attend(&q, KvView::Paged { k: &k, v: &v }, spans, &spec).unwrap())
                    });
                    let known = by_level.entry(b.level()).or_insert_with(|| bits.clone());
                    assert!(
                        *known == bits,
                        "{name}, {heads}/{kv_heads} of {head_dim}, {len} positions, {step} at a time"
                    );
                }
            }
        }
    }
}

#[test]
fn absorbed_queries() {
    let mut rng = Rng::new(12, 0);
    for (heads, rank, rope) in [(3, 32, 8), (16, 64, 16), (70, 32, 16)] {
        let spec = LatentSpec { heads, rank, nope: 16, rope, v_dim: 16, scale: 0.2 };
        let wk = weight(&mut rng, format::Q8_0, heads * rank, 32);
        let wv = weight(&mut rng, format::Q8_0, heads * 16, rank);
        let spec = LatentSpec { nope: 32, ..spec };
        for (len, block, dtype) in [
            (262, 64, DType::F16),
            (523, 16, DType::F16),
            (1300, 24, DType::F16),
            (523, 64, DType::Q8_0),
            (279, 24, DType::Q8_0),
        ] {
            let rows = 10;
            let sequence = Sequence::new(block, len);
            let width = heads * (spec.nope + rope);
            let (q, x) = (normals(&mut rng, rows * width), normals(&mut rng, len * (rank + rope)));
            let mut by_level = std::collections::BTreeMap::new();
            for (name, b) in backends(Precision::Fast) {
                let cache = sequence.cache(&*b, spec.latents(), dtype, &x);
                let (wk, wv) = (b.upload(&wk).unwrap(), b.upload(&wv).unwrap());
                let k = HeadProj { weight: &wk, first_row: 0, head_stride: rank, head_rows: rank, transposed: true };
                let v = HeadProj { weight: &wv, first_row: 0, head_stride: 16, head_rows: 16, transposed: false };
                for step in [rows, 4, 1] {
                    let bits = sequence.last(rows, step, |spans, first, n| {
                        let q = b.tensor(Shape::matrix(n, width), &q[first * width..(first + n) * width]).unwrap();
                        read(&*b, &b.attend_latent(&q, &cache, k, v, spans, &spec).unwrap())
                    });
                    let known = by_level.entry(b.level()).or_insert_with(|| bits.clone());
                    assert!(*known == bits, "{name}, {heads} heads, {len} positions, {step} at a time");
                }
            }
        }
    }
}

/// What another sequence left in the slots of a group that this one fills by half must not reach it.
#[test]
fn what_lies_behind_the_last_position_is_not_seen() {
    let spec = AttendSpec { heads: 6, kv_heads: 1, head_dim: 16, v_dim: 16, scale: 0.2, mask: Mask::Causal };
    let mut rng = Rng::new(13, 0);
    let (q, k, v) = (normals(&mut rng, 96), normals(&mut rng, 300 * 16), normals(&mut rng, 300 * 16));
    let types = [DType::F16, DType::Q8_0];
    for ((name, b), dtype) in backends(Precision::Fast).into_iter().flat_map(|b| types.map(|t| (b.clone(), t))) {
        let run = |junk: f32| {
            let sequence = Sequence::new(64, 277);
            let cache = |stream: KvStream, data: &[f32]| {
                let mut cache = sequence.cache(&*b, stream, dtype, data);
                let slots: Vec<u32> = (277 % 64..64).map(|i| sequence.tables[4] * 64 + i as u32).collect();
                let x = b.tensor(Shape::matrix(slots.len(), 16), &vec![junk; slots.len() * 16]).unwrap();
                b.kv_write(&mut cache, &x, &slots).unwrap();
                cache
            };
            let (k, v) = (cache(spec.keys(), &k), cache(spec.values(), &v));
            sequence.last(1, 1, |spans, _, _| {
                let q = b.tensor(Shape::matrix(1, 96), &q).unwrap();
                read(&*b, &b.attend(&q, KvView::Paged { k: &k, v: &v }, spans, &spec).unwrap())
            })
        };
        let clean = run(0.0);
        for junk in [f32::NAN, f32::INFINITY, 3.0] {
            assert!(run(junk) == clean, "{name}, {}: {junk}", dtype.name());
        }
    }
}

/// Keys and values reach attention as [`fathom_core::format::Q8_0`] gives them: to the same bits as those numbers in f32.
#[test]
fn bytes_with_scales_are_read_as_numbers() {
    let codec = format::Q8_0.get();
    let kept = |x: &[f32], dim: usize| -> Vec<f32> {
        let runs = x.chunks(dim).flat_map(|head| head.chunks(32));
        let decoded = runs.flat_map(|run| {
            let (mut block, mut bytes) = ([0.0; 32], [0; 34]);
            block[..run.len()].copy_from_slice(run);
            codec.encode_block(&block, &mut bytes);
            codec.decode_block(&bytes, &mut block);
            block[..run.len()].to_vec()
        });
        decoded.collect()
    };
    let mut rng = Rng::new(14, 0);
    for (heads, kv_heads, head_dim, v_dim) in [(6, 2, 40, 72), (1, 1, 128, 128), (4, 2, 32, 64), (8, 1, 64, 48)] {
        let spec = AttendSpec { heads, kv_heads, head_dim, v_dim, scale: 0.2, mask: Mask::Causal };
        for (len, block) in [(530, 64), (290, 24)] {
            let sequence = Sequence::new(block, len);
            let q = normals(&mut rng, 9 * heads * head_dim);
            let (k, v) = (normals(&mut rng, len * kv_heads * head_dim), normals(&mut rng, len * kv_heads * v_dim));
            let (wide_k, wide_v) = (kept(&k, head_dim), kept(&v, v_dim));
            for (name, b) in backends(Precision::Fast) {
                for rows in [9, 1] {
                    let run = |dtype, k: &[f32], v: &[f32]| {
                        let k = sequence.cache(&*b, spec.keys(), dtype, k);
                        let v = sequence.cache(&*b, spec.values(), dtype, v);
                        sequence.last(rows, rows, |spans, _, n| {
                            let q = b.tensor(Shape::matrix(n, heads * head_dim), &q[..n * heads * head_dim]).unwrap();
                            read(&*b, &b.attend(&q, KvView::Paged { k: &k, v: &v }, spans, &spec).unwrap())
                        })
                    };
                    assert!(
                        run(DType::Q8_0, &k, &v) == run(DType::F32, &wide_k, &wide_v),
                        "{name}, {heads}/{kv_heads} of {head_dim}/{v_dim}, {len} positions, {rows} rows"
                    );
                }
            }
        }
    }
}
