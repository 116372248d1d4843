//! Times of the pool and of the kernels, beside what the machine can do.
//!
//! `cargo bench -p fathom-cpu -- [pool] [read] [gemv] [gemm] [ffn] [attend] [latent]`; nothing named runs all. Idle machine only.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use fathom_core::{
    AttendSpec, Backend, Bytes, DType, FormatId, HeadProj, KvCache, KvStream, KvView, LatentForm, LatentSpec, Mask,
    Precision, Proj, Shape, Span, Spans, Weight, format,
};
use fathom_cpu::{Cpu, CpuOptions, Level, Pool, read_bandwidth};

/// Median seconds of `runs` calls.
fn median(runs: usize, mut f: impl FnMut()) -> f64 {
    f();
    let mut times: Vec<f64> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[runs / 2]
}

/// A weight of pseudo-random blocks with ordinary scales: what a kernel does not look at does not matter to its time.
fn weight(format: FormatId, rows: usize, cols: usize) -> Weight {
    let f = format.get();
    let one: Vec<f32> = (0..cols).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.05).collect();
    let row = Weight::encode(format, 1, cols, &one).expect("formats of the bench can be written");
    let mut bytes = Vec::with_capacity(rows * cols / f.block_elems() * f.block_bytes());
    (0..rows).for_each(|_| bytes.extend_from_slice(row.bytes.as_slice()));
    Weight::new(format, rows, cols, Bytes::from_vec(bytes), None).expect("whole blocks")
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 31 % 997) as f32 / 498.5 - 1.0).collect()
}

fn pool(threads: usize) {
    let pool = Pool::new(threads).expect("threads");
    let t = median(2000, || {
        pool.run(threads, |t| {
            black_box(t);
        });
    });
    println!("pool      {threads} threads                   {:8.2} us per region", t * 1e6);
}

/// Matrices enough to exceed every cache, multiplied in turn.
fn gemv(cpu: &Arc<Cpu>, format: FormatId, rows: usize, cols: usize, bandwidth: f64) {
    let w = weight(format, rows, cols);
    let count = (600 << 20) / w.total_bytes() + 1;
    let all: Vec<_> = (0..count).map(|_| cpu.upload(&w).expect("upload")).collect();
    let x = cpu.tensor(Shape::matrix(1, cols), &numbers(cols)).expect("tensor");
    let t = median(5, || {
        for weight in &all {
            black_box(cpu.linear(&x, &[Proj { weight, bias: None }]).expect("linear"));
        }
    }) / count as f64;
    let rate = w.total_bytes() as f64 / t;
    println!(
        "gemv      {:5} {rows:6} x {cols:5}   {:8.1} us {:7.1} GB/s {:5.0} % of reading",
        format.name(),
        t * 1e6,
        rate / 1e9,
        rate / bandwidth * 100.0
    );
}

fn gemm(cpu: &Arc<Cpu>, format: FormatId, rows: usize, cols: usize, tokens: usize) {
    let resident = cpu.upload(&weight(format, rows, cols)).expect("upload");
    let x = cpu.tensor(Shape::matrix(tokens, cols), &numbers(tokens * cols)).expect("tensor");
    let t = median(5, || {
        black_box(cpu.linear(&x, &[Proj { weight: &resident, bias: None }]).expect("linear"));
    });
    let operations = 2.0 * (rows * cols * tokens) as f64;
    println!(
        "gemm      {:5} {rows:6} x {cols:5} x {tokens:4} {:8.2} ms {:7.1} GOP/s",
        format.name(),
        t * 1e3,
        operations / t / 1e9
    );
}

/// A feed-forward network, whose products round activations to one digit where [`gemm`]'s take two.
fn ffn(cpu: &Arc<Cpu>, format: FormatId, dim: usize, hidden: usize, tokens: usize) {
    let wide = cpu.upload(&weight(format, hidden, dim)).expect("upload");
    let down = cpu.upload(&weight(format, dim, hidden)).expect("upload");
    let x = cpu.tensor(Shape::matrix(tokens, dim), &numbers(tokens * dim)).expect("tensor");
    let [wide, down] = [&wide, &down].map(|weight| Proj { weight, bias: None });
    let t = median(5, || {
        black_box(cpu.ffn(&x, wide, wide, down).expect("ffn"));
    });
    let operations = 6.0 * (dim * hidden * tokens) as f64;
    println!(
        "ffn       {:5} {hidden:6} x {dim:5} x {tokens:4} {:8.2} ms {:7.1} GOP/s",
        format.name(),
        t * 1e3,
        operations / t / 1e9
    );
}

/// Rows at a depth, and what attention over them costs.
struct Scene {
    tables: Vec<u32>,
    spans: [Span; 1],
    slots: usize,
}

impl Scene {
    fn new(rows: usize, depth: usize, form: LatentForm) -> Scene {
        let slots = (depth + rows).next_multiple_of(64);
        let spans = [Span { row: 0, rows, start: depth, table: 0, form }];
        Scene { tables: (0..slots as u32 / 64).collect(), spans, slots }
    }

    fn view(&self) -> Spans<'_> {
        Spans { spans: &self.spans, tables: &self.tables, block: 64 }
    }

    fn cache(&self, cpu: &Arc<Cpu>, stream: KvStream, dtype: DType) -> KvCache {
        let mut cache = cpu.kv_alloc(self.slots, stream, dtype).expect("cache");
        let width = stream.width();
        let x = cpu.tensor(Shape::matrix(self.slots, width), &numbers(self.slots * width)).expect("tensor");
        let all: Vec<u32> = (0..self.slots as u32).collect();
        cpu.kv_write(&mut cache, &x, &all).expect("write");
        cache
    }

    /// `work` multiplications per query row and position seen, `once` per position, `bytes` of cache per position.
    fn report(&self, what: &str, seconds: f64, work: usize, once: usize, bytes: usize) {
        let Span { rows, start, .. } = self.spans[0];
        let seen: usize = (0..rows).map(|i| start + i + 1).sum();
        println!(
            "attend    {what:26} {rows:4} rows at {start:6} {:9.1} us {:7.1} GMAC/s {:7.1} GB/s of cache",
            seconds * 1e6,
            (seen * work + (start + rows) * once) as f64 / seconds / 1e9,
            ((start + rows) * bytes) as f64 / seconds / 1e9
        );
    }
}

/// Caches for several layers, so that each call finds its own in memory and not in the processor.
const LAYERS: usize = 4;

/// Types of caches that fast precision has.
const CACHES: [DType; 2] = [DType::F16, DType::Q8_0];

fn attend(cpu: &Arc<Cpu>, [heads, kv_heads, head_dim]: [usize; 3], rows: usize, depth: usize, dtype: DType) {
    let spec = AttendSpec { heads, kv_heads, head_dim, v_dim: head_dim, scale: 0.088, mask: Mask::Causal };
    let scene = Scene::new(rows, depth, LatentForm::Plain);
    let caches: Vec<_> =
        (0..LAYERS).map(|_| (scene.cache(cpu, spec.keys(), dtype), scene.cache(cpu, spec.values(), dtype))).collect();
    let q = cpu.tensor(Shape::matrix(rows, heads * head_dim), &numbers(rows * heads * head_dim)).expect("tensor");
    let t = median(9, || {
        for (k, v) in &caches {
            black_box(cpu.attend(&q, KvView::Paged { k, v }, &scene.view(), &spec).expect("attend"));
        }
    }) / LAYERS as f64;
    let name = format!("{heads}/{kv_heads} heads of {head_dim}, {}", dtype.name());
    let bytes = spec.keys().bytes(dtype) + spec.values().bytes(dtype);
    scene.report(&name, t, 2 * heads * head_dim, 0, bytes);
}

fn attend_latent(cpu: &Arc<Cpu>, heads: usize, form: LatentForm, rows: usize, depth: usize, dtype: DType) {
    let (rank, nope, rope, v_dim) = (512, 128, 64, 128);
    let spec = LatentSpec { heads, rank, nope, rope, v_dim, scale: 0.07 };
    let scene = Scene::new(rows, depth, form);
    let caches: Vec<_> = (0..LAYERS).map(|_| scene.cache(cpu, spec.latents(), dtype)).collect();
    let wk = cpu.upload(&weight(format::Q8_0, heads * rank, nope)).expect("upload");
    let wv = cpu.upload(&weight(format::Q8_0, heads * v_dim, rank)).expect("upload");
    let k = HeadProj { weight: &wk, first_row: 0, head_stride: rank, head_rows: rank, transposed: true };
    let v = HeadProj { weight: &wv, first_row: 0, head_stride: v_dim, head_rows: v_dim, transposed: false };
    let width = heads * (nope + rope);
    let q = cpu.tensor(Shape::matrix(rows, width), &numbers(rows * width)).expect("tensor");
    let t = median(9, || {
        for cache in &caches {
            black_box(cpu.attend_latent(&q, cache, k, v, &scene.view(), &spec).expect("attend"));
        }
    }) / LAYERS as f64;
    let projections = heads * rank * (nope + v_dim);
    let (work, once) = match form {
        LatentForm::Plain => (heads * (nope + rope + v_dim), projections),
        LatentForm::Absorbed => (heads * (2 * rank + rope), 0),
    };
    let name = format!("{form:?}, {heads} heads, {}", dtype.name());
    scene.report(&name, t, work, once, spec.latents().bytes(dtype));
}

fn main() {
    let named: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let want = |what: &str| named.is_empty() || named.iter().any(|n| n == what);
    let threads = named.iter().find_map(|n| n.parse().ok());
    if want("pool") {
        (1..=4).for_each(pool);
    }
    for isa in Level::present().filter(|l| !named.iter().any(|n| n.starts_with("avx")) || want(l.name())) {
        let options = CpuOptions { threads, isa: Some(isa), precision: Precision::Fast, repack: true };
        let cpu = Cpu::new(options).expect("backend");
        println!("-- {}, {} threads", isa.name(), cpu.pool().threads());
        let bandwidth = if want("read") || want("gemv") { read_bandwidth(cpu.pool()).expect("memory") } else { 1.0 };
        println!("read                                {:8.1} GB/s", bandwidth / 1e9);
        let packed = [
            format::Q4_0,
            format::Q5_0,
            format::Q8_0,
            format::Q4_K,
            format::Q5_K,
            format::Q6_K,
            format::BF16,
            format::F16,
        ];
        if want("gemv") {
            for f in packed {
                gemv(&cpu, f, 8960, 1536, bandwidth);
            }
            gemv(&cpu, format::Q4_K, 1536, 8960, bandwidth);
        }
        if want("gemm") {
            for f in packed {
                gemm(&cpu, f, 8960, 1536, 512);
            }
            gemm(&cpu, format::Q4_K, 1536, 8960, 512);
            gemm(&cpu, format::Q4_K, 8960, 1536, 8);
        }
        if want("ffn") {
            for f in packed {
                ffn(&cpu, f, 1536, 8960, 256);
            }
            ffn(&cpu, format::Q4_K, 1536, 8960, 8);
        }
        if want("attend") {
            for (heads, kv_heads) in [(12, 2), (28, 4), (32, 8), (32, 32)] {
                for (rows, depth) in [(1, 512), (1, 4096), (1, 16384), (4, 4096), (512, 0), (512, 3584)] {
                    CACHES.iter().for_each(|&dtype| attend(&cpu, [heads, kv_heads, 128], rows, depth, dtype));
                }
            }
        }
        if want("latent") {
            for dtype in CACHES {
                for (rows, depth) in [(1, 512), (1, 4096), (1, 16384), (4, 4096)] {
                    attend_latent(&cpu, 16, LatentForm::Absorbed, rows, depth, dtype);
                }
                attend_latent(&cpu, 128, LatentForm::Absorbed, 1, 4096, dtype);
                for (rows, depth) in [(512, 0), (512, 3584)] {
                    attend_latent(&cpu, 16, LatentForm::Plain, rows, depth, dtype);
                }
            }
        }
    }
}
