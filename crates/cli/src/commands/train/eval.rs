//! `fathom train eval`: how many held-out problems a model gets right, kind by kind.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use fathom_core::Precision;
use fathom_cpu::{Cpu, CpuOptions};
use fathom_engine::{ChatModel, TextOptions};
use fathom_tasks::{Generator, Mix, Split};
use fathom_text::{ChatMessage, RenderOptions, Role};
use fathom_train::evaluate::{Drawing, KindResult, evaluate, held_out};
use indicatif::{ProgressBar, ProgressStyle};

use super::recipe::table;
use crate::args::{PrecisionName, ReadArgs};
use crate::units::duration;
use crate::{source, term};

/// Ask a model held-out problems and count right answers by kind
#[derive(clap::Args)]
#[command(
    long_about = "Ask a model held-out problems and count right answers by kind.\n\n\
        The problems are those of `crates/tasks` that training never draws: numbers held out in phrasings that training knows \
        (`problem`), and phrasings held out as well (`phrasing`). Answers are greedy, through the model's chat template, and are \
        verified exactly.",
    after_help = "Examples:
  fathom train eval                                    the miniature inside, 200 problems a kind and split
  fathom train eval r1-1.5b --problems 20 --max-tokens 2000 --kind add,countdown
  fathom train eval mini.gguf --json                   counts, a wrong answer of each kind"
)]
pub(super) struct Args {
    /// The model: a GGUF file, a directory, or a fetched name [default: the miniature inside]
    #[arg(value_name = "MODEL")]
    model: Option<String>,

    /// Problems of each kind and split
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    problems: u32,

    /// Kinds of problems, such as add,countdown [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    kind: Vec<String>,

    /// Draws the problems: the same seed asks the same ones
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Tokens of an answer, reasoning included; a longer one is cut and counts as wrong
    #[arg(long, value_name = "TOKENS", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    max_tokens: u32,

    /// Results as JSON on standard output
    #[arg(long)]
    json: bool,

    /// A LoRA adapter beside the model: a directory that `fathom train lora` or PEFT wrote
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,

    /// Threads [default: one per physical core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// exact: float32 throughout; fast: activations rounded where that is quicker
    #[arg(long, value_name = "HOW", value_enum, default_value = "exact")]
    precision: PrecisionName,

    #[command(flatten)]
    read: ReadArgs,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let known = Generator::kinds();
    if let Some(kind) = args.kind.iter().find(|k| !known.contains(&k.as_str())) {
        bail!("--kind {kind}: the kinds are {}", known.join(", "));
    }
    let kinds = if args.kind.is_empty() { known.into_iter().map(str::to_owned).collect() } else { args.kind.clone() };
    let mut model = source::locate(args.model.as_deref())?.open(&args.read.options())?;
    if let Some(dir) = &args.adapter {
        model.adapt(dir)?;
    }
    let chat = ChatModel::new(&model.vocab()?)?;
    let precision: Precision = args.precision.precision();
    let threads = args.threads.map(usize::from);
    let cpu = Cpu::new(CpuOptions { threads, isa: None, precision, ..CpuOptions::default() })?;
    let generator = Generator::new(&Mix::default())?;
    let drawing = Drawing::greedy(args.max_tokens as usize);
    let mut all: Vec<KindResult> = Vec::new();
    let start = Instant::now();
    let bar = term::stderr_is_terminal().then(|| {
        let style = ProgressStyle::with_template("{msg}  {wide_bar}  {pos} of {len}");
        ProgressBar::new(2 * kinds.len() as u64).with_style(style.expect("invariant: the template is well formed"))
    });
    for split in [Split::Problem, Split::Phrasing] {
        // Kind by kind, so that there is something to see.
        for kind in &kinds {
            bar.iter().for_each(|b| b.set_message(format!("{kind}, {}", split.name())));
            let samples = held_out(&generator, std::slice::from_ref(kind), split, args.problems as usize, args.seed)?;
            let prompt = |question: &str| -> Result<Vec<u32>> {
                let messages = [ChatMessage::new(Role::User, question)];
                Ok(chat.chat(&messages, &RenderOptions::default(), &TextOptions::default())?.0.prompt)
            };
            let prompts = samples.iter().map(|s| prompt(&s.question)).collect::<Result<Vec<_>>>()?;
            let decoder = model.load(cpu.clone(), &mut |_, _| {})?;
            let (results, _) = evaluate(decoder, chat.tokenizer(), &prompts, &samples, split, &drawing)?;
            let line = table(&results);
            bar.iter().for_each(|b| b.inc(1));
            match &bar {
                Some(bar) => bar.suspend(|| eprintln!("{line}")),
                None => eprintln!("{line}"),
            }
            all.extend(results);
        }
    }
    bar.iter().for_each(ProgressBar::finish_and_clear);
    let share = |split: Split| {
        let of: Vec<f64> = all.iter().filter(|r| r.split == split.name()).map(|r| r.share().0).collect();
        of.iter().sum::<f64>() / of.len().max(1) as f64
    };
    let (problem, phrasing) = (share(Split::Problem), share(Split::Phrasing));
    if args.json {
        // How many kinds reach what the built-in model is held to.
        let reach = |split: Split, at| all.iter().filter(|r| r.split == split.name() && r.share().0 >= at).count();
        let kinds = serde_json::json!({ "problem_95": reach(Split::Problem, 0.95), "phrasing_90": reach(Split::Phrasing, 0.9) });
        let mean = serde_json::json!({ "problem": problem, "phrasing": phrasing });
        let out = serde_json::json!({ "results": all, "mean": mean, "kinds": kinds });
        println!("{}", serde_json::to_string_pretty(&out)?);
    } else {
        println!("mean {:.1} % in known phrasings, {:.1} % in held-out ones", 100.0 * problem, 100.0 * phrasing);
    }
    eprintln!("{} problems in {}", all.iter().map(|r| r.asked).sum::<usize>(), duration(start.elapsed()));
    Ok(ExitCode::SUCCESS)
}
