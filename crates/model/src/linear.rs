//! A projection with its optional bias, uploaded to a backend.

use fathom_core::{Backend, Proj, Resident, Result, Tensor};

/// `y = x·Wᵀ + b`.
#[derive(Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Resident,
    /// `[1, out]`.
    pub bias: Option<Resident>,
}

impl Linear {
    /// The view that a backend takes.
    pub fn proj(&self) -> Proj<'_> {
        Proj { weight: &self.weight, bias: self.bias.as_ref() }
    }

    /// Applies it to `x: [tokens, in]`.
    pub fn forward(&self, b: &dyn Backend, x: &Tensor) -> Result<Tensor> {
        Ok(b.linear(x, &[self.proj()])?.remove(0))
    }
}
