//! Choosing experts.

use super::attend::softmax;
use crate::{RouteSpec, Score};

/// Scores of all experts of one token: softmax (V2 paper, eq. 22) or sigmoid (V3 paper, eq. 15).
pub fn scores(logits: &[f64], score: Score) -> Vec<f64> {
    let mut s = logits.to_vec();
    match score {
        Score::Softmax => softmax(&mut s),
        Score::Sigmoid => s.iter_mut().for_each(|v| *v = 1.0 / (1.0 + (-*v).exp())),
    }
    s
}

/// Indices of the `n` largest values, largest first; of equal ones the lower index first.
fn best(values: &[f64], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a])); // stable: keeps equal ones in index order
    order.truncate(n);
    order
}

/// The experts of one token, best first.
///
/// The choice is by `score + bias`. With groups, only experts of the `groups_kept` best groups are eligible; a group's worth is the
/// sum of its `group_top` best experts (V2 paper, section 2.2.2: the best one; V3's `inference/model.py`: the best two).
pub fn choose(scores: &[f64], bias: Option<&[f64]>, spec: &RouteSpec) -> Vec<u32> {
    let mut s: Vec<f64> = scores.iter().enumerate().map(|(e, s)| s + bias.map_or(0.0, |b| b[e])).collect();
    if spec.groups > 1 {
        let size = spec.experts / spec.groups;
        let worth = |group: &[f64]| best(group, spec.group_top).iter().map(|&e| group[e]).sum();
        let worths: Vec<f64> = s.chunks_exact(size).map(worth).collect();
        let kept = best(&worths, spec.groups_kept);
        for (g, group) in s.chunks_exact_mut(size).enumerate() {
            if !kept.contains(&g) {
                group.fill(f64::NEG_INFINITY);
            }
        }
    }
    best(&s, spec.top_k).into_iter().map(|e| e as u32).collect()
}

/// Weights of the chosen experts, from scores without bias: over their sum if the model normalises
/// (V3 paper, eq. 13; the 1e-20 is the reference code's), times the scale.
pub fn weights(scores: &[f64], chosen: &[u32], spec: &RouteSpec) -> Vec<f64> {
    let picked: Vec<f64> = chosen.iter().map(|&e| scores[e as usize]).collect();
    let sum = if spec.normalise { picked.iter().sum::<f64>() + 1e-20 } else { 1.0 };
    picked.iter().map(|s| s / sum * f64::from(spec.scale)).collect()
}
