//! Batch invariance, bit for bit: a row's result does not depend on the rows beside it.

use fathom_core::rng::Rng;
use fathom_core::{Backend, DType, Experts, FormatId, KvView, LatentForm, Result, RopeLayout, Spans, Tensor};

use super::Suite;
use super::attend::{Heads, Scene, gqa, mla};
use super::linear::{bare, dims, routing, weights};
use super::route::{forced, plain};
use super::rows::{freqs, matrix};
use crate::random::{norm, normals, weight};

/// Ways to cut `n` rows into consecutive calls.
fn cuts(n: usize) -> Vec<Vec<usize>> {
    vec![vec![1; n], vec![n / 2, n - n / 2], vec![1, n - 1], vec![n - 1, 1]]
}

/// `call(from, to)` computes rows `from..to`; any cutting gives the bits of the whole.
fn cut_rows(s: &mut Suite, name: &str, n: usize, call: &dyn Fn(&dyn Backend, usize, usize) -> Result<Tensor>) {
    for cut in cuts(n) {
        s.same_bits(format!("{name}, whole = cut into {cut:?}"), &|b| Ok(vec![call(b, 0, n)?]), &|b| {
            let mut from = 0;
            cut.iter()
                .map(|&rows| {
                    from += rows;
                    call(b, from - rows, from)
                })
                .collect()
        });
    }
}

pub(super) fn cases(s: &mut Suite) {
    let mut rng = Rng::new(5, 0);
    let n = 21;
    for (name, w) in weights(&mut rng, 67, 3) {
        let x = normals(&mut rng, n * w.cols);
        cut_rows(s, &format!("linear {name}"), n, &|b, from, to| {
            let w = b.upload(&w)?;
            let x = matrix(b, to - from, w.cols, &x[from * w.cols..to * w.cols])?;
            let y = b.concat_cols(&b.linear(&x, &[bare(&w)])?[0], &b.logits(&x, &w)?)?;
            b.concat_cols(&y, &b.linear_steady(&x, &[bare(&w)])?[0])
        });
    }
    blocks(s, &mut rng, n);
    rowwise(s, &mut rng, n);
    attention(s, &mut rng);
}

/// The feed-forward blocks, which a backend may fuse.
fn blocks(s: &mut Suite, rng: &mut Rng, n: usize) {
    for f in FormatId::all() {
        let (dim, hidden) = dims(f);
        let shapes = [(hidden, dim), (hidden, dim), (dim, hidden)];
        let w: Vec<_> = shapes.iter().map(|&(r, c)| weight(rng, f, r, c)).collect();
        let x = normals(rng, n * dim);
        cut_rows(s, &format!("ffn {f}"), n, &|b, from, to| {
            let w = w.iter().map(|w| b.upload(w)).collect::<Result<Vec<_>>>()?;
            b.ffn(&matrix(b, to - from, dim, &x[from * dim..to * dim])?, bare(&w[0]), bare(&w[1]), bare(&w[2]))
        });
        let (experts, top_k) = (5, 2);
        let stacked: Vec<Experts> =
            shapes.iter().map(|&(r, c)| Experts::Stacked { weight: weight(rng, f, experts * r, c), experts }).collect();
        let chosen = forced(rng, n, experts as u32, top_k);
        let logits: Vec<f32> = normals(rng, n * experts);
        cut_rows(s, &format!("moe {f}"), n, &|b, from, to| {
            let w = stacked.iter().map(|w| b.upload_experts(w)).collect::<Result<Vec<_>>>()?;
            let logits = matrix(b, to - from, experts, &logits[from * experts..to * experts])?;
            let chosen = &chosen[from * top_k..to * top_k];
            let routing = b.route(&logits, None, &plain(experts, top_k), Some(chosen))?;
            let x = matrix(b, to - from, dim, &x[from * dim..to * dim])?;
            b.moe(&x, &routing, &w[0], &w[1], &w[2], None)
        });
        let crowded = vec![3; n];
        s.same_bits(
            format!("moe {f}, one expert for all = for one"),
            &|b| {
                let w = b.upload_experts(&stacked[0])?;
                let r = routing(b, experts, 1, &crowded)?;
                let y = b.linear_experts(&matrix(b, n, dim, &x)?, &r, &[&w])?;
                Ok(vec![b.select_rows(&y[0], &[n as u32 - 1])?])
            },
            &|b| {
                let w = b.upload_experts(&stacked[0])?;
                let r = routing(b, experts, 1, &crowded[..1])?;
                Ok(b.linear_experts(&matrix(b, 1, dim, &x[(n - 1) * dim..])?, &r, &[&w])?.to_vec())
            },
        );
    }
}

fn rowwise(s: &mut Suite, rng: &mut Rng, n: usize) {
    let (heads, dim) = (3, 24);
    let cols = heads * dim;
    let (x, y, w) = (normals(rng, n * cols), normals(rng, n * cols), norm(rng, cols));
    let part = |b: &dyn Backend, data: &[f32], from: usize, to: usize| {
        matrix(b, to - from, cols, &data[from * cols..to * cols])
    };
    cut_rows(s, "rms_norm", n, &|b, from, to| b.rms_norm(&part(b, &x, from, to)?, &b.upload(&w)?, 1e-6));
    cut_rows(s, "swiglu", n, &|b, from, to| b.swiglu(part(b, &x, from, to)?, &part(b, &y, from, to)?));
    cut_rows(s, "rope", n, &|b, from, to| {
        let positions: Vec<u32> = (from..to).map(|p| 100 + 37 * p as u32).collect();
        let table = b.rope_table(&positions, &freqs(8, 1.0))?;
        b.rope(part(b, &x, from, to)?, &table, heads, 16, RopeLayout::Interleaved)
    });
    cut_rows(s, "route", n, &|b, from, to| Ok(b.route(&part(b, &x, from, to)?, None, &plain(cols, 4), None)?.weights));
}

/// Chunked = whole, beside others = alone, whatever blocks the cache uses.
fn attention(s: &mut Suite, rng: &mut Rng) {
    let spec = gqa(6, 2, 32, 32);
    let latent = mla(3, 64, 32, 16, 32);
    let width = latent.rank + latent.rope;
    let q_width = [spec.heads * spec.head_dim, latent.heads * (latent.nope + latent.rope)];
    let f = FormatId::all().next().expect("invariant: there is a format");
    let projections = Heads::fused(rng, f, &latent);
    let (start, n) = (200, 75);
    let held = start + n;
    for dtype in [DType::F32, DType::F16, DType::Q8_0] {
        for form in [None, Some(LatentForm::Plain), Some(LatentForm::Absorbed)] {
            let q_width = q_width[form.is_some() as usize];
            let q = normals(rng, n * q_width);
            let streams = [normals(rng, held * 64), normals(rng, held * 64), normals(rng, held * width)];
            let strangers = [normals(rng, 400 * 64), normals(rng, 400 * 64), normals(rng, 400 * width)];
            let stranger_q = normals(rng, 2 * q_width);
            let run = |b: &dyn Backend, scene: &Scene, q: &[f32], mine: usize| -> Result<Tensor> {
                let q = matrix(b, scene.rows, q_width, q)?;
                let data = |i: usize| -> Vec<Vec<f32>> {
                    (0..scene.held.len())
                        .map(|j| if j == mine { streams[i].clone() } else { strangers[i].clone() })
                        .collect()
                };
                let out = match form {
                    None => {
                        let k = scene.fill(b, spec.keys(), dtype, &data(0))?;
                        let v = scene.fill(b, spec.values(), dtype, &data(1))?;
                        b.attend(&q, KvView::Paged { k: &k, v: &v }, &scene.view(), &spec)?
                    }
                    Some(_) => {
                        let cache = scene.fill(b, latent.latents(), dtype, &data(2))?;
                        let spans: Spans<'_> = scene.view();
                        projections.attend(b, &q, &cache, &spans, &latent)?
                    }
                };
                let span = scene.spans[mine];
                let rows: Vec<u32> = (span.row as u32..(span.row + span.rows) as u32).collect();
                b.select_rows(&out, &rows)
            };
            let form_or_any = form.unwrap_or(LatentForm::Plain);
            let name = format!("{} {}", form.map_or("attend".into(), |f| format!("latent {f:?}")), dtype.name());
            cut_rows(s, &name, n, &|b, from, to| {
                // A new deal of blocks for every call.
                let mut deal = Rng::new(from as u64, to as u64);
                let scene = Scene::new(&mut deal, 16, &[(start + from, to - from, held)], form_or_any);
                run(b, &scene, &q[from * q_width..to * q_width], 0)
            });
            let alone = Scene::new(rng, 64, &[(start, n, held)], form_or_any);
            let beside = Scene::new(rng, 64, &[(399, 1, 400), (start, n, held), (5, 1, 400)], form_or_any);
            let mixed = [&stranger_q[..q_width], &q, &stranger_q[q_width..]].concat();
            s.same_bits(format!("{name}, beside strangers = alone"), &|b| Ok(vec![run(b, &alone, &q, 0)?]), &|b| {
                Ok(vec![run(b, &beside, &mixed, 1)?])
            });
        }
    }
}
