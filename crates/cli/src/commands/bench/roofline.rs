//! What a pass must read and compute at least, and how fast this machine could do that.
//!
//! Bytes and operations come from the same pass over the backend without data. A machine that reads at full speed while it
//! computes at full speed takes the longer of the two times; that is the bound. Operations are compared with the fastest
//! arithmetic that the file's weights allow: dot products of bytes for quantised ones.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use fathom_core::null::Null;
use fathom_core::{DType, LatentForm, Precision};
use fathom_cpu::Peak;
use fathom_engine::ModelRunner;
use fathom_model::Model;
use serde_json::{Value, json};

use super::lanes::{Lanes, Size};
use crate::units::{bytes, rate};

/// What a pass takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Work {
    /// Bytes of weights and cache that are read or written.
    pub(super) bytes: u64,
    /// Operations of its products, a multiply-add counted as two.
    pub(super) flops: u64,
    /// Tokens that come of it.
    pub(super) tokens: usize,
}

/// Counts passes.
pub(super) struct Counter {
    null: Arc<Null>,
    lanes: Lanes,
}

impl Counter {
    /// For a model whose prompts are computed in this form.
    pub(super) fn new(model: &Model, kv: DType, form: LatentForm, size: Size) -> Result<Self> {
        let null = Arc::new(Null::new());
        let decoder = model.load(null.clone(), &mut |_, _| {})?;
        let runner = ModelRunner::new(decoder, size.options(size.longest(), kv))?;
        Ok(Counter { null, lanes: Lanes::new(runner, form, size) })
    }

    fn count(&mut self, tokens: usize, pass: impl FnOnce(&mut Lanes) -> Result<()>) -> Result<Work> {
        self.null.reset();
        pass(&mut self.lanes)?;
        let total = self.null.counts().total();
        Ok(Work { bytes: total.weight_bytes + total.cache_bytes, flops: total.flops, tokens })
    }

    /// A prompt of `n` tokens behind `depth`.
    pub(super) fn prefill(&mut self, depth: usize, n: usize) -> Result<Work> {
        self.count(n, |lanes| lanes.prefill(depth, n))
    }

    /// The middle one of `n` steps behind `depth`.
    pub(super) fn step(&mut self, depth: usize, n: usize, sequences: usize) -> Result<Work> {
        self.count(sequences, |lanes| lanes.decode(depth + n / 2, 1, sequences))
    }
}

/// Arithmetic that the products of a model are made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Arithmetic {
    /// `int8`, `bf16` or `f32`.
    pub(super) name: &'static str,
    /// Operations per second.
    pub(super) per_s: f64,
}

impl Arithmetic {
    /// What most of the model's numbers are multiplied in.
    pub(super) fn of(model: &Model, precision: Precision, peak: &Peak) -> Result<Self> {
        let mut kinds = [("int8", peak.int8, 0), ("bf16", peak.bf16.max(peak.f32), 0), ("f32", peak.f32, 0)];
        for name in model.archive.names() {
            let tensor = model.archive.tensor(name)?.context("a tensor that is listed is not there")?;
            let kind = match (precision, tensor.format.name()) {
                (Precision::Exact, _) => 2,
                (Precision::Fast, "BF16") => 1,
                (Precision::Fast, name) if name.starts_with('F') => 2,
                (Precision::Fast, _) => 0,
            };
            kinds[kind].2 += tensor.shape.iter().product::<usize>();
        }
        let (name, per_s, _) = kinds.into_iter().max_by_key(|k| k.2).expect("invariant: there are three kinds");
        Ok(Arithmetic { name, per_s })
    }
}

/// How fast a pass could be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bound {
    /// Tokens per second at most.
    pub(super) tokens_per_s: f64,
    /// Whether it is memory that bounds it, or arithmetic.
    pub(super) memory: bool,
}

impl Work {
    /// On a machine that reads this many bytes and computes this much per second.
    pub(super) fn bound(&self, bandwidth: f64, arithmetic: Arithmetic) -> Bound {
        let (read, compute) = (self.bytes as f64 / bandwidth, self.flops as f64 / arithmetic.per_s);
        Bound { tokens_per_s: self.tokens as f64 / read.max(compute), memory: read >= compute }
    }

    /// Share of the bandwidth that so many tokens per second read.
    pub(super) fn bandwidth_fraction(&self, reached: f64, bandwidth: f64) -> f64 {
        self.bytes as f64 * reached / self.tokens as f64 / bandwidth
    }

    /// `bound 31.2 tokens/s by memory (981 MiB a step at 33 GiB/s); reached 88 %`.
    pub(super) fn line(&self, reached: f64, bandwidth: f64, arithmetic: Arithmetic, unit: &str) -> String {
        let bound = self.bound(bandwidth, arithmetic);
        let (what, at) = if bound.memory {
            (bytes(self.bytes), format!("{}/s", bytes(bandwidth as u64)))
        } else {
            (operations(self.flops as f64), format!("{}/s in {}", operations(arithmetic.per_s), arithmetic.name))
        };
        format!(
            "bound {} tokens/s by {} ({what} a {unit} at {at}); reached {:.0} %",
            rate(bound.tokens_per_s),
            bound.name(),
            100.0 * reached / bound.tokens_per_s
        )
    }

    /// The same for programs.
    pub(super) fn json(&self, reached: f64, bandwidth: f64, arithmetic: Arithmetic) -> Value {
        let bound = self.bound(bandwidth, arithmetic);
        json!({
            "bytes": self.bytes,
            "flops": self.flops,
            "tokens": self.tokens,
            "read_bandwidth_bytes_per_s": bandwidth,
            "bound_tokens_per_s": bound.tokens_per_s,
            "bound_by": bound.name(),
            "reached_fraction": reached / bound.tokens_per_s,
            "bandwidth_fraction": self.bandwidth_fraction(reached, bandwidth),
            "arithmetic_fraction": self.flops as f64 * reached / self.tokens as f64 / arithmetic.per_s,
        })
    }
}

impl Bound {
    pub(super) fn name(&self) -> &'static str {
        if self.memory { "memory" } else { "arithmetic" }
    }
}

/// Operations with a decimal unit: `1.92 TFLOP`.
pub(super) fn operations(n: f64) -> String {
    match n {
        _ if n < 1e9 => format!("{:.2} MFLOP", n / 1e6),
        _ if n < 1e12 => format!("{:.2} GFLOP", n / 1e9),
        _ => format!("{:.2} TFLOP", n / 1e12),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_of_two_times_bounds() {
        let int8 = Arithmetic { name: "int8", per_s: 1e12 };
        let decode = Work { bytes: 1 << 30, flops: 3_000_000_000, tokens: 4 };
        let line = decode.line(32.0, f64::from(1 << 30) * 16.0, int8, "step");
        assert_eq!(line, "bound 64.0 tokens/s by memory (1.00 GiB a step at 16.00 GiB/s); reached 50 %");
        let prompt = Work { bytes: 1 << 30, flops: 2_000_000_000_000, tokens: 512 };
        let line = prompt.line(64.0, f64::from(1 << 30) * 16.0, int8, "prompt");
        assert_eq!(
            line,
            "bound 256 tokens/s by arithmetic (2.00 TFLOP a prompt at 1.00 TFLOP/s in int8); reached 25 %"
        );
        let json = prompt.json(64.0, f64::from(1 << 30) * 16.0, int8);
        assert_eq!((&json["bound_by"], json["arithmetic_fraction"].as_f64()), (&json!("arithmetic"), Some(0.25)));
        assert_eq!(json["bandwidth_fraction"].as_f64(), Some(1.0 / 128.0));
    }
}
