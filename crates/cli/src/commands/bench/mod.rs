//! `fathom bench`: how fast a model runs on this machine, and how near that is to what its memory allows.
//!
//! Decoding reads every weight that a token touches once, so its bound is memory: bytes a token reads (counted by
//! the `Null` backend) times tokens per second, over the bandwidth that plain reading reaches here.

mod pictures;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use fathom_core::null::Null;
use fathom_core::rng::Rng;
use fathom_core::{DType, LatentForm, Precision};
use fathom_cpu::{Pool, read_bandwidth};
use fathom_engine::{ModelRunner, Runner as _, RunnerOptions, ScheduleOptions, StepOutput};
use fathom_model::{BLOCK, Batch, Logits, Model};
use serde_json::{Value, json};

use crate::args::{LoadArgs, MODEL_HELP};
use crate::load::{Loaded, Room, load};
use crate::machine;
use crate::term::Spinner;
use crate::units::{bytes, duration, grouped, rate};

/// Measure how fast a model runs here
#[derive(clap::Args)]
#[command(after_help = "Examples:
  fathom bench r1-7b                     prefill of 512 tokens, decode of 128
  fathom bench r1-7b -p 2048 -n 32       other lengths
  fathom bench r1-7b -d 8192             with 8192 tokens in the cache before
  fathom bench janus-pro-1b --pictures   seeing and drawing instead of text
  fathom bench r1-7b --json | jq .decode_tokens_per_s.median

Each is measured several times; minimum, median and maximum are shown. Nothing else should run meanwhile.")]
pub(crate) struct Args {
    #[arg(value_name = "MODEL", help = MODEL_HELP)]
    first: Option<String>,

    /// Tokens of prompt; 0 leaves prefill out
    #[arg(short, long, value_name = "TOKENS", default_value_t = 512)]
    prompt: usize,

    /// Tokens to generate; 0 leaves decode out
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 128)]
    generate: usize,

    /// Tokens in the cache before
    #[arg(short, long, value_name = "TOKENS", default_value_t = 0)]
    depth: usize,

    /// Measure seeing and drawing pictures instead of text; -n counts steps
    #[arg(long, conflicts_with_all = ["prompt", "depth"])]
    pictures: bool,

    /// How often to measure
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,

    #[command(flatten)]
    load: LoadArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Rates of several repetitions, in tokens per second.
struct Rates(Vec<f64>);

impl Rates {
    fn sorted(mut rates: Vec<f64>) -> Self {
        rates.sort_by(f64::total_cmp);
        Rates(rates)
    }

    fn median(&self) -> f64 {
        let n = self.0.len();
        (self.0[(n - 1) / 2] + self.0[n / 2]) / 2.0
    }

    fn json(&self) -> Value {
        json!({ "min": self.0[0], "median": self.median(), "max": self.0[self.0.len() - 1] })
    }

    fn text(&self) -> String {
        let (min, max) = (self.0[0], self.0[self.0.len() - 1]);
        format!("{} tokens/s   ({} to {})", rate(self.median()), rate(min), rate(max))
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.pictures {
        return run_pictures(args);
    }
    ensure!(args.prompt + args.generate > 0, "nothing to measure: -p and -n are both 0");
    let tokens = args.prompt.max(args.generate).checked_add(args.depth).context("-d is too large")?;
    let (loaded, device) = load(&args.load, args.first.as_deref(), Room::Tokens(tokens), Precision::Fast)?;
    let precision = match device.backend.precision() {
        Precision::Exact => "exact",
        Precision::Fast => "fast",
    };
    let Loaded { name, model, decoder, kv, context, took } = loaded;
    let options = RunnerOptions { context: Some(context), cache_tokens: None, kv, drafts: false };
    let mut lane = Lane::new(ModelRunner::new(decoder, options)?, tokens);
    let spinner = Spinner::new("measuring");
    lane.fill(args.depth)?;
    // The first pass of each kind touches pages and makes buffers; it is not counted.
    let prefill = repeat(args, args.prompt, |n| lane.prefill(args.depth, n))?;
    let decode = repeat(args, args.generate, |n| lane.decode(args.depth, n))?;
    // Before the bandwidth is measured: that takes memory of its own.
    let peak = machine::peak_bytes();
    let pool = match &device.cpu {
        Some(cpu) => cpu.pool().clone(),
        None => Pool::new(1).context("threads")?,
    };
    let bandwidth = read_bandwidth(&pool)?;
    drop(spinner);
    let cost = cost_of_a_token(&model, kv, args.depth + args.generate / 2)?;
    let fraction = decode.as_ref().map(|d| cost.bytes as f64 * d.median() / bandwidth);

    let mut out = io::stdout().lock();
    if args.json {
        let json = json!({
            "model": name,
            "family": model.spec.family,
            "device": device.describe(),
            "precision": precision,
            "kv_type": kv.name(),
            "threads": pool.threads(),
            "prompt_tokens": args.prompt,
            "generated_tokens": args.generate,
            "depth_tokens": args.depth,
            "repetitions": args.repetitions,
            "prefill_tokens_per_s": prefill.as_ref().map(Rates::json),
            "decode_tokens_per_s": decode.as_ref().map(Rates::json),
            "load_s": took.as_secs_f64(),
            "peak_memory_bytes": peak,
            "weights_bytes": model.archive.total_bytes(),
            "read_bandwidth_bytes_per_s": bandwidth,
            "decode_bytes_per_token": cost.bytes,
            "decode_flops_per_token": cost.flops,
            "decode_bandwidth_fraction": fraction,
        });
        writeln!(out, "{json:#}")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{name}: {}, {precision}, cache in {}", device.describe(), kv.name())?;
    let depth = if args.depth == 0 { String::new() } else { format!(" behind {}", grouped(args.depth as u64)) };
    if let Some(rates) = &prefill {
        writeln!(out, "prefill     {} tokens{depth}: {}", grouped(args.prompt as u64), rates.text())?;
    }
    if let Some(rates) = &decode {
        writeln!(out, "decode      {} tokens{depth}: {}", grouped(args.generate as u64), rates.text())?;
    }
    writeln!(out, "load        {}", duration(took))?;
    if let Some(peak) = peak {
        writeln!(out, "memory      {} at most, of which weights {}", bytes(peak), bytes(model.archive.total_bytes()))?;
    }
    let speed = bytes(bandwidth as u64);
    if let Some(fraction) = fraction {
        let each = bytes(cost.bytes);
        writeln!(
            out,
            "bandwidth   {speed}/s read here; decode reads {each} a token and reaches {:.0} % of it",
            100.0 * fraction
        )?;
    } else {
        writeln!(out, "bandwidth   {speed}/s read here")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn run_pictures(args: &Args) -> Result<ExitCode> {
    let (loaded, device) = load(&args.load, args.first.as_deref(), Room::Pictures(4), Precision::Fast)?;
    let Loaded { name, model, decoder, kv, took, .. } = loaded;
    let spinner = Spinner::new("measuring");
    let measured = pictures::measure(decoder, kv, args.generate, args.repetitions)?;
    let peak = machine::peak_bytes();
    let pool = match &device.cpu {
        Some(cpu) => cpu.pool().clone(),
        None => Pool::new(1).context("threads")?,
    };
    let bandwidth = read_bandwidth(&pool)?;
    let cost = pictures::cost(&model, kv)?;
    drop(spinner);
    let mut out = io::stdout().lock();
    if args.json {
        let mut json = measured.json(cost, bandwidth);
        json["model"] = name.into();
        json["device"] = device.describe().into();
        json["load_s"] = took.as_secs_f64().into();
        json["peak_memory_bytes"] = peak.into();
        json["weights_bytes"] = model.archive.total_bytes().into();
        json["read_bandwidth_bytes_per_s"] = bandwidth.into();
        writeln!(out, "{json:#}")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{name}: {}, cache in {}", device.describe(), kv.name())?;
    measured.print(&mut out, cost, bandwidth)?;
    writeln!(out, "load        {}", duration(took))?;
    if let Some(peak) = peak {
        writeln!(out, "memory      {} at most, of which weights {}", bytes(peak), bytes(model.archive.total_bytes()))?;
    }
    writeln!(out, "bandwidth   {}/s read here", bytes(bandwidth as u64))?;
    Ok(ExitCode::SUCCESS)
}

/// Rates of several passes over `n` tokens after one that is not counted; none for no tokens.
fn repeat(args: &Args, n: usize, mut pass: impl FnMut(usize) -> Result<()>) -> Result<Option<Rates>> {
    if n == 0 {
        return Ok(None);
    }
    pass(n)?;
    let mut rates = Vec::new();
    for _ in 0..args.repetitions {
        let start = Instant::now();
        pass(n)?;
        rates.push(n as f64 / start.elapsed().as_secs_f64());
    }
    Ok(Some(Rates::sorted(rates)))
}

/// One sequence of random tokens on a model, stepped as the engine steps it.
struct Lane {
    runner: ModelRunner,
    table: Vec<u32>,
    tokens: Vec<u32>,
    batch: Batch,
    out: StepOutput,
}

impl Lane {
    fn new(runner: ModelRunner, tokens: usize) -> Self {
        let (vocab, mut rng) = (runner.info().vocab as u32, Rng::new(1, 0));
        let tokens: Vec<u32> = (0..tokens).map(|_| rng.below(vocab)).collect();
        let table = (0..tokens.len().div_ceil(BLOCK) as u32).collect();
        Lane { runner, table, tokens, batch: Batch::new(BLOCK), out: StepOutput::default() }
    }

    fn step(&mut self, from: usize, to: usize, form: LatentForm, logits: Logits) -> Result<()> {
        self.batch.clear();
        self.batch.push(&self.tokens[from..to], from, &self.table, form, logits);
        self.runner.step(&self.batch, &mut self.out)?;
        Ok(())
    }

    /// The form in which the engine computes prompts.
    fn prompt_form(&self) -> LatentForm {
        match self.runner.decoder().backend.precision() {
            Precision::Exact => LatentForm::Absorbed,
            Precision::Fast => LatentForm::Plain,
        }
    }

    /// Tokens `0..depth` into the cache.
    fn fill(&mut self, depth: usize) -> Result<()> {
        if depth == 0 { Ok(()) } else { self.prefill(0, depth) }
    }

    /// A prompt of `n` tokens behind `depth`, in the engine's chunks, up to its last logits.
    fn prefill(&mut self, depth: usize, n: usize) -> Result<()> {
        let (chunk, end) = (ScheduleOptions::default().step_tokens, depth + n);
        for from in (depth..end).step_by(chunk) {
            let to = end.min(from + chunk);
            let logits = if to == end { Logits::Last } else { Logits::None };
            self.step(from, to, self.prompt_form(), logits)?;
        }
        Ok(())
    }

    /// `n` tokens behind `depth`, one by one.
    fn decode(&mut self, depth: usize, n: usize) -> Result<()> {
        (depth..depth + n).try_for_each(|at| self.step(at, at + 1, LatentForm::Absorbed, Logits::Last))
    }
}

/// What decoding one token takes.
struct Cost {
    /// Bytes of weights and cache that are read or written.
    bytes: u64,
    flops: u64,
}

/// Counted by a pass over the backend without data.
fn cost_of_a_token(model: &Model, kv: DType, depth: usize) -> Result<Cost> {
    let null = Arc::new(Null::new());
    let decoder = model.load(null.clone(), &mut |_, _| {})?;
    let options = RunnerOptions { context: Some(depth + 1), cache_tokens: None, kv, drafts: false };
    let mut lane = Lane::new(ModelRunner::new(decoder, options)?, depth + 1);
    null.reset();
    lane.decode(depth, 1)?;
    let total = null.counts().total();
    Ok(Cost { bytes: total.weight_bytes + total.cache_bytes, flops: total.flops })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_between() {
        assert_eq!(Rates::sorted(vec![3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Rates::sorted(vec![4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert_eq!(Rates::sorted(vec![7.0]).json(), json!({ "min": 7.0, "median": 7.0, "max": 7.0 }));
    }
}
