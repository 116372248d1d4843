//! A projection with its optional bias and its optional low-rank addition, on a backend.
//!
//! Serving and training share this: an adapter is applied here and nowhere else.

use arrayvec::ArrayVec;
use fathom_core::{Backend, Outputs, Proj, Resident, Result, Tensor};

/// `y = x·Wᵀ + b`, plus `(x·Aᵀ)·Bᵀ` where there is an adapter.
#[derive(Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Resident,
    /// `[1, out]`.
    pub bias: Option<Resident>,
    /// What is added to the weight's product.
    pub adapter: Option<LowRank>,
    /// Whether an error of rounding only drifts from here on ([`Backend::linear_steady`]).
    pub steady: bool,
}

/// A matrix of low rank (LoRA; Hu et al. 2021).
#[derive(Clone)]
pub struct LowRank {
    /// `[rank, in]`.
    pub a: Resident,
    /// `[out, rank]`, the adapter's scale multiplied in.
    pub b: Resident,
}

impl Linear {
    /// A projection as it is stored.
    pub fn new(weight: Resident, bias: Option<Resident>) -> Self {
        Linear { weight, bias, adapter: None, steady: false }
    }

    /// The view that a backend takes: without the adapter.
    pub fn proj(&self) -> Proj<'_> {
        Proj { weight: &self.weight, bias: self.bias.as_ref() }
    }

    /// Applies it to `x: [tokens, in]`.
    pub fn forward(&self, b: &dyn Backend, x: &Tensor) -> Result<Tensor> {
        Ok(project(b, x, &[self])?.remove(0))
    }
}

/// Applies up to four projections to the same `x: [tokens, in]`, in one region of the backend.
pub fn project(b: &dyn Backend, x: &Tensor, linears: &[&Linear]) -> Result<Outputs> {
    let projs: ArrayVec<Proj<'_>, 4> = linears.iter().map(|l| l.proj()).collect();
    let steady = linears.iter().all(|l| l.steady);
    let ys = if steady { b.linear_steady(x, &projs) } else { b.linear(x, &projs) }?;
    let downs: ArrayVec<Proj<'_>, 4> =
        linears.iter().filter_map(|l| l.adapter.as_ref()).map(|low| Proj { weight: &low.a, bias: None }).collect();
    if downs.is_empty() {
        return Ok(ys);
    }
    let mut narrow = b.linear(x, &downs)?.into_iter();
    let add = |(y, l): (Tensor, &&Linear)| {
        let Some(low) = &l.adapter else { return Ok(y) };
        let narrow = narrow.next().expect("invariant: linear gives an output per projection");
        let wide = b.linear(&narrow, &[Proj { weight: &low.b, bias: None }])?.remove(0);
        b.add(y, &wide)
    };
    ys.into_iter().zip(linears).map(add).collect()
}
