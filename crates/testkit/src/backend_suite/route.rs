//! Routing: both scores, groups, bias, normalising, ties, forced choice.

use fathom_core::rng::Rng;
use fathom_core::{RouteSpec, Score, format};

use super::Suite;
use super::rows::matrix;
use crate::random::{normals, weight};

/// Softmax over all experts, nothing else.
pub(super) fn plain(experts: usize, top_k: usize) -> RouteSpec {
    RouteSpec {
        experts,
        top_k,
        score: Score::Softmax,
        groups: 1,
        groups_kept: 1,
        group_top: 1,
        normalise: false,
        scale: 1.0,
    }
}

/// Distinct random experts for every row.
pub(super) fn forced(rng: &mut Rng, tokens: usize, experts: u32, top_k: usize) -> Vec<u32> {
    let mut all = Vec::new();
    for _ in 0..tokens {
        let mut row: Vec<u32> = Vec::new();
        while row.len() < top_k {
            let e = rng.below(experts);
            if !row.contains(&e) {
                row.push(e);
            }
        }
        all.extend(row);
    }
    all
}

pub(super) fn cases(s: &mut Suite) {
    let mut rng = Rng::new(3, 0);
    let tokens = 19;
    for (experts, top_k, groups, kept, group_top) in
        [(1, 1, 1, 1, 1), (5, 5, 1, 1, 1), (64, 6, 1, 1, 1), (160, 6, 8, 3, 1), (256, 8, 8, 4, 2), (12, 3, 4, 1, 3)]
    {
        for score in [Score::Softmax, Score::Sigmoid] {
            for normalise in [false, true] {
                let spec = RouteSpec {
                    score,
                    groups,
                    groups_kept: kept,
                    group_top,
                    normalise,
                    scale: 2.5,
                    ..plain(experts, top_k)
                };
                let bias = weight(&mut rng, format::F32, 1, experts);
                let picked = forced(&mut rng, tokens, experts as u32, top_k);
                let smooth: Vec<f32> = normals(&mut rng, tokens * experts).iter().map(|v| 2.0 * v).collect();
                // Few distinct values: most choices are decided by the rule for ties.
                let tied: Vec<f32> = (0..tokens * experts).map(|_| rng.below(4) as f32).collect();
                let level = vec![0.25; tokens * experts];
                for (kind, logits) in [("smooth", &smooth), ("tied", &tied), ("level", &level)] {
                    for with in ["", " and bias", " and forced"] {
                        if kind != "smooth" && with == " and bias" {
                            continue; // sums of scores and bias tie by rounding, not by rule
                        }
                        let name = format!(
                            "route {kind}{with} {score:?} {top_k} of {experts} in {kept}/{groups}, normalise {normalise}"
                        );
                        s.like_reference(name, s.tolerance.rows, &|b| {
                            let logits = matrix(b, tokens, experts, logits)?;
                            let bias = b.upload(&bias)?;
                            let r = b.route(
                                &logits,
                                (with == " and bias").then_some(&bias),
                                &spec,
                                (with == " and forced").then_some(&picked),
                            )?;
                            Ok(vec![r.experts, r.weights])
                        });
                    }
                }
            }
        }
    }
    // Biases below −1 push scores under zero: an excluded group must still lose against them.
    let spec =
        RouteSpec { score: Score::Sigmoid, groups: 4, groups_kept: 2, group_top: 2, normalise: true, ..plain(16, 5) };
    let logits = normals(&mut rng, 7 * 16);
    let bias: Vec<f32> = normals(&mut rng, 16).iter().map(|v| v / 8.0 - 3.0).collect();
    let bias = fathom_core::Weight::from_f32(1, 16, &bias);
    s.like_reference("route with scores below zero", s.tolerance.rows, &|b| {
        let r = b.route(&matrix(b, 7, 16, &logits)?, Some(&b.upload(&bias)?), &spec, None)?;
        Ok(vec![r.experts, r.weights])
    });
}
