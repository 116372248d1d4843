//! Mixture of experts (DeepSeekMoE; V2 paper, section 2.2; V3 paper, section 2.1.2): shared experts for every
//! token, routed ones for the tokens that the router sends them.

use fathom_core::{Backend, Resident, ResidentExperts, Result, RouteSpec, Tensor};

use super::Dense;
use crate::linear::Linear;
use crate::probe::Probe;

/// Weights of a layer.
#[derive(Clone)]
pub struct Moe {
    /// Choice of experts.
    pub route: RouteSpec,
    /// Router.
    pub router: Linear,
    /// Correction bias, which counts only in the choice.
    pub bias: Option<Resident>,
    /// Gate projections of the routed experts.
    pub gate: ResidentExperts,
    /// Up projections.
    pub up: ResidentExperts,
    /// Down projections.
    pub down: ResidentExperts,
    /// The shared experts, stored as one network.
    pub shared: Option<Dense>,
}

impl Moe {
    /// See [`super::FfnLayer::forward`].
    pub fn forward(&self, b: &dyn Backend, x: &Tensor, layer: usize, probe: &mut dyn Probe) -> Result<Tensor> {
        let logits = self.router.forward(b, x)?;
        let routing = b.route(&logits, self.bias.as_ref(), &self.route, probe.forced(layer))?;
        probe.routed(layer, b, &routing)?;
        let shared = self.shared.as_ref().map(|s| s.forward(b, x)).transpose()?;
        b.moe(x, &routing, &self.gate, &self.up, &self.down, shared)
    }
}
