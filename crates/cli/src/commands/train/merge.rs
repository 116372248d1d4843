//! `fathom train merge`: an adapter worked into a model's file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use fathom_core::{FormatId, format};
use fathom_model::Adapter;
use fathom_train::merge::merge;

use crate::args::ReadArgs;
use crate::source;
use crate::term::ByteBar;

/// Work an adapter into a copy of its model
#[derive(clap::Args)]
#[command(after_help = "Examples:
  fathom train merge r1-1.5b facts -o r1-facts.gguf                  adapted projections in the format that they had
  fathom train merge r1-1.5b facts -o r1-facts.gguf --format q8_0    larger, and nearer to the adapter beside the model

Projections are rounded again when they are stored. The last line says how much that loses beside what the adapter changes.")]
pub(super) struct Args {
    /// A GGUF file, or the name of one fetched with `fathom pull`
    #[arg(value_name = "MODEL")]
    model: String,

    /// The adapter's folder
    #[arg(value_name = "ADAPTER")]
    adapter: PathBuf,

    /// The new file
    #[arg(short, long, value_name = "OUT.gguf")]
    out: PathBuf,

    /// Format of the adapted projections [default: as they were]
    #[arg(long, value_name = "FORMAT", value_parser = parse_format)]
    format: Option<FormatId>,

    #[command(flatten)]
    read: ReadArgs,
}

fn parse_format(text: &str) -> Result<FormatId, String> {
    let known = [format::F32, format::F16, format::BF16, format::Q8_0, format::Q6_K, format::Q5_K, format::Q4_K];
    let found = known.into_iter().find(|f| f.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| format!("expected one of {}", known.map(|f| f.name().to_lowercase()).join(", ")))
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    if args.out.exists() {
        bail!("{} is there already: name another file with -o, or delete it", args.out.display());
    }
    let model = source::locate(Some(&args.model))?.open(&args.read.options())?;
    let adapter = Adapter::open(&args.adapter, &model.spec)?;
    let mut bar = ByteBar::new("merging");
    let merged = merge(&model, &adapter, args.format, &args.out, &mut |done, total| bar.update(done, total, 0));
    drop(bar);
    let merged = merged?;
    let percent = |x: f64| format!("{:.2} %", 100.0 * x);
    eprintln!(
        "{}: {} projections changed by {} of their size; storing them lost {}",
        args.out.display(),
        merged.tensors,
        percent(merged.change),
        percent(merged.rounding)
    );
    if merged.rounding > merged.change {
        eprintln!("that is more than the adapter changes: --format q8_0 or f16 keeps it");
    }
    Ok(ExitCode::SUCCESS)
}
