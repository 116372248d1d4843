//! Norms, rotation, activation, addition, copies, and the memory law: what a caller still holds is not overwritten.

use fathom_core::rng::Rng;
use fathom_core::{Backend, DType, FormatId, KvStream, RopeFreqs, RopeLayout, Routing, Shape, Tensor, format};

use super::Suite;
use crate::random::{norm, normals, weight};

/// Frequencies as a model has them, `θ^(−2i/d)`.
pub(super) fn freqs(dim: usize, factor: f32) -> RopeFreqs {
    RopeFreqs { inv_freq: (0..dim / 2).map(|i| 1e4f32.powf(-2.0 * i as f32 / dim as f32)).collect(), factor }
}

pub(super) fn matrix(b: &dyn Backend, rows: usize, cols: usize, data: &[f32]) -> fathom_core::Result<Tensor> {
    b.tensor(Shape::matrix(rows, cols), data)
}

pub(super) fn cases(s: &mut Suite) {
    let mut rng = Rng::new(1, 0);
    let bound = s.tolerance.rows;
    for (rows, cols) in [(1, 1), (1, 64), (3, 7), (2, 129), (17, 256), (5, 1000)] {
        let (x, y) = (normals(&mut rng, rows * cols), normals(&mut rng, rows * cols));
        let w = norm(&mut rng, cols);
        let shape = format!("[{rows}, {cols}]");
        for scale in [1.0, 1e-4, 1e4] {
            let scaled: Vec<f32> = x.iter().map(|v| v * scale).collect();
            s.like_reference(format!("rms_norm {shape} × {scale}"), bound, &|b| {
                Ok(vec![b.rms_norm(&matrix(b, rows, cols, &scaled)?, &b.upload(&w)?, 1e-6)?])
            });
        }
        s.like_reference(format!("swiglu {shape}"), bound, &|b| {
            Ok(vec![b.swiglu(matrix(b, rows, cols, &x)?, &matrix(b, rows, cols, &y)?)?])
        });
        s.like_reference(format!("add {shape}"), 0.0, &|b| {
            Ok(vec![b.add(matrix(b, rows, cols, &x)?, &matrix(b, rows, cols, &y)?)?])
        });
        s.like_reference(format!("slice, concat, select {shape}"), 0.0, &|b| {
            let (x, y) = (matrix(b, rows, cols, &x)?, matrix(b, rows, cols, &y)?);
            let (from, to) = (cols / 3, cols / 3 + cols.div_ceil(2));
            let picked: Vec<u32> = (0..rows as u32).rev().chain([0]).collect();
            Ok(vec![b.slice_cols(&x, from, to)?, b.concat_cols(&x, &y)?, b.select_rows(&y, &picked)?])
        });
    }
    let big: Vec<f32> = vec![-120.0, -90.0, -30.0, -0.0, 0.0, 30.0, 90.0, 120.0];
    s.like_reference("swiglu at the ends of exp's range", bound, &|b| {
        Ok(vec![b.swiglu(matrix(b, 1, 8, &big)?, &matrix(b, 1, 8, &[1.0; 8])?)?])
    });
    s.like_reference("no rows at all", 0.0, &|b| {
        let x = matrix(b, 3, 4, &[1.0; 12])?;
        Ok(vec![b.select_rows(&x, &[])?])
    });
    embed(s, &mut rng);
    rope(s, &mut rng);
    memory(s, &mut rng);
    errors(s, &mut rng);
}

fn embed(s: &mut Suite, rng: &mut Rng) {
    for f in FormatId::all() {
        let cols = 3 * f.get().block_elems();
        let w = weight(rng, f, 11, cols);
        s.like_reference(format!("embed {f}"), s.tolerance.rows, &|b| {
            Ok(vec![b.embed(&b.upload(&w)?, &[10, 0, 3, 3])?])
        });
    }
}

fn rope(s: &mut Suite, rng: &mut Rng) {
    let positions = [0, 1, 63, 64, 4095, 4096, 100_000, 163_839];
    let n = positions.len();
    for (heads, head_dim, first, dim) in [
        (1, 2, 0, 2),
        (3, 8, 0, 8),
        (4, 24, 16, 8),
        (2, 128, 0, 128),
        (5, 192, 128, 64),
        (1, 10, 3, 6),
        (16, 80, 0, 40),
    ] {
        let x = normals(rng, n * heads * head_dim);
        let f = freqs(dim, if dim == 8 { 1.2 } else { 1.0 });
        for layout in [RopeLayout::Interleaved, RopeLayout::Halves] {
            s.like_reference(
                format!("rope {layout:?} {heads} heads of {head_dim}, {dim} from {first}"),
                s.tolerance.rows,
                &|b| {
                    let table = b.rope_table(&positions, &f)?;
                    let x = matrix(b, n, heads * head_dim, &x)?;
                    Ok(vec![b.rope(x, &table, heads, first, layout)?, table])
                },
            );
        }
    }
}

fn memory(s: &mut Suite, rng: &mut Rng) {
    let (x, y) = (normals(rng, 6 * 8), normals(rng, 6 * 8));
    let held = |b: &dyn Backend, what: usize| {
        let (x, y) = (matrix(b, 6, 8, &x)?, matrix(b, 6, 8, &y)?);
        let kept = x.clone();
        let out = match what {
            0 => b.add(x, &y)?,
            1 => b.swiglu(x, &y)?,
            2 => b.rope(x, &b.rope_table(&[1, 2, 3, 4, 5, 6], &freqs(8, 1.0))?, 1, 0, RopeLayout::Halves)?,
            _ => {
                let experts = b.route(&matrix(b, 6, 4, &[0.5; 24])?, None, &super::route::plain(4, 1), None)?;
                b.combine_experts(&y, &experts, Some(x))?
            }
        };
        Ok((kept, out))
    };
    for (what, op) in ["add", "swiglu", "rope", "combine_experts"].into_iter().enumerate() {
        s.like_reference(format!("{op} leaves alone what its caller still holds"), s.tolerance.rows, &|b| {
            let (kept, out) = held(b, what)?;
            Ok(vec![kept, out])
        });
        s.same_bits(format!("{op} in place or not"), &|b| Ok(vec![held(b, what)?.1]), &|b| {
            let (kept, _) = held(b, what)?;
            drop(kept);
            Ok(vec![held(b, what)?.1])
        });
    }
}

fn errors(s: &mut Suite, rng: &mut Rng) {
    let w = weight(rng, format::F32, 4, 8);
    let x = normals(rng, 24);
    let three = |b: &dyn Backend| matrix(b, 3, 8, &x);
    s.refuses("linear with the wrong width", &["linear", "weight"], &|b| {
        let w = b.upload(&w)?;
        Ok(b.linear(&matrix(b, 4, 6, &x)?, &[fathom_core::Proj { weight: &w, bias: None }])?.to_vec())
    });
    s.refuses("a bias of the wrong length", &["linear", "bias"], &|b| {
        let w = b.upload(&w)?;
        Ok(b.linear(&three(b)?, &[fathom_core::Proj { weight: &w, bias: Some(&w) }])?.to_vec())
    });
    s.refuses("a token outside the table", &["embed", "ids"], &|b| Ok(vec![b.embed(&b.upload(&w)?, &[1, 4])?]));
    s.refuses("a norm of the wrong length", &["rms_norm", "weight"], &|b| {
        Ok(vec![b.rms_norm(&matrix(b, 6, 4, &x)?, &b.upload(&w.slice_rows(0..1))?, 1e-6)?])
    });
    s.refuses("adding another shape", &["add", "y"], &|b| Ok(vec![b.add(three(b)?, &matrix(b, 4, 6, &x)?)?]));
    s.refuses("a gate of another shape", &["swiglu", "up"], &|b| Ok(vec![b.swiglu(three(b)?, &matrix(b, 4, 6, &x)?)?]));
    s.refuses("rotating past the head's end", &["rope", "table"], &|b| {
        Ok(vec![b.rope(three(b)?, &b.rope_table(&[0, 1, 2], &freqs(4, 1.0))?, 2, 2, RopeLayout::Halves)?])
    });
    s.refuses("a slot outside the cache", &["kv_write", "slots"], &|b| {
        let mut cache = b.kv_alloc(4, KvStream::Latents { width: 8 }, DType::F32)?;
        b.kv_write(&mut cache, &three(b)?, &[0, 1, 4])?;
        Ok(vec![])
    });
    s.refuses("a cache of integers", &["kv_alloc", "q8_0", "u32"], &|b| {
        Ok(vec![b.kv_alloc(4, KvStream::Latents { width: 8 }, DType::U32)?.data])
    });
    s.refuses("a row that is not there", &["select_rows", "rows"], &|b| Ok(vec![b.select_rows(&three(b)?, &[3])?]));
    s.refuses("an expert that is not there", &["route", "forced"], &|b| {
        let r: Routing = b.route(&three(b)?, None, &super::route::plain(8, 1), Some(&[1, 8, 2]))?;
        Ok(vec![r.experts])
    });
    let elsewhere = fathom_core::null::Null::new();
    let name = s.subject.device();
    s.refuses("a foreign tensor", &["add", "null", name], &|b| {
        Ok(vec![b.add(three(b)?, &matrix(&elsewhere, 3, 8, &x)?)?])
    });
    s.refuses("a foreign weight", &["linear", "null", name], &|b| {
        let w = elsewhere.upload(&w)?;
        Ok(b.linear(&three(b)?, &[fathom_core::Proj { weight: &w, bias: None }])?.to_vec())
    });
}
