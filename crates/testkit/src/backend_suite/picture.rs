//! Operations on pictures: convolution, group and layer normalisation, GELU, rows below each other.

use fathom_core::rng::Rng;
use fathom_core::{Backend, ConvSpec, GroupNormSpec, Proj, Result, Shape, Tensor, format};

use super::Suite;
use super::rows::matrix;
use crate::random::{norm, normals, weight};

pub(super) fn cases(s: &mut Suite) {
    let mut rng = Rng::new(6, 0);
    rows(s, &mut rng);
    convolutions(s, &mut rng);
    norms(s, &mut rng);
    errors(s, &mut rng);
}

fn rows(s: &mut Suite, rng: &mut Rng) {
    let bound = s.tolerance.rows;
    for (rows, cols) in [(1, 1), (3, 7), (2, 129), (17, 256), (5, 1000)] {
        let x: Vec<f32> = normals(rng, rows * cols).iter().map(|v| 3.0 * v + 0.5).collect();
        let (w, bias) = (norm(rng, cols), norm(rng, cols));
        if cols > 1 {
            s.like_reference(format!("layer_norm [{rows}, {cols}]"), bound, &|b| {
                let (w, bias) = (b.upload(&w)?, b.upload(&bias)?);
                Ok(vec![b.layer_norm(&matrix(b, rows, cols, &x)?, &w, &bias, 1e-6)?])
            });
        }
        s.like_reference(format!("gelu [{rows}, {cols}]"), bound, &|b| Ok(vec![b.gelu(matrix(b, rows, cols, &x)?)?]));
        s.like_reference(format!("concat_rows [{rows}, {cols}]"), 0.0, &|b| {
            let (x, y) = (matrix(b, rows, cols, &x)?, matrix(b, 1, cols, &x[..cols])?);
            Ok(vec![b.concat_rows(&[&x, &y, &x])?, b.concat_rows(&[&y])?])
        });
    }
    let ends = [-50.0, -9.0, -5.0, -1e-3, -0.0, 0.0, 1e-3, 5.0, 9.0, 50.0];
    s.like_reference("gelu at its ends", bound, &|b| Ok(vec![b.gelu(matrix(b, 1, 10, &ends)?)?]));
    s.like_reference("gelu leaves alone what its caller still holds", bound, &|b| {
        let x = matrix(b, 1, 10, &ends)?;
        let kept = x.clone();
        Ok(vec![b.gelu(x)?, kept])
    });
}

/// Pictures of random numbers.
fn pictures(b: &dyn Backend, dims: [usize; 4], x: &[f32]) -> Result<Tensor> {
    b.tensor(Shape::new(&dims), x)
}

fn convolutions(s: &mut Suite, rng: &mut Rng) {
    let down = ConvSpec { kernel: 3, stride: 2, pad: (0, 1), magnify: 1 };
    let up = ConvSpec { magnify: 2, ..ConvSpec::same(3) };
    let patch = ConvSpec { kernel: 4, stride: 4, pad: (0, 0), magnify: 1 };
    let cases: &[([usize; 4], usize, ConvSpec)] = &[
        ([1, 1, 1, 1], 1, ConvSpec::same(1)),
        ([1, 5, 7, 3], 5, ConvSpec::same(3)),
        ([2, 6, 6, 32], 33, ConvSpec::same(3)),
        ([1, 9, 8, 16], 70, ConvSpec::same(3)),
        ([1, 20, 20, 64], 32, ConvSpec::same(3)),
        ([3, 8, 10, 8], 20, down),
        ([1, 7, 7, 34], 8, down),
        ([2, 5, 4, 32], 32, up),
        ([1, 3, 3, 7], 3, ConvSpec { magnify: 3, ..ConvSpec::same(5) }),
        ([2, 12, 8, 3], 24, patch),
        ([1, 4, 6, 48], 40, ConvSpec::same(1)),
    ];
    for &(dims, out, spec) in cases {
        let [n, height, width, channels] = dims;
        let x = normals(rng, n * height * width * channels);
        let cols = channels * spec.kernel * spec.kernel;
        let name = format!("conv2d {dims:?} to {out} {spec:?}");
        for f in [format::F32, format::BF16] {
            let w = weight(rng, f, out, cols);
            let bias = norm(rng, out);
            s.like_reference(format!("{name} {f}"), s.tolerance.linear, &|b| {
                let (w, bias) = (b.upload_conv(&w, spec.kernel)?, b.upload(&bias)?);
                let x = pictures(b, dims, &x)?;
                Ok(vec![
                    b.conv2d(&x, Proj { weight: &w, bias: Some(&bias) }, &spec)?,
                    b.conv2d(&x, Proj { weight: &w, bias: None }, &spec)?,
                ])
            });
            // Batch invariance: a picture's result does not depend on its neighbours.
            let one = height * width * channels;
            s.same_bits(
                format!("{name} {f}, together = alone"),
                &|b| {
                    let w = b.upload_conv(&w, spec.kernel)?;
                    Ok(vec![b.conv2d(&pictures(b, dims, &x)?, Proj { weight: &w, bias: None }, &spec)?])
                },
                &|b| {
                    let w = b.upload_conv(&w, spec.kernel)?;
                    let alone = |p| pictures(b, [1, height, width, channels], &x[p * one..(p + 1) * one]);
                    (0..n).map(|p| b.conv2d(&alone(p)?, Proj { weight: &w, bias: None }, &spec)).collect()
                },
            );
        }
    }
}

fn norms(s: &mut Suite, rng: &mut Rng) {
    let bound = s.tolerance.rows;
    for (dims, groups) in
        [([1, 1, 2, 4], 2), ([2, 5, 7, 32], 32), ([1, 40, 30, 64], 32), ([3, 9, 9, 48], 4), ([1, 70, 3, 7], 1)]
    {
        let [n, height, width, channels] = dims;
        let (w, bias) = (norm(rng, channels), norm(rng, channels));
        for shift in [0.0, 20.0] {
            let x: Vec<f32> = normals(rng, n * height * width * channels).iter().map(|v| 2.0 * v + shift).collect();
            for silu in [false, true] {
                let spec = GroupNormSpec { groups, eps: 1e-6, silu };
                // Cancellation of a large mean costs digits, in f32 inputs already.
                let bound = if shift > 0.0 { bound * 100.0 } else { bound };
                s.like_reference(format!("group_norm {dims:?} + {shift} {spec:?}"), bound, &|b| {
                    let (w, bias) = (b.upload(&w)?, b.upload(&bias)?);
                    Ok(vec![b.group_norm(&pictures(b, dims, &x)?, &w, &bias, &spec)?])
                });
            }
        }
    }
}

fn errors(s: &mut Suite, rng: &mut Rng) {
    let (w, v) = (weight(rng, format::F32, 4, 18), norm(rng, 4));
    let x = normals(rng, 48);
    let bare = |b: &dyn Backend, dims: &[usize], spec: ConvSpec| {
        let w = b.upload_conv(&w, 3)?;
        Ok(vec![b.conv2d(&b.tensor(Shape::new(dims), &x)?, Proj { weight: &w, bias: None }, &spec)?])
    };
    s.refuses("kernels of half a channel", &["upload_conv", "weight"], &|b| {
        b.upload_conv(&w, 4)?;
        Ok(vec![])
    });
    s.refuses("a picture of other channels", &["conv2d", "weight"], &|b| bare(b, &[1, 4, 4, 3], ConvSpec::same(3)));
    s.refuses("a picture without a width", &["conv2d", "x"], &|b| bare(b, &[6, 4, 2], ConvSpec::same(3)));
    let tight = ConvSpec { pad: (0, 0), ..ConvSpec::same(3) };
    s.refuses("a picture smaller than the kernel", &["conv2d", "x"], &|b| bare(b, &[12, 1, 2, 2], tight));
    let still = ConvSpec { stride: 0, ..ConvSpec::same(3) };
    s.refuses("a stride of nothing", &["conv2d", "spec"], &|b| bare(b, &[1, 4, 6, 2], still));
    s.refuses("groups that do not divide", &["group_norm", "spec"], &|b| {
        let v = b.upload(&v)?;
        let spec = GroupNormSpec { groups: 3, eps: 1e-6, silu: false };
        Ok(vec![b.group_norm(&pictures(b, [1, 3, 4, 4], &x)?, &v, &v, &spec)?])
    });
    s.refuses("a layer norm of the wrong length", &["layer_norm", "weight"], &|b| {
        let v = b.upload(&v)?;
        Ok(vec![b.layer_norm(&matrix(b, 6, 8, &x)?, &v, &v, 1e-6)?])
    });
    s.refuses("rows of two widths", &["concat_rows", "parts"], &|b| {
        Ok(vec![b.concat_rows(&[&matrix(b, 6, 8, &x)?, &matrix(b, 4, 12, &x)?])?])
    });
}
