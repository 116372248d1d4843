//! `fathom train RECIPE.toml`: the stages of a recipe, with live progress.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use fathom_core::{FormatId, Precision, format};
use fathom_cpu::{Cpu, CpuOptions};
use fathom_train::evaluate::KindResult;
use fathom_train::recipe::Products;
use fathom_train::run::{Metrics, Progress, Wish};
use fathom_train::{Recipe, Run, Stage};
use indicatif::{ProgressBar, ProgressStyle};

use crate::term;
use crate::units::{bytes, duration, grouped, rate};

#[derive(clap::Args)]
pub(super) struct RecipeArgs {
    /// The recipe: a TOML file (recipes/ has some; each key is explained there)
    #[arg(value_name = "RECIPE", required = true)]
    recipe: Option<PathBuf>,

    /// Folder of the run [default: runs/NAME]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// Only these stages [default: all that the recipe has]
    #[arg(long, value_name = "STAGE", value_delimiter = ',', value_parser = stage_parser())]
    stage: Vec<Stage>,

    /// Write the newest model to this GGUF file, after the stages
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,

    /// Format of the matrices in the GGUF file
    #[arg(long, value_name = "FORMAT", default_value = "q8_0", value_parser = parse_format, requires = "export")]
    format: FormatId,

    /// Write the model card to this file, after the stages
    #[arg(long, value_name = "FILE")]
    card: Option<PathBuf>,

    /// Threads [default: one per physical core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Watts that this machine draws: energy is then estimated where the machine has no readable counter
    #[arg(long, value_name = "WATTS", value_parser = parse_watts)]
    watts: Option<f64>,
}

fn stage_parser() -> impl clap::builder::TypedValueParser<Value = Stage> {
    use clap::builder::TypedValueParser as _;
    clap::builder::PossibleValuesParser::new(Stage::ALL.map(Stage::name)).map(|name| {
        let stage = Stage::ALL.into_iter().find(|s| s.name() == name);
        stage.expect("invariant: clap takes only the names listed")
    })
}

/// A format by its name, if it can be written to GGUF.
fn parse_format(text: &str) -> Result<FormatId, String> {
    let known = [format::F32, format::F16, format::BF16, format::Q8_0, format::Q5_0, format::Q4_0];
    let found = known.into_iter().find(|f| f.to_string().eq_ignore_ascii_case(text));
    found.ok_or_else(|| format!("expected one of {}", known.map(|f| f.to_string().to_lowercase()).join(", ")))
}

fn parse_watts(text: &str) -> Result<f64, String> {
    let watts: f64 = text.parse().map_err(|_| "expected a number of watts".to_owned())?;
    if watts > 0.0 && watts < 1e6 { Ok(watts) } else { Err("expected more than 0 and less than 1000000 watts".into()) }
}

pub(super) fn run(args: &RecipeArgs) -> Result<ExitCode> {
    let file = args.recipe.as_ref().context("name a recipe")?;
    let recipe = Recipe::open(file)?;
    let folder = args.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(&recipe.name));
    let threads = args.threads.map(usize::from);
    let server = Cpu::new(CpuOptions { threads, isa: None, precision: Precision::Exact, repack: false })?;
    let products = match recipe.products {
        Products::Bf16 => fathom_cpu::Products::Bf16,
        Products::F32 => fathom_cpu::Products::F32,
    };
    // One pool for both: two would fight for the cores.
    let learner = Cpu::training(server.pool().clone(), None, products)?;
    let run = Run::open(recipe, &folder, (learner, server), args.watts)?;
    term::catch_interrupts(2)?;
    let stages = if args.stage.is_empty()
        && (args.export.is_some() || args.card.is_some())
        && folder.join("results.json").exists()
    {
        Vec::new()
    } else if args.stage.is_empty() {
        Stage::ALL.to_vec()
    } else {
        args.stage.clone()
    };
    for stage in stages {
        let mut screen = Screen::default();
        let wish = run.stage(stage, &mut |progress| screen.show(progress));
        screen.clear();
        if wish? == Wish::Stop {
            eprintln!("stopped; the same command goes on from here");
            return Ok(ExitCode::from(term::INTERRUPTED));
        }
    }
    if let Some(path) = &args.export {
        run.export(path, args.format)?;
        let size = std::fs::metadata(path).map(|m| m.len()).unwrap_or(0);
        eprintln!("{}: {} ({})", path.display(), bytes(size), args.format);
    }
    if let Some(path) = &args.card {
        let text = fathom_train::card::card(&run, &file.display().to_string())?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Time between two lines where nobody watches.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What the terminal shows of a run.
#[derive(Default)]
struct Screen {
    bar: Option<ProgressBar>,
    line: Option<Instant>,
    began: Option<(Instant, u64)>,
    /// Loss and speed, smoothed as people want to see them.
    smooth: Option<(f64, f64)>,
}

impl Screen {
    fn show(&mut self, progress: Progress<'_>) -> Wish {
        match progress {
            Progress::Begins { stage, from, total } => {
                eprintln!("stage {}{}", stage.name(), if from > 0 { ", going on" } else { "" });
                self.began = Some((Instant::now(), from));
                if term::stderr_is_terminal() && total > 2 {
                    let style = ProgressStyle::with_template("{msg}\n{wide_bar}  {percent}%")
                        .expect("invariant: the template is well formed");
                    let bar = ProgressBar::new(total).with_style(style);
                    bar.set_position(from);
                    self.bar = Some(bar);
                }
            }
            Progress::Step { metrics, total } => self.step(metrics, total),
            Progress::Saved(_) => {}
            Progress::Evaluated(results) => self.say(&format!("{}\n{}", table(results), mean(results))),
            Progress::Made(path) => self.say(&format!("{}", path.display())),
        }
        if term::interrupted() { Wish::Stop } else { Wish::Continue }
    }

    fn step(&mut self, m: &Metrics, total: u64) {
        let (loss, speed) = self.smooth.unwrap_or((m.loss, m.tokens_per_s));
        let (loss, speed) = (loss + 0.05 * (m.loss - loss), speed + 0.05 * (m.tokens_per_s - speed));
        self.smooth = Some((loss, speed));
        let (began, from) = self.began.unwrap_or((Instant::now(), 0));
        let place = if m.reward.is_some() { m.step } else { m.tokens };
        let done = place.saturating_sub(from).max(1) as f64;
        let left = began.elapsed().as_secs_f64() / done * total.saturating_sub(place) as f64;
        let mut text = format!("step {}  loss {loss:.4}", grouped(m.step));
        if let Some(draft) = m.draft_loss {
            text += &format!("  draft {draft:.3}");
        }
        if let Some(r) = &m.reward {
            text += &format!("  reward {:.3}  right {:.0} %  length {:.0}", r.reward, 100.0 * r.correct, r.length);
        }
        text += &format!(
            "  lr {:.1e}  {} tokens/s  {} of {}  {} left",
            m.lr,
            rate(speed),
            grouped(place),
            grouped(total),
            duration(Duration::from_secs_f64(left)),
        );
        match &self.bar {
            Some(bar) => {
                bar.set_message(text);
                bar.set_position(place);
            }
            None if self.line.is_none_or(|l| l.elapsed() >= LINE_EVERY) => {
                self.line = Some(Instant::now());
                eprintln!("{text}");
            }
            None => {}
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// Results by kind, one line each.
pub(super) fn table(results: &[KindResult]) -> String {
    let line = |r: &KindResult| {
        let (share, low, high) = r.share();
        format!(
            "{:<10} {:<8} {:>5.1} %  ({:.0}-{:.0})  of {}, {:.0} tokens",
            r.kind,
            r.split,
            100.0 * share,
            100.0 * low,
            100.0 * high,
            r.asked,
            r.tokens
        )
    };
    results.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The mean over kinds.
fn mean(results: &[KindResult]) -> String {
    let mean = results.iter().map(|r| r.share().0).sum::<f64>() / results.len().max(1) as f64;
    format!("{:<10} {:<8} {:>5.1} %", "mean", "", 100.0 * mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_and_watts() {
        assert_eq!(parse_format("Q8_0").unwrap(), format::Q8_0);
        assert!(parse_format("q9").unwrap_err().contains("q8_0"));
        assert!(parse_watts("0").is_err() && parse_watts("x").is_err() && parse_watts("65").is_ok());
    }
}
