//! `fathom verify`: runs models over recorded prompts and says how far they are from the recording.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use fathom_core::Precision;
use fathom_engine::golden::{Golden, Limits, Report, find, verify};
use fathom_model::spec::Ffn;
use fathom_model::{Error as ModelError, Model};
use serde_json::json;

use crate::args::LoadArgs;
use crate::load::{Device, Room, context};
use crate::term::Spinner;

/// What fast precision must keep on models without routing (root mean square, relative).
const FAST_RMS: f64 = 0.03;

/// Compare models with recordings of another implementation
#[derive(clap::Args)]
#[command(after_help = "Examples:
  fathom verify testdata/models                          all goldens of the repository
  fathom verify testdata/models/qwen2 --backend reference
  fathom verify testdata/models/qwen2 --precision fast --isa portable

A golden directory holds golden.safetensors and golden.json beside a model's files, or NAME.golden.safetensors beside
NAME.gguf. Exit status 1 if anything is beyond tolerance: in exact precision absolute differences of logits above 2e-4,
relative root mean square differences above 1e-5, other experts or other greedy tokens; in fast precision a relative
root mean square difference above 0.03 (a choice of experts that rounding flips is shown, not judged).")]
pub(crate) struct Args {
    /// Directory with goldens; those below it are found too
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,

    #[command(flatten)]
    load: LoadArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One golden and what came of it.
struct Row {
    name: String,
    outcome: Outcome,
}

enum Outcome {
    Measured(Box<Report>, Vec<String>),
    /// Not run; why.
    LeftOut(String),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let dir = match (&args.dir, &args.load.model) {
        (Some(dir), None) => dir.clone(),
        (None, Some(dir)) => PathBuf::from(dir),
        (Some(dir), Some(model)) => bail!("the directory is named twice: {} and -m {model}", dir.display()),
        (None, None) => bail!("name a directory with goldens, such as testdata/models"),
    };
    ensure!(args.load.adapter.is_empty(), "--adapter: the recordings are of models without one; leave it out");
    let device = Device::open(&args.load, Precision::Exact)?;
    let goldens = find(&dir)?;
    ensure!(
        !goldens.is_empty(),
        "{}: no golden.safetensors and no NAME.golden.safetensors in it or below it",
        dir.display()
    );
    let mut rows = Vec::new();
    for (i, golden) in goldens.iter().enumerate() {
        let _spinner = Spinner::new(format!("{} of {}: {}", i + 1, goldens.len(), golden.name));
        rows.push(Row { name: golden.name.clone(), outcome: measure(golden, &device, args)? });
    }
    let beyond =
        rows.iter().filter(|r| matches!(&r.outcome, Outcome::Measured(_, faults) if !faults.is_empty())).count();
    print(&rows, &device, args.json)?;
    Ok(if beyond == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(golden: &Golden, device: &Device, args: &Args) -> Result<Outcome> {
    if args.load.read.asked().is_some_and(|asked| asked != golden.options) {
        return Ok(Outcome::LeftOut("recorded with the other reading of attn_factor".into()));
    }
    let model = match Model::open(&golden.model, &golden.options) {
        Err(ModelError::Refused { what, why }) => return Ok(Outcome::LeftOut(format!("{what}: {why}"))),
        opened => opened?,
    };
    let precision = device.backend.precision();
    let kv = args.load.kv_dtype(precision);
    let tokens = golden.prompts.iter().map(|p| p.ids.len() + p.greedy.as_ref().map_or(0, Vec::len)).max();
    context(&model, kv, &args.load, Room::Tokens(tokens.unwrap_or(0)))?;
    let routed = model.spec.layers.iter().any(|l| matches!(l.ffn, Ffn::Moe { .. }));
    let report = verify(golden, device.backend.clone(), kv)?;
    let faults = match precision {
        Precision::Exact => report.faults(&Limits::EXACT),
        // A choice of experts that rounding flips is no error, and its effect is as large as chance makes it.
        Precision::Fast if routed || report.logits.rms_rel() <= FAST_RMS => Vec::new(),
        Precision::Fast => vec![format!("logits: rms rel {:.2e}", report.logits.rms_rel())],
    };
    Ok(Outcome::Measured(Box::new(report), faults))
}

fn print(rows: &[Row], device: &Device, as_json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    if as_json {
        let entries = rows.iter().map(|row| match &row.outcome {
            Outcome::LeftOut(why) => json!({ "name": row.name, "left_out": why }),
            Outcome::Measured(r, faults) => json!({
                "name": row.name,
                "architecture": r.family,
                "formats": r.formats.iter().map(|(name, n)| json!({ "format": name, "tensors": n })).collect::<Vec<_>>(),
                "logits_max_abs": r.logits.max_abs,
                "logits_rms_rel": r.logits.rms_rel(),
                "logits_kl": r.logits.kl(),
                "hidden_rms_rel": r.hidden.as_ref().map(|h| h.0),
                "experts": { "recorded": r.experts.0, "equal": r.experts.1 },
                "greedy": { "recorded": r.greedy.recorded, "equal": r.greedy.equal, "excused": r.greedy.excused },
                "draft_rms_rel": r.drafts.map(|d| d.rms_rel()),
                "faults": faults,
            }),
        });
        let json = json!({ "device": device.describe(), "goldens": entries.collect::<Vec<_>>() });
        writeln!(out, "{json:#}")?;
        return Ok(());
    }
    let width = rows.iter().map(|r| r.name.chars().count()).max().unwrap_or(0).max(6);
    writeln!(
        out,
        "{:<width$}  {:<13}{:<9}{:>9}{:>9}{:>9}{:>11}{:>10}  verdict",
        "golden", "architecture", "format", "max abs", "rms rel", "hidden", "experts", "greedy"
    )?;
    let (mut good, mut beyond, mut left_out) = (0, 0, 0);
    for row in rows {
        let name = &row.name;
        let (r, faults) = match &row.outcome {
            Outcome::Measured(r, faults) => (r, faults),
            Outcome::LeftOut(why) => {
                left_out += 1;
                writeln!(out, "{name:<width$}  left out: {why}")?;
                continue;
            }
        };
        let hidden = r.hidden.as_ref().map_or("-".into(), |h| format!("{:.1e}", h.0));
        let experts = if r.experts.0 == 0 { "-".into() } else { format!("{}/{}", r.experts.1, r.experts.0) };
        let greedy = match r.greedy.recorded {
            0 => "-".into(),
            n if r.greedy.excused > 0 => format!("{}/{n}*", r.greedy.equal),
            n => format!("{}/{n}", r.greedy.equal),
        };
        let verdict = if faults.is_empty() { "ok".into() } else { format!("BEYOND: {}", faults.join("; ")) };
        if faults.is_empty() {
            good += 1
        } else {
            beyond += 1
        }
        writeln!(
            out,
            "{name:<width$}  {:<13}{:<9}{:>9}{:>9}{hidden:>9}{experts:>11}{greedy:>10}  {verdict}",
            r.family,
            r.formats.first().map_or("-", |f| &f.0),
            format!("{:.1e}", r.logits.max_abs),
            format!("{:.1e}", r.logits.rms_rel()),
        )?;
    }
    let precision = match device.backend.precision() {
        Precision::Exact => "exact",
        Precision::Fast => "fast",
    };
    writeln!(
        out,
        "\n{good} within tolerance, {beyond} beyond, {left_out} left out ({}, {precision})",
        device.describe()
    )?;
    if rows.iter().any(|r| matches!(&r.outcome, Outcome::Measured(r, _) if r.greedy.excused > 0)) {
        writeln!(out, "* followed up to the first step whose two best logits are closer than 1e-3")?;
    }
    Ok(())
}
