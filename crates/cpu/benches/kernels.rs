//! Times of the pool and of the kernels, beside what the machine can do.
//!
//! `cargo bench -p fathom-cpu -- [pool] [read] [gemv] [gemm] [ffn] [attend]`; nothing named runs all. Idle machine only.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use fathom_core::{
    AttendSpec, Backend, Bytes, DType, FormatId, KvView, LatentForm, Mask, Precision, Proj, Shape, Span, Spans, Weight,
    format,
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

fn attend(cpu: &Arc<Cpu>, rows: usize, depth: usize) {
    let spec = AttendSpec { heads: 12, kv_heads: 2, head_dim: 128, v_dim: 128, scale: 0.088, mask: Mask::Causal };
    let slots = (depth + rows).next_multiple_of(64);
    let mut k = cpu.kv_alloc(slots, 256, DType::F16).expect("cache");
    let mut v = cpu.kv_alloc(slots, 256, DType::F16).expect("cache");
    let x = cpu.tensor(Shape::matrix(slots, 256), &numbers(slots * 256)).expect("tensor");
    let all: Vec<u32> = (0..slots as u32).collect();
    cpu.kv_write(&mut k, &x, &all).expect("write");
    cpu.kv_write(&mut v, &x, &all).expect("write");
    let tables: Vec<u32> = (0..slots as u32 / 64).collect();
    let spans = [Span { row: 0, rows, start: depth, table: 0, form: LatentForm::Plain }];
    let spans = Spans { spans: &spans, tables: &tables, block: 64 };
    let q = cpu.tensor(Shape::matrix(rows, 12 * 128), &numbers(rows * 12 * 128)).expect("tensor");
    let t = median(9, || {
        black_box(cpu.attend(&q, KvView::Paged { k: &k, v: &v }, &spans, &spec).expect("attend"));
    });
    let seen: usize = (0..rows).map(|i| depth + i + 1).sum();
    let operations = 4.0 * (seen * 12 * 128) as f64;
    let bytes = ((depth + rows) * 256 * 2 * 2) as f64;
    println!(
        "attend    {rows:4} rows at {depth:6}      {:8.1} us {:7.1} GFLOP/s {:7.1} GB/s of cache",
        t * 1e6,
        operations / t / 1e9,
        bytes / t / 1e9
    );
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
            attend(&cpu, 1, 4096);
            attend(&cpu, 512, 0);
        }
    }
}
