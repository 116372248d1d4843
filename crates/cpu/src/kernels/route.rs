//! Choosing experts: scores, groups, the best k (V2 paper, section 2.2; V3 paper, section 2.1.2).

use fathom_core::{RouteSpec, Score};

/// Scratch numbers of [`route_row`].
pub(crate) fn route_scratch(spec: &RouteSpec) -> usize {
    2 * spec.experts + spec.groups
}

/// Experts and weights of one token. Among equals the lower index wins; `forced` replaces the choice.
pub(crate) fn route_row(
    logits: &[f32],
    bias: Option<&[f32]>,
    spec: &RouteSpec,
    forced: Option<&[u32]>,
    scratch: &mut [f32],
    experts: &mut [u32],
    weights: &mut [f32],
) {
    let (scores, rest) = scratch.split_at_mut(spec.experts);
    let (choice, worth) = rest.split_at_mut(spec.experts);
    match spec.score {
        Score::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            scores.iter_mut().zip(logits).for_each(|(s, l)| *s = (l - max).exp());
            let sum: f32 = scores.iter().sum();
            scores.iter_mut().for_each(|s| *s /= sum);
        }
        Score::Sigmoid => scores.iter_mut().zip(logits).for_each(|(s, l)| *s = 1.0 / (1.0 + (-l).exp())),
    }
    match forced {
        Some(f) => experts.copy_from_slice(f),
        None => {
            choice.copy_from_slice(scores);
            if let Some(bias) = bias {
                choice.iter_mut().zip(bias).for_each(|(c, b)| *c += b);
            }
            if spec.groups > 1 {
                keep_groups(choice, &mut worth[..spec.groups], spec);
            }
            for e in experts.iter_mut() {
                *e = take_best(choice) as u32;
            }
        }
    }
    for (w, &e) in weights.iter_mut().zip(experts.iter()) {
        *w = scores[e as usize];
    }
    let sum = if spec.normalise { weights.iter().sum::<f32>() + 1e-20 } else { 1.0 };
    weights.iter_mut().for_each(|w| *w = *w / sum * spec.scale);
}

/// Index of the largest value, the first of equals; it is struck out.
fn take_best(values: &mut [f32]) -> usize {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if v.total_cmp(&values[best]).is_gt() {
            best = i;
        }
    }
    values[best] = f32::NEG_INFINITY;
    best
}

/// Strikes out the experts of all but the `groups_kept` best groups; a group is worth the sum of its `group_top` best.
fn keep_groups(choice: &mut [f32], worth: &mut [f32], spec: &RouteSpec) {
    let size = spec.experts / spec.groups;
    for (w, group) in worth.iter_mut().zip(choice.chunks_exact(size)) {
        // The best few without sorting: each is the largest below the last, ties by index.
        let mut last: Option<(f32, usize)> = None;
        *w = 0.0;
        for _ in 0..spec.group_top {
            let behind = |v: f32, i: usize| last.is_none_or(|(lv, li)| v.total_cmp(&lv).is_lt() || (v == lv && i > li));
            let mut best: Option<(f32, usize)> = None;
            for (i, &v) in group.iter().enumerate() {
                if behind(v, i) && best.is_none_or(|(bv, _)| v.total_cmp(&bv).is_gt()) {
                    best = Some((v, i));
                }
            }
            *w += best.map_or(0.0, |b| b.0);
            last = best;
        }
    }
    for _ in spec.groups_kept..spec.groups {
        // The worst group goes, the last of equals first, so that among equals the lower index stays.
        let mut worst = None::<usize>;
        for (g, w) in worth.iter().enumerate() {
            if w.is_nan() {
                continue;
            }
            if worst.is_none_or(|b| w.total_cmp(&worth[b]).is_le()) {
                worst = Some(g);
            }
        }
        let Some(g) = worst else { return };
        worth[g] = f32::NAN;
        choice[g * size..(g + 1) * size].fill(f32::NEG_INFINITY);
    }
}
