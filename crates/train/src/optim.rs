//! Optimisers: AdamW for tables and vectors, Muon for the matrices inside blocks.
//!
//! What a step does is in `core`'s `optim`, and the backend does it; here is which weight takes which, and what is remembered.

pub use fathom_core::optim::{AdamW, Muon};
use fathom_core::optim::{Stride, Update};
use fathom_core::{Grad, Tensor};
use fathom_model::Result;
use fathom_model::names::Slot;
use fathom_model::weights::Demand;

use crate::params::{Param, Params};

/// How a parameter is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// By AdamW: tables, norms, biases, routers.
    AdamW,
    /// By Muon: matrices of blocks, each expert's by itself.
    Muon,
    /// Not by its derivative: the router's correction bias, which balances load.
    Balance,
    /// Not at all.
    Frozen,
}

/// The usual rule for a parameter.
pub fn rule(d: &Demand, muon: bool) -> Rule {
    match d.id.slot {
        Slot::RouterBias => Rule::Balance,
        Slot::TokenEmbd | Slot::Output | Slot::Router => Rule::AdamW,
        _ if muon && d.rows > 1 => Rule::Muon,
        _ => Rule::AdamW,
    }
}

/// What an optimiser remembers of one parameter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// Mean of derivatives, or Muon's momentum.
    pub m: Vec<f32>,
    /// Mean of squares; empty under Muon.
    pub v: Vec<f32>,
}

/// Optimiser state of a whole model.
pub struct Optimiser {
    /// Settings for vectors and tables.
    pub adamw: AdamW,
    /// Settings for matrices.
    pub muon: Muon,
    /// Largest norm of all derivatives together; larger ones are scaled down to it.
    pub clip: f32,
    /// Speed of the router's correction bias (V3 paper, section 2.1.2: γ).
    pub balance: f32,
    /// Steps taken.
    pub steps: u64,
    /// Per parameter.
    pub rules: Vec<Rule>,
    /// Per parameter.
    pub moments: Vec<Moments>,
}

impl Optimiser {
    /// Fresh state for `params`.
    pub fn new(params: &Params, muon: bool) -> Self {
        let rules: Vec<Rule> = params.all.iter().map(|p| rule(&p.demand, muon)).collect();
        let state = |(p, rule): (&Param, &Rule)| {
            let zeros = |yes| if yes { vec![0.0; p.values().len()] } else { Vec::new() };
            Moments { m: zeros(matches!(rule, Rule::AdamW | Rule::Muon)), v: zeros(*rule == Rule::AdamW) }
        };
        let moments = params.all.iter().zip(&rules).map(state).collect();
        let (adamw, muon) = (AdamW::default(), Muon::default());
        Optimiser { adamw, muon, clip: 1.0, balance: 1e-3, steps: 0, rules, moments }
    }

    /// One step by the derivatives `grads` (as [`crate::Tape::backward`] leaves them). Returns their norm before clipping.
    ///
    /// # Errors
    /// If the backend fails.
    ///
    /// # Panics
    /// While a decoder over `params` is alive.
    pub fn step(&mut self, b: &dyn Grad, lr: f32, params: &mut Params, grads: &[Option<Tensor>]) -> Result<f64> {
        self.steps += 1;
        let mut squares = 0.0;
        for g in grads.iter().flatten() {
            squares += b.squares(g)?;
        }
        let norm = squares.sqrt();
        let scale = (f64::from(self.clip) / (norm + 1e-6)).min(1.0) as f32;
        let (mut adamw, mut scaled, mut muon) = (Vec::new(), Vec::new(), Vec::new());
        // Only an adapter's second matrices have a rate of their own, and all the same one.
        let rate = params.all.iter().map(|p| p.rate).find(|r| *r != 1.0).unwrap_or(1.0);
        let states = self.rules.iter().zip(&mut self.moments);
        for ((param, grad), (rule, Moments { m, v })) in params.all.iter_mut().zip(grads).zip(states) {
            let (Some(grad), Demand { rows, cols, experts, .. }) = (grad, param.demand) else { continue };
            let updates = match rule {
                Rule::AdamW if param.rate != 1.0 => &mut scaled,
                Rule::AdamW => &mut adamw,
                Rule::Muon => &mut muon,
                Rule::Balance | Rule::Frozen => continue,
            };
            updates.push(Update { values: param.values_mut(), grad, m, v, rows: rows / experts, cols });
        }
        let at = Stride { step: self.steps, lr, scale };
        b.adamw(&mut adamw, &self.adamw, at)?;
        b.adamw(&mut scaled, &self.adamw, Stride { lr: lr * rate, ..at })?;
        b.muon(&mut muon, &self.muon, at)?;
        Ok(norm)
    }

    /// Moves the correction bias of a router: up for experts with less than the mean load, down for those with more
    /// (V3 paper, section 2.1.2, "auxiliary-loss-free load balancing").
    pub fn balance(&self, bias: &mut [f32], load: &[u64]) {
        let mean = load.iter().sum::<u64>() as f64 / load.len() as f64;
        for (b, &n) in bias.iter_mut().zip(load) {
            *b += self.balance * (mean - n as f64).partial_cmp(&0.0).map_or(0.0, |o| o as i8 as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balancing_pulls_towards_the_mean() {
        let spec = Optimiser {
            adamw: AdamW::default(),
            muon: Muon::default(),
            clip: 1.0,
            balance: 0.5,
            steps: 0,
            rules: vec![],
            moments: vec![],
        };
        let mut bias = [0.0; 3];
        spec.balance(&mut bias, &[4, 2, 0]);
        assert_eq!(bias, [-0.5, 0.0, 0.5]);
    }
}
