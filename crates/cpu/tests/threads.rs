//! What must not change a bit: the number of threads, whether weights are repacked, and numbers in other rows that are not finite.

use fathom_core::rng::Rng;
use fathom_core::{
    AttendSpec, Backend, DType, Experts, FormatId, HeadProj, KvStream, KvView, LatentForm, LatentSpec, Mask, Precision,
    Proj, Result, RouteSpec, Score, Shape, Span, Spans, Tensor, format,
};
use fathom_cpu::{Cpu, CpuOptions, Level};
use fathom_testkit::random::{normals, weight};

fn bits(b: &dyn Backend, t: &Tensor) -> Result<Vec<u32>> {
    let mut out = vec![0.0; t.shape.numel()];
    b.read(t, &mut out)?;
    Ok(out.into_iter().map(f32::to_bits).collect())
}

/// Every operation that shares work among threads, on shapes that make many tasks.
fn everything(b: &dyn Backend, dtype: DType) -> Result<Vec<u32>> {
    let mut rng = Rng::new(3, 0);
    let mut all = Vec::new();
    let matrix = |rng: &mut Rng, rows, cols| b.tensor(Shape::matrix(rows, cols), &normals(rng, rows * cols));
    for f in FormatId::all().filter(|f| f.name() != "UE8M0") {
        let w = b.upload(&weight(&mut rng, f, 300, 512))?;
        for tokens in [1, 11] {
            let x = matrix(&mut rng, tokens, 512)?;
            let y = b.linear(&x, &[Proj { weight: &w, bias: None }])?.remove(0);
            all.extend(bits(b, &y)?);
        }
    }
    let experts = |rng: &mut Rng, rows, cols| {
        b.upload_experts(&Experts::Each((0..6).map(|_| weight(rng, format::Q4_K, rows, cols)).collect()))
    };
    let (gate, up, down) = (experts(&mut rng, 512, 256)?, experts(&mut rng, 512, 256)?, experts(&mut rng, 256, 512)?);
    let spec = RouteSpec {
        experts: 6,
        top_k: 2,
        score: Score::Sigmoid,
        groups: 1,
        groups_kept: 1,
        group_top: 1,
        normalise: true,
        scale: 2.5,
    };
    let (x, logits) = (matrix(&mut rng, 40, 256)?, matrix(&mut rng, 40, 6)?);
    let routing = b.route(&logits, None, &spec, None)?;
    all.extend(bits(b, &b.moe(&x, &routing, &gate, &up, &down, None)?)?);

    let (rows, start, block) = (70, 530, 16);
    let tables: Vec<u32> = (0..40).rev().collect();
    let slots: Vec<u32> = (0..start + rows).map(|p| tables[p / block] * block as u32 + (p % block) as u32).collect();
    let cache = |rng: &mut Rng, stream: KvStream| {
        let (mut c, width) = (b.kv_alloc(40 * block, stream, dtype)?, stream.width());
        b.kv_write(
            &mut c,
            &b.tensor(Shape::matrix(start + rows, width), &normals(rng, (start + rows) * width))?,
            &slots,
        )?;
        Ok::<_, fathom_core::Error>(c)
    };
    let spec = AttendSpec { heads: 6, kv_heads: 2, head_dim: 48, v_dim: 40, scale: 0.1, mask: Mask::Causal };
    let (k, v) = (cache(&mut rng, spec.keys())?, cache(&mut rng, spec.values())?);
    let q = matrix(&mut rng, rows, 6 * 48)?;
    let spans = |form| [Span { row: 0, rows, start, table: 0, form }];
    let paged = KvView::Paged { k: &k, v: &v };
    let plain = spans(LatentForm::Plain);
    all.extend(bits(b, &b.attend(&q, paged, &Spans { spans: &plain, tables: &tables, block }, &spec)?)?);

    let spec = LatentSpec { heads: 9, rank: 64, nope: 32, rope: 16, v_dim: 24, scale: 0.2 };
    let latent = cache(&mut rng, spec.latents())?;
    let w = b.upload(&weight(&mut rng, format::Q8_0, 9 * 56, 64))?;
    let k = HeadProj { weight: &w, first_row: 0, head_stride: 56, head_rows: 32, transposed: false };
    let v = HeadProj { first_row: 32, head_rows: 24, ..k };
    let q = matrix(&mut rng, rows, 9 * 48)?;
    for form in [LatentForm::Plain, LatentForm::Absorbed] {
        let spans = spans(form);
        let spans = Spans { spans: &spans, tables: &tables, block };
        all.extend(bits(b, &b.attend_latent(&q, &latent, k, v, &spans, &spec)?)?);
    }
    Ok(all)
}

#[test]
fn threads_and_repacking_change_no_bit() {
    for isa in Level::present() {
        for (precision, dtype) in [(Precision::Exact, DType::F32), (Precision::Fast, DType::F16)] {
            let run = |threads, repack| {
                let cpu = Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa), precision, repack }).unwrap();
                everything(cpu.as_ref(), dtype).unwrap()
            };
            let one = run(1, true);
            assert!(one.iter().all(|b| f32::from_bits(*b).is_finite()));
            for (threads, repack) in [(2, true), (3, true), (2, false)] {
                assert!(
                    run(threads, repack) == one,
                    "{} {precision:?}: {threads} threads, repack {repack}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn rows_that_are_not_finite_leave_the_others_alone() {
    for level in Level::present() {
        let options = CpuOptions { threads: Some(2), isa: Some(level), precision: Precision::Fast, repack: true };
        let b = Cpu::new(options).unwrap();
        for f in FormatId::all().filter(|f| f.name() != "UE8M0") {
            let (rows, cols) = (32, 256);
            let mut rng = Rng::new(8, 0);
            let w = b.upload(&weight(&mut rng, f, rows, cols)).unwrap();
            let mut x = normals(&mut rng, 5 * cols);
            let products = |x: &[f32]| -> Vec<u32> {
                let x = b.tensor(Shape::matrix(5, cols), x).unwrap();
                let proj = [Proj { weight: &w, bias: None }];
                let ys = [b.linear(&x, &proj).unwrap().remove(0), b.linear_steady(&x, &proj).unwrap().remove(0)];
                let mut all: Vec<u32> = ys.iter().flat_map(|y| bits(&*b, y).unwrap()).collect();
                all.extend(bits(&*b, &b.logits(&x, &w).unwrap()).unwrap());
                all
            };
            let sound = products(&x);
            for (i, broken) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX].into_iter().enumerate() {
                // One in each half of a block.
                [0, 16].iter().for_each(|half| x[2 * cols + 32 * i + half] = broken);
                x[3 * cols..4 * cols].fill(broken);
            }
            let found = products(&x);
            for (i, (a, b)) in sound.iter().zip(&found).enumerate() {
                let row = i / rows % 5;
                assert!(a == b || row == 2 || row == 3, "{f} on {}: row {row} changed", level.name());
            }
        }
    }
}
