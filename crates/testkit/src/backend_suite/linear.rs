//! Products with weights in every format: one matrix, several at once, and one of many experts per row.

use fathom_core::rng::Rng;
use fathom_core::{Backend, Experts, FormatId, Proj, Result, Routing, Tensor, Weight, format};

use super::Suite;
use super::route::{forced, plain};
use super::rows::matrix;
use crate::random::{normals, weight, with_block_scales};

/// Row lengths worth trying: one block, some, an odd number of them, and a long row.
pub(super) fn widths(f: FormatId) -> Vec<usize> {
    match f.get().block_elems() {
        1 => vec![1, 7, 33, 64, 100, 257, 1024],
        e => vec![e, 3 * e, 4 * e, 1024usize.next_multiple_of(e) + e],
    }
}

/// Small model and hidden widths that are whole blocks of a format.
pub(super) fn dims(f: FormatId) -> (usize, usize) {
    match f.get().block_elems() {
        e if e <= 32 => (64, 96),
        e => (e, 2 * e),
    }
}

pub(super) fn bare(w: &fathom_core::Resident) -> Proj<'_> {
    Proj { weight: w, bias: None }
}

/// Every format, those that take block scales also with them, sliced to start inside a block.
pub(super) fn weights(rng: &mut Rng, rows: usize, blocks: usize) -> Vec<(String, Weight)> {
    let mut all = Vec::new();
    for f in FormatId::all() {
        let e = f.get().block_elems();
        let cols = if e == 1 { blocks * 33 } else { blocks * e };
        all.push((f.to_string(), weight(rng, f, rows, cols)));
        if e == 1 && f.get().block_bytes() == 1 {
            for scales in FormatId::all().filter(|s| ["F32", "BF16", "UE8M0"].contains(&s.name())) {
                let w = weight(rng, f, 100 + rows, 300);
                let w = with_block_scales(rng, w, scales);
                all.push((format!("{f} with {scales} scales"), w.slice_rows(100..100 + rows)));
            }
        }
    }
    all
}

pub(super) fn cases(s: &mut Suite) {
    let mut rng = Rng::new(2, 0);
    let bound = s.tolerance.linear;
    for f in FormatId::all() {
        for (i, cols) in widths(f).into_iter().enumerate() {
            for (rows, tokens) in [(1, 9), (3, 2), (17, 5), (64, 1), (65, 33), (128, 8)] {
                // The full product of shapes only where it is cheap.
                if i >= 3 && rows * tokens > 1000 {
                    continue;
                }
                // A single output may be near zero by chance, and any error large beside it: many of them in turn.
                let turns = if rows * tokens == 1 { 24 } else { 1 };
                let (w, x) = (weight(&mut rng, f, rows, cols), normals(&mut rng, turns * tokens * cols));
                s.like_reference(format!("linear {f} [{rows}, {cols}] × {tokens}"), bound, &|b| {
                    let w = b.upload(&w)?;
                    let mut turns = x
                        .chunks_exact(tokens * cols)
                        .map(|x| Ok(b.linear(&matrix(b, tokens, cols, x)?, &[bare(&w)])?.remove(0)));
                    let first = turns.next().expect("invariant: there is a turn")?;
                    Ok(vec![turns.try_fold(first, |all, y| b.concat_cols(&all, &y?))?])
                });
            }
            let (w, x) = (weight(&mut rng, f, 65, cols), normals(&mut rng, 5 * cols));
            s.like_reference(format!("logits and steady {f} [65, {cols}] × 5"), bound, &|b| {
                let (w, x) = (b.upload(&w)?, matrix(b, 5, cols, &x)?);
                Ok(vec![b.logits(&x, &w)?, b.linear_steady(&x, &[bare(&w)])?.remove(0)])
            });
        }
    }
    for (name, w) in weights(&mut rng, 70, 2) {
        let x = normals(&mut rng, 3 * w.cols);
        s.like_reference(format!("linear {name}, a slice"), bound, &|b| {
            let part = b.upload(&w.slice_rows(5..69))?;
            Ok(b.linear(&matrix(b, 3, w.cols, &x)?, &[bare(&part)])?.to_vec())
        });
    }
    several(s, &mut rng);
    ffn(s, &mut rng);
    experts(s, &mut rng);
}

/// Four projections of one input, of different formats and sizes, with and without bias.
fn several(s: &mut Suite, rng: &mut Rng) {
    let formats: Vec<FormatId> = FormatId::all().collect();
    for (i, first) in formats.iter().enumerate() {
        let ws: Vec<Weight> = [10, 1, 33, 64]
            .iter()
            .enumerate()
            .map(|(j, &r)| weight(rng, formats[(i + j) % formats.len()], r, 512))
            .collect();
        let bias = weight(rng, format::F32, 1, 33);
        for tokens in [1, 6] {
            let x = normals(rng, tokens * 512);
            s.like_reference(format!("four projections from {first} × {tokens}"), s.tolerance.linear, &|b| {
                let r = ws.iter().map(|w| b.upload(w)).collect::<Result<Vec<_>>>()?;
                let bias = b.upload(&bias)?;
                let mut projs: Vec<Proj<'_>> = r.iter().map(bare).collect();
                projs[2].bias = Some(&bias);
                Ok(b.linear(&matrix(b, tokens, 512, &x)?, &projs)?.to_vec())
            });
        }
    }
}

fn ffn(s: &mut Suite, rng: &mut Rng) {
    for f in FormatId::all() {
        let (dim, hidden) = dims(f);
        let (gate, up) = (weight(rng, f, hidden, dim), weight(rng, f, hidden, dim));
        let down = weight(rng, f, dim, hidden);
        for tokens in [1, 9] {
            let x: Vec<f32> = normals(rng, tokens * dim).iter().map(|v| v / 16.0).collect();
            s.like_reference(format!("ffn {f} × {tokens}"), 8.0 * s.tolerance.linear, &|b| {
                let (gate, up, down) = (b.upload(&gate)?, b.upload(&up)?, b.upload(&down)?);
                Ok(vec![b.ffn(&matrix(b, tokens, dim, &x)?, bare(&gate), bare(&up), bare(&down))?])
            });
        }
    }
}

/// Experts as GGUF and as Hugging Face store them.
fn both_ways(rng: &mut Rng, f: FormatId, n: usize, rows: usize, cols: usize) -> [Experts; 2] {
    let all = weight(rng, f, n * rows, cols);
    let each = (0..n).map(|e| all.slice_rows(e * rows..(e + 1) * rows)).collect();
    [Experts::Stacked { weight: all, experts: n }, Experts::Each(each)]
}

/// A routing to the given experts with unequal weights.
pub(super) fn routing(b: &dyn Backend, experts: usize, top_k: usize, chosen: &[u32]) -> Result<Routing> {
    let tokens = chosen.len() / top_k;
    let logits: Vec<f32> = (0..tokens * experts).map(|i| ((i * 7) % 11) as f32 / 4.0).collect();
    b.route(&matrix(b, tokens, experts, &logits)?, None, &plain(experts, top_k), Some(chosen))
}

fn experts(s: &mut Suite, rng: &mut Rng) {
    let n = 6;
    for f in FormatId::all() {
        let (dim, hidden) = dims(f);
        let gate = both_ways(rng, f, n, hidden, dim);
        let up = both_ways(rng, f, n, hidden, dim);
        let down = both_ways(rng, f, n, dim, hidden);
        for (tokens, top_k) in [(1, 1), (1, 3), (2, 6), (7, 2), (16, 3)] {
            let chosen = forced(rng, tokens, n as u32, top_k);
            let x: Vec<f32> = normals(rng, tokens * dim).iter().map(|v| v / 16.0).collect();
            let y = normals(rng, tokens * top_k * hidden);
            let plus = normals(rng, tokens * dim);
            for how in 0..2 {
                let name = format!("{} {f}, {tokens} rows to {top_k}", ["stacked", "single"][how]);
                s.like_reference(format!("linear_experts {name}"), s.tolerance.linear, &|b| {
                    let routing = routing(b, n, top_k, &chosen)?;
                    let (gate, up) = (b.upload_experts(&gate[how])?, b.upload_experts(&up[how])?);
                    let down = b.upload_experts(&down[how])?;
                    let mut out: Vec<Tensor> =
                        b.linear_experts(&matrix(b, tokens, dim, &x)?, &routing, &[&gate, &up])?.to_vec();
                    let y = matrix(b, tokens * top_k, hidden, &y)?;
                    out.extend(b.linear_experts(&y, &routing, &[&down])?);
                    out.push(b.combine_experts(&out[2], &routing, None)?);
                    out.push(b.combine_experts(&out[2], &routing, Some(matrix(b, tokens, dim, &plus)?))?);
                    Ok(out)
                });
                s.like_reference(format!("moe {name}"), 8.0 * s.tolerance.linear, &|b| {
                    let routing = routing(b, n, top_k, &chosen)?;
                    let (gate, up) = (b.upload_experts(&gate[how])?, b.upload_experts(&up[how])?);
                    let down = b.upload_experts(&down[how])?;
                    let x = matrix(b, tokens, dim, &x)?;
                    let plus = matrix(b, tokens, dim, &plus)?;
                    Ok(vec![
                        b.moe(&x, &routing, &gate, &up, &down, None)?,
                        b.moe(&x, &routing, &gate, &up, &down, Some(plus))?,
                    ])
                });
            }
        }
    }
}
