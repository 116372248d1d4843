//! `fathom bench`: how fast a model runs on this machine, how near that is to what the machine allows, and how it compares with
//! another program.
//!
//! `lanes` steps sequences as the engine does, `sweep` measures them in rounds, `roofline` says how fast they could be,
//! `profile` where the time goes, `against` what a peer needs for the same, `report` writes it all down.

mod against;
mod lanes;
mod pictures;
mod profile;
mod rates;
mod report;
mod roofline;
mod sweep;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use fathom_core::timed::Timed;
use fathom_core::{DType, LatentForm, Precision};
use fathom_cpu::{BandwidthProbe, Level, Pool, arithmetic_peak, read_bandwidth};
use fathom_engine::ModelRunner;
use fathom_files::Kind;

use self::lanes::{Lanes, Size};
use self::report::Report;
use self::roofline::{Arithmetic, Counter};
use self::sweep::{Bench, Figure};
use crate::args::{LoadArgs, MODEL_HELP};
use crate::load::{Device, Loaded, Room, load, load_on};
use crate::machine;
use crate::term::Spinner;
use crate::units::{bytes, duration};

/// Measure how fast a model runs here
#[derive(clap::Args)]
#[command(after_help = "Examples:
  fathom bench r1-7b                          prefill of 512 tokens, decode of 128
  fathom bench r1-7b -p 2048 -n 32            other lengths
  fathom bench r1-7b -d 0,4096,16384          with so many tokens in the cache before
  fathom bench r1-7b -p 0 -b 1,4,8            decoding alone, so many sequences together
  fathom bench r1-7b --profile                where the time goes, operation by operation
  fathom bench janus-pro-1b --pictures        seeing and drawing instead of text
  fathom bench r1-7b.gguf --against ~/llama.cpp/build/bin/llama-bench --against-args '--repack 0'
                                              beside another program, in turn, with the same file, lengths and threads
  fathom bench r1-7b --json | jq .decode_tokens_per_s.median

Every figure is taken once per round, --repetitions rounds; minimum, median and maximum are shown. `bound` is what this
machine allows: bytes and operations of the same pass, counted, over its reading speed, measured between the rounds'
figures (the median of those beside the figure), and over its arithmetic. Nothing else should run meanwhile.

JSON has every figure in the lists `prefill` and `decode`; prefill_tokens_per_s, decode_tokens_per_s and their like stand
beside them where -d and -b name one depth and one batch.")]
pub(crate) struct Args {
    #[arg(value_name = "MODEL", help = MODEL_HELP)]
    first: Option<String>,

    /// Tokens of prompt; 0 leaves prefill out
    #[arg(short, long, value_name = "TOKENS", default_value_t = 512)]
    prompt: usize,

    /// Tokens to generate; 0 leaves decode out
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 128)]
    generate: usize,

    /// Tokens in the cache before; several, with commas between, are measured one after the other
    #[arg(short, long, value_name = "TOKENS,...", value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,

    /// Sequences that are decoded together; several numbers, with commas between, are measured one after the other
    #[arg(short, long, value_name = "SEQUENCES,...", value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,

    /// Measure seeing and drawing pictures instead of text; -n counts steps
    #[arg(long, conflicts_with_all = ["prompt", "depth", "batch", "profile", "against"])]
    pictures: bool,

    /// Tell where the time of each figure goes, operation by operation
    #[arg(long, conflicts_with = "against")]
    profile: bool,

    /// Compare with this program, the `llama-bench` of llama.cpp or ik_llama.cpp, in turn. May be given several times
    #[arg(long, value_name = "PATH")]
    against: Vec<PathBuf>,

    /// Arguments for the programs of --against: once for all of them, or once for each
    #[arg(long, value_name = "ARGS", requires = "against", allow_hyphen_values = true)]
    against_args: Vec<String>,

    /// Seconds that a program of --against may take for a round
    #[arg(long, value_name = "SECONDS", requires = "against", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..))]
    against_timeout: u64,

    /// How often to measure
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,

    #[command(flatten)]
    load: LoadArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// More sequences than the engine ever puts into a step.
const MOST_SEQUENCES: usize = 64;

/// A list of the command line, each number once, smallest first.
fn sorted(list: &[usize]) -> Vec<usize> {
    let mut list = list.to_vec();
    list.sort_unstable();
    list.dedup();
    list
}

/// What may not be said together.
fn check(args: &Args, batches: &[usize]) -> Result<()> {
    ensure!(args.prompt + args.generate > 0, "nothing to measure: -p and -n are both 0");
    if batches.iter().any(|b| !(1..=MOST_SEQUENCES).contains(b)) {
        bail!("-b {}: expected 1 to {MOST_SEQUENCES}, as many as the engine decodes together", join(batches));
    }
    if args.generate == 0 && batches != [1] {
        bail!("-b {} counts sequences that are decoded, and -n 0 leaves decoding out", join(batches));
    }
    if let (Some(path), false) = (args.against.first(), args.load.adapter.is_empty()) {
        bail!("--against {}: the peer would run without the adapter; leave out --adapter", path.display());
    }
    Ok(())
}

fn join(list: &[usize]) -> String {
    list.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.pictures {
        return run_pictures(args);
    }
    let (depths, batches) = (sorted(&args.depth), sorted(&args.batch));
    check(args, &batches)?;
    let size = Size {
        depth: depths[depths.len() - 1],
        prompt: args.prompt,
        generate: args.generate,
        sequences: batches[batches.len() - 1],
    };
    let figures = Figure::all(args.prompt, args.generate, &depths, &batches);
    let mut peers = against::open(&args.against, &args.against_args, Duration::from_secs(args.against_timeout))?;

    let mut device = Device::open(&args.load, Precision::Fast)?;
    let timed = args.profile.then(|| Arc::new(Timed::new(device.backend.clone())));
    if let Some(timed) = &timed {
        device.backend = timed.clone();
    }
    let room = Room::Sequences { longest: size.longest(), together: size.cache_tokens() };
    let (loaded, ()) = load_on(&device, &args.load, args.load.named(args.first.as_deref())?, room, |_| Ok(()))?;
    let pool = match &device.cpu {
        Some(cpu) => cpu.pool().clone(),
        None => Pool::new(1).context("threads")?,
    };
    plan_peers(&mut peers, &loaded, &device, &figures, pool.threads(), &size)?;

    let Loaded { model, kv, context, .. } = &loaded;
    let precision = device.backend.precision();
    let form = match precision {
        Precision::Exact => LatentForm::Absorbed,
        Precision::Fast => LatentForm::Plain,
    };
    let spinner = Spinner::new("measuring");
    let runner = ModelRunner::new(loaded.decoder.clone(), size.options(*context, *kv))?;
    let mut lanes = Lanes::new(runner, form, size);
    let mut counter = Counter::new(model, *kv, form, size)?;
    let mut bench =
        Bench { lanes: &mut lanes, counter: &mut counter, pool: &pool, timed: timed.clone(), spinner: &spinner };
    bench.warm(&figures)?;
    let level = device.cpu.as_ref().map_or_else(best_level, |cpu| cpu.level());
    let peak = arithmetic_peak(&pool, level)?;
    // What is measured with does not count as the model's memory.
    let before = machine::peak_bytes();
    let probe = BandwidthProbe::new(&pool)?;
    let measured = bench.rounds(&figures, args.repetitions, &probe, &mut peers)?;
    let after = machine::peak_bytes().map(|n| n.saturating_sub(BandwidthProbe::BYTES as u64));
    drop(spinner);

    let report = Report {
        loaded: &loaded,
        device: &device,
        threads: pool.threads(),
        repetitions: args.repetitions,
        arithmetic: Arithmetic::of(model, precision, &peak)?,
        peak,
        peak_memory: before.max(after),
        single: (depths.len() == 1 && batches.len() == 1).then_some((
            args.prompt,
            args.generate,
            depths[0],
            batches[0],
        )),
        measured: &measured,
        peers: &peers,
    };
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", report.json())?;
    } else {
        report.print(&mut out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn best_level() -> Level {
    Level::present().last().expect("invariant: there is a level that every machine has")
}

/// Tells every peer what it will be asked for, and sees that memory suffices for it beside us.
fn plan_peers(
    peers: &mut [against::Peer],
    loaded: &Loaded,
    device: &Device,
    figures: &[Figure],
    threads: usize,
    size: &Size,
) -> Result<()> {
    let archive = &loaded.model.archive;
    for peer in &mut *peers {
        ensure!(
            archive.kind() == Kind::Gguf && archive.path().is_file(),
            "--against {}: it reads a GGUF file, and {} is none (`fathom convert` writes one)",
            peer.name(),
            loaded.name
        );
        ensure!(
            device.cpu.is_some() && loaded.kv == DType::F16,
            "--against {}: it computes on the cpu with a cache in f16; leave out --backend, --kv-type and --precision",
            peer.name()
        );
        peer.plan(archive.path(), figures, threads)?;
    }
    let per_token = loaded.model.spec.kv_bytes_per_token(loaded.kv) as u64;
    // What we have yet to touch is not free.
    let ours = per_token * size.cache_tokens() as u64 + BandwidthProbe::BYTES as u64;
    let left = machine::available_bytes().map(|n| n.saturating_sub(ours));
    against::check_memory(peers, archive.total_bytes(), per_token * size.longest() as u64, left)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_taken_in_order_and_once() {
        assert_eq!(sorted(&[4096, 0, 4096, 16]), [0, 16, 4096]);
        assert_eq!(join(&[1, 4]), "1,4");
    }
}
