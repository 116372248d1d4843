//! Operations on pictures `[pictures, height, width, channels]`: convolution and group normalisation.

use super::decoded;
use crate::{ConvSpec, GroupNormSpec, Shape, Weight};

/// `y[p, i, j, o] = bias[o] + Σ_{u, v, c} w[o, c, u, v] · x[p, stride·i + u − pad, stride·j + v − pad, c]`, where x is magnified and
/// zero outside (Dumoulin & Visin 2016).
pub fn conv2d(x: &[f64], shape: Shape, w: &Weight, bias: Option<&[f64]>, spec: &ConvSpec) -> Vec<f64> {
    let [n, height, width, channels] = shape.dims().try_into().expect("invariant: pictures have four dimensions");
    let (h, wide, k) = (spec.out(height), spec.out(width), spec.kernel);
    let kernels: Vec<Vec<f64>> = (0..w.rows).map(|o| decoded(w, o)).collect();
    let source = |at: usize, side: usize| {
        let inside = at.checked_sub(spec.pad.0)?;
        (inside < side * spec.magnify).then_some(inside / spec.magnify)
    };
    let mut out = Vec::with_capacity(n * h * wide * w.rows);
    for p in 0..n {
        for (i, j) in (0..h).flat_map(|i| (0..wide).map(move |j| (i, j))) {
            for (o, kernel) in kernels.iter().enumerate() {
                let mut sum = bias.map_or(0.0, |b| b[o]);
                for (u, v) in (0..k).flat_map(|u| (0..k).map(move |v| (u, v))) {
                    let (Some(y), Some(z)) = (source(spec.stride * i + u, height), source(spec.stride * j + v, width))
                    else {
                        continue;
                    };
                    let pixel = &x[((p * height + y) * width + z) * channels..][..channels];
                    sum += pixel.iter().zip(kernel[u * k + v..].iter().step_by(k * k)).map(|(x, w)| x * w).sum::<f64>();
                }
                out.push(sum);
            }
        }
    }
    out
}

/// Normalises one picture `[pixels, channels]` in place: mean and variance over all pixels and the channels of a group (Wu & He
/// 2018, eq. 7), then weight and bias per channel, then `silu` if asked for.
pub fn group_norm(x: &mut [f64], weight: &[f64], bias: &[f64], spec: &GroupNormSpec) {
    let channels = weight.len();
    let size = channels / spec.groups;
    for group in (0..channels).step_by(size) {
        let members = |x: &[f64]| -> Vec<f64> {
            x.chunks_exact(channels).flat_map(|pixel| pixel[group..group + size].to_vec()).collect()
        };
        let all = members(x);
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let variance = all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / all.len() as f64;
        let r = 1.0 / (variance + f64::from(spec.eps)).sqrt();
        for pixel in x.chunks_exact_mut(channels) {
            for c in group..group + size {
                let y = (pixel[c] - mean) * r * weight[c] + bias[c];
                pixel[c] = if spec.silu { y / (1.0 + (-y).exp()) } else { y };
            }
        }
    }
}
