//! What `fathom bench` prints: lines for few figures, a table for many, JSON for programs.

use std::io;

use anyhow::Result;
use fathom_core::Precision;
use fathom_cpu::Peak;
use serde_json::{Value, json};

use super::against::Peer;
use super::profile;
use super::rates::Rates;
use super::roofline::{Arithmetic, operations};
use super::sweep::{Measured, What};
use crate::load::{Device, Loaded};
use crate::units::{bytes, duration, grouped, rate};

/// Up to so many figures get two lines each; more are a table.
const LINES: usize = 2;

/// Everything that was measured.
pub(super) struct Report<'a> {
    pub(super) loaded: &'a Loaded,
    pub(super) device: &'a Device,
    pub(super) threads: usize,
    pub(super) repetitions: u32,
    pub(super) arithmetic: Arithmetic,
    pub(super) peak: Peak,
    pub(super) peak_memory: Option<u64>,
    /// Prompt, generated tokens, depth and sequences, where one depth and one batch were asked for.
    pub(super) single: Option<(usize, usize, usize, usize)>,
    pub(super) measured: &'a [Measured],
    pub(super) peers: &'a [Peer],
}

impl Report<'_> {
    fn precision(&self) -> &'static str {
        match self.device.backend.precision() {
            Precision::Exact => "exact",
            Precision::Fast => "fast",
        }
    }

    /// All that was read between figures.
    fn bandwidth(&self) -> Rates {
        // At least one figure was measured at least once.
        let all = self.measured.iter().flat_map(|m| {
            let b = m.bandwidths();
            [b.min(), b.median(), b.max()]
        });
        Rates::sorted(all.collect())
    }

    fn of(&self, what: What) -> impl Iterator<Item = &Measured> {
        self.measured.iter().filter(move |m| m.figure.what == what)
    }

    fn figures(&self, what: What) -> Vec<Value> {
        let figure = |m: &Measured| {
            let (rates, bandwidths) = (m.rates(), m.bandwidths());
            let mut json = json!({
                "depth_tokens": m.figure.depth,
                "sequences": m.figure.sequences,
                "tokens": m.figure.tokens,
                "tokens_per_s": rates.json(),
                "tokens_per_s_each": rates.median() / m.figure.sequences as f64,
                "read_bandwidth": bandwidths.json(),
                "roofline": m.work.json(rates.median(), bandwidths.median(), self.arithmetic),
            });
            if m.profile.is_some() {
                json["profile"] = profile::json(m);
            }
            json
        };
        self.of(what).map(figure).collect()
    }

    pub(super) fn json(&self) -> Value {
        let Loaded { name, model, kv, took, packed, .. } = self.loaded;
        let mut json = json!({
            "model": name,
            "family": model.spec.family,
            "device": self.device.describe(),
            "precision": self.precision(),
            "kv_type": kv.name(),
            "threads": self.threads,
            "repetitions": self.repetitions,
            "load_s": took.as_secs_f64(),
            "packed_bytes": packed,
            "peak_memory_bytes": self.peak_memory,
            "weights_bytes": model.archive.total_bytes(),
            "read_bandwidth_bytes_per_s": self.bandwidth().median(),
            "arithmetic_peak": {
                "int8_ops_per_s": self.peak.int8,
                "bf16_flops_per_s": self.peak.bf16,
                "f32_flops_per_s": self.peak.f32,
                "compared_with": self.arithmetic.name,
            },
            "prefill": self.figures(What::Prefill),
            "decode": self.figures(What::Decode),
        });
        if let Some((prompt, generate, depth, sequences)) = self.single {
            let (prefill, decode) = (self.of(What::Prefill).next(), self.of(What::Decode).next());
            json["prompt_tokens"] = prompt.into();
            json["generated_tokens"] = generate.into();
            json["depth_tokens"] = depth.into();
            json["sequences"] = sequences.into();
            json["prefill_tokens_per_s"] = prefill.map(|m| m.rates().json()).into();
            json["decode_tokens_per_s"] = decode.map(|m| m.rates().json()).into();
            let per_token = |n: u64| n / sequences as u64;
            json["decode_bytes_per_token"] = decode.map(|m| per_token(m.work.bytes)).into();
            json["decode_flops_per_token"] = decode.map(|m| per_token(m.work.flops)).into();
            let fraction = |m: &Measured| m.work.bandwidth_fraction(m.rates().median(), m.bandwidths().median());
            json["decode_bandwidth_fraction"] = decode.map(fraction).into();
        }
        if !self.peers.is_empty() {
            json["against"] = self.peers.iter().map(|p| p.json(self.measured)).collect::<Vec<_>>().into();
        }
        json
    }

    pub(super) fn print(&self, out: &mut impl io::Write) -> Result<()> {
        let Loaded { name, model, kv, took, packed, .. } = self.loaded;
        writeln!(out, "{name}: {}, {}, cache in {}", self.device.describe(), self.precision(), kv.name())?;
        if self.measured.len() > LINES {
            self.table(out)?
        } else {
            self.lines(out)?
        }
        let rearranged =
            if *packed > 0 { format!("{} of weights packed", bytes(*packed)) } else { "nothing packed".into() };
        writeln!(out, "load        {}, {rearranged}", duration(*took))?;
        if let Some(peak) = self.peak_memory {
            let weights = bytes(model.archive.total_bytes());
            writeln!(out, "memory      {} at most, of which weights {weights}", bytes(peak))?;
        }
        let read = self.bandwidth();
        let [min, median, max] = [read.min(), read.median(), read.max()].map(|b| bytes(b as u64));
        writeln!(
            out,
            "bandwidth   {median}/s read here   ({min} to {max}); bounds take the median of those beside a figure"
        )?;
        writeln!(
            out,
            "arithmetic  {}/s in int8, {}/s in bf16, {}/s in f32",
            operations(self.peak.int8),
            operations(self.peak.bf16),
            operations(self.peak.f32)
        )?;
        for measured in self.measured {
            profile::print(out, measured)?;
        }
        for peer in self.peers {
            peer.print(out, self.measured)?;
        }
        Ok(())
    }

    fn lines(&self, out: &mut impl io::Write) -> Result<()> {
        for m in self.measured {
            let (figure, rates) = (&m.figure, m.rates());
            let each = match figure.sequences {
                1 => String::new(),
                n => format!(", {} each", rate(rates.median() / n as f64)),
            };
            let (what, text) = (figure.what.name(), figure.describe());
            writeln!(out, "{what:<12}{text}: {} tokens/s{each}   {}", rate(rates.median()), rates.range())?;
            let line = m.work.line(rates.median(), m.bandwidths().median(), self.arithmetic, figure.unit());
            writeln!(out, "{:<12}{line}", "")?;
        }
        Ok(())
    }

    fn table(&self, out: &mut impl io::Write) -> Result<()> {
        writeln!(
            out,
            "{:<9}{:>7}{:>8}{:>10}{:>10}{:>8}{:>18}{:>9}{:>12}{:>9}",
            "", "tokens", "behind", "sequences", "tokens/s", "each", "(from to)", "bound", "by", "reached"
        )?;
        for m in self.measured {
            let (figure, rates) = (&m.figure, m.rates());
            let bound = m.work.bound(m.bandwidths().median(), self.arithmetic);
            writeln!(
                out,
                "{:<9}{:>7}{:>8}{:>10}{:>10}{:>8}{:>18}{:>9}{:>12}{:>7.0} %",
                figure.what.name(),
                grouped(figure.tokens as u64),
                grouped(figure.depth as u64),
                figure.sequences,
                rate(rates.median()),
                rate(rates.median() / figure.sequences as f64),
                rates.range(),
                rate(bound.tokens_per_s),
                bound.name(),
                100.0 * rates.median() / bound.tokens_per_s
            )?;
        }
        Ok(())
    }
}
