//! Every figure of a sweep, measured in rounds: each round takes each figure once, ours and then the peers', with the bandwidth in
//! between. So what the machine does meanwhile falls on all of them alike.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use fathom_core::timed::Timed;
use fathom_cpu::{BandwidthProbe, Pool};

use super::against::Peer;
use super::lanes::Lanes;
use super::profile::Profile;
use super::rates::Rates;
use super::roofline::{Counter, Work};
use crate::term::Spinner;
use crate::units::grouped;

/// Steps before decoding is measured: they make the buffers.
const WARM_STEPS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Prefill,
    Decode,
}

impl What {
    pub(super) fn name(self) -> &'static str {
        match self {
            What::Prefill => "prefill",
            What::Decode => "decode",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Figure {
    pub(super) what: What,
    /// Tokens in the cache before.
    pub(super) depth: usize,
    /// Tokens of the prompt, or that each sequence generates.
    pub(super) tokens: usize,
    pub(super) sequences: usize,
}

impl Figure {
    /// All of a sweep, by depth.
    pub(super) fn all(prompt: usize, generate: usize, depths: &[usize], batches: &[usize]) -> Vec<Figure> {
        let at = |depth| {
            let prefill = Figure { what: What::Prefill, depth, tokens: prompt, sequences: 1 };
            let decode = move |&sequences| Figure { what: What::Decode, depth, tokens: generate, sequences };
            std::iter::once(prefill).chain(batches.iter().map(decode))
        };
        depths.iter().flat_map(|d| at(*d)).filter(|f| f.tokens > 0).collect()
    }

    /// `128 tokens behind 4,096, 4 sequences`.
    pub(super) fn describe(&self) -> String {
        let mut text = format!("{} tokens", grouped(self.tokens as u64));
        if self.depth > 0 {
            text += &format!(" behind {}", grouped(self.depth as u64));
        }
        if self.sequences > 1 {
            text += &format!(", {} sequences", self.sequences);
        }
        text
    }

    fn pass(&self, lanes: &mut Lanes, tokens: usize) -> Result<()> {
        match self.what {
            What::Prefill => lanes.prefill(self.depth, tokens),
            What::Decode => lanes.decode(self.depth, tokens, self.sequences),
        }
    }

    fn work(&self, counter: &mut Counter) -> Result<Work> {
        match self.what {
            What::Prefill => counter.prefill(self.depth, self.tokens),
            What::Decode => counter.step(self.depth, self.tokens, self.sequences),
        }
    }

    /// What a pass or a step is called, whose bytes and operations are told.
    pub(super) fn unit(&self) -> &'static str {
        match (self.what, self.sequences) {
            (What::Prefill, _) => "prompt",
            (What::Decode, 1) => "token",
            (What::Decode, _) => "step",
        }
    }
}

/// What came of it.
pub(super) struct Measured {
    pub(super) figure: Figure,
    /// Tokens per second, round by round, all sequences together.
    pub(super) rates: Vec<f64>,
    /// Bytes per second that were read just before and after each.
    bandwidths: Vec<f64>,
    pub(super) work: Work,
    pub(super) profile: Option<Profile>,
}

impl Measured {
    pub(super) fn rates(&self) -> Rates {
        Rates::sorted(self.rates.clone())
    }

    pub(super) fn bandwidths(&self) -> Rates {
        Rates::sorted(self.bandwidths.clone())
    }
}

/// What measures.
pub(super) struct Bench<'a> {
    pub(super) lanes: &'a mut Lanes,
    pub(super) counter: &'a mut Counter,
    pub(super) pool: &'a Pool,
    pub(super) timed: Option<Arc<Timed>>,
    pub(super) spinner: &'a Spinner,
}

impl Bench<'_> {
    /// Fills the cache and takes every figure once without counting: that touches pages and makes buffers.
    pub(super) fn warm(&mut self, figures: &[Figure]) -> Result<()> {
        let depth = figures.iter().map(|f| f.depth).max().unwrap_or(0);
        let spinner = self.spinner;
        self.lanes.fill(depth, |done| {
            spinner.label(format!("filling the cache: {} of {} tokens", grouped(done as u64), grouped(depth as u64)));
        })?;
        for figure in figures {
            self.spinner.label(format!("warming up: {} of {}", figure.what.name(), figure.describe()));
            let tokens = if figure.what == What::Decode { figure.tokens.min(WARM_STEPS) } else { figure.tokens };
            figure.pass(self.lanes, tokens)?;
        }
        Ok(())
    }

    /// Measures all figures so many times, each followed by every peer's.
    pub(super) fn rounds(
        &mut self,
        figures: &[Figure],
        rounds: u32,
        probe: &BandwidthProbe,
        peers: &mut [Peer],
    ) -> Result<Vec<Measured>> {
        let mut all = Vec::new();
        for &figure in figures {
            let (rates, bandwidths, profile) = (Vec::new(), Vec::new(), None);
            all.push(Measured { figure, rates, bandwidths, work: figure.work(self.counter)?, profile });
        }
        // The better of two: what disturbs a pass only ever makes it slower.
        let read = |pool: &Pool| probe.measure(pool).max(probe.measure(pool));
        for round in 1..=rounds {
            let mut before = read(self.pool);
            for measured in &mut all {
                let figure = measured.figure;
                let label = format!("{} of {}, round {round} of {rounds}", figure.what.name(), figure.describe());
                self.spinner.label(label);
                let took = self.pass(measured)?;
                measured.rates.push((figure.tokens * figure.sequences) as f64 / took.as_secs_f64());
                let after = read(self.pool);
                measured.bandwidths.extend([before, after]);
                before = after;
            }
            for peer in peers.iter_mut() {
                self.spinner.label(format!("{}, round {round} of {rounds}", peer.name()));
                peer.round()?;
            }
        }
        Ok(all)
    }

    fn pass(&mut self, measured: &mut Measured) -> Result<Duration> {
        if let Some(timed) = &self.timed {
            timed.reset();
        }
        let start = Instant::now();
        measured.figure.pass(self.lanes, measured.figure.tokens)?;
        let took = start.elapsed();
        if let Some(timed) = &self.timed {
            measured.profile.get_or_insert_default().add(&timed.spent(), took);
        }
        Ok(took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_is_every_depth_with_every_batch() {
        let all = Figure::all(8, 2, &[0, 16], &[1, 4]);
        let text: Vec<String> = all.iter().map(|f| format!("{} {}", f.what.name(), f.describe())).collect();
        let wanted = [
            "prefill 8 tokens",
            "decode 2 tokens",
            "decode 2 tokens, 4 sequences",
            "prefill 8 tokens behind 16",
            "decode 2 tokens behind 16",
            "decode 2 tokens behind 16, 4 sequences",
        ];
        assert_eq!(text, wanted);
        assert!(Figure::all(0, 2, &[0], &[1]).iter().all(|f| f.what == What::Decode));
    }
}
