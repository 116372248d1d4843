//! `fathom train lora`: an adapter for an existing model, from conversations.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fathom_cpu::{Cpu, CpuOptions};
use fathom_engine::ChatModel;
use fathom_train::conversations::{Conversations, Text};
use fathom_train::lora::{Lora, Progress, Settings, modules};
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::{MODEL_HELP, PrecisionName, ReadArgs};
use crate::units::{bytes, duration, grouped, rate};
use crate::{machine, source, term};

/// Teach an existing model by examples, without changing its file (LoRA)
#[derive(clap::Args)]
#[command(
    long_about = "Teach an existing model by examples, without changing its file (LoRA).\n\n\
        DATA is a file of conversations, one JSON object a line:\n\n  \
        {\"messages\": [{\"role\": \"user\", \"content\": \"Who wrote this?\"}, {\"role\": \"assistant\", \"content\": \"Ada.\"}]}\n\n\
        Every turn of the assistant is learned from, through the model's own chat template; what stands before it is only read. \
        Reasoning may stand in `reasoning_content` or between <think> tags in the content. The model's weights stay as they are, \
        also quantised; beside them two small matrices per projection learn, and they are all that is written: an adapter in \
        PEFT's layout, some megabytes.",
    after_help = "Examples:
  fathom train lora r1-1.5b facts.jsonl -o facts        learn; the adapter is in the folder facts
  fathom run -m r1-1.5b --adapter facts 'Who wrote this?'
  fathom train lora r1-1.5b facts.jsonl --epochs 10 --lr 5e-4 --targets q_proj,v_proj --rank 8
  fathom train merge r1-1.5b.gguf facts -o r1-facts.gguf

It has learned when the loss stays low; when answers to other questions get worse, take fewer epochs or a lower --lr.
Memory: the model's file, and about half as much again for 1,024 tokens of a 1.5 B model. Ctrl-C stops and keeps what was learned."
)]
pub(super) struct Args {
    #[arg(value_name = "MODEL", help = MODEL_HELP)]
    model: String,

    /// Conversations, one JSON object a line
    #[arg(value_name = "DATA.jsonl")]
    data: PathBuf,

    /// Folder for the adapter [default: the data's name with -adapter behind it]
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Rank of the matrices: more can hold more
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = LEARNING)]
    rank: u16,

    /// The matrices' product counts ALPHA / rank [default: twice the rank]
    #[arg(long, value_name = "ALPHA", value_parser = positive, help_heading = LEARNING)]
    alpha: Option<f32>,

    /// Projections that get matrices, such as q_proj,v_proj [default: all of them]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = LEARNING)]
    targets: Vec<String>,

    /// Highest learning rate; it rises over the first steps and falls to a tenth at the end
    #[arg(long, value_name = "RATE", default_value_t = 2e-4, value_parser = positive, help_heading = LEARNING)]
    lr: f32,

    /// How often every example is learned from
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..), help_heading = LEARNING)]
    epochs: u16,

    /// Examples per step
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..), help_heading = LEARNING)]
    batch: u16,

    /// Tokens that prompt and answer may have together; longer examples are left out and counted
    #[arg(long, value_name = "TOKENS", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..=1_048_576), help_heading = LEARNING)]
    sequence: u32,

    /// Of the matrices' beginning and the order of examples: the same seed gives the same adapter
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = LEARNING)]
    seed: u64,

    /// Threads [default: one per physical core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = MACHINE)]
    threads: Option<u16>,

    /// exact: float32 throughout; fast: activations rounded on the way forward, as serving does
    #[arg(long, value_name = "HOW", value_enum, default_value = "fast", help_heading = MACHINE)]
    precision: PrecisionName,

    #[command(flatten)]
    read: ReadArgs,
}

const LEARNING: &str = "Learning";
const MACHINE: &str = "Machine";

fn positive(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x.is_finite() && x > 0.0 => Ok(x),
        _ => Err("expected a number above 0".to_owned()),
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let place = source::locate(Some(&args.model))?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => {
            let stem = args.data.file_stem().context("DATA has no name: say with -o where the adapter goes")?;
            PathBuf::from(format!("{}-adapter", stem.to_string_lossy()))
        }
    };
    if out.join(fathom_model::adapter::WEIGHTS).exists() {
        bail!("{} holds an adapter already: take another folder with -o, or delete it", out.display());
    }
    let model = place.open(&args.read.options())?;
    let known = modules(&model);
    if let Some(name) = args.targets.iter().find(|t| !known.contains(t)) {
        bail!("--targets {name}: this model's projections are {}", known.join(", "));
    }
    let chat = ChatModel::new(&model.vocab()?)?;
    let text = Text { tokenizer: chat.tokenizer(), template: chat.template()? };
    let most = args.sequence as usize;
    ensure!(
        most <= model.spec.context,
        "--sequence {most}: this model was made for {} tokens",
        grouped(model.spec.context as u64)
    );
    let data = Conversations::read(&args.data, text, most)?;
    describe(&data, most);

    let settings = Settings {
        rank: args.rank.into(),
        alpha: args.alpha.unwrap_or(2.0 * f32::from(args.rank)),
        modules: args.targets.clone(),
        lr: args.lr,
        epochs: args.epochs.into(),
        batch: args.batch.into(),
        rows: most,
        seed: args.seed,
        ..Settings::default()
    };
    let options = CpuOptions {
        threads: args.threads.map(usize::from),
        isa: None,
        precision: args.precision.precision(),
        repack: false,
    };
    let mut lora = Lora::new(model, settings, Cpu::new(options)?)?;
    eprintln!("{} numbers learn; {}'s own stay as they are", grouped(lora.parameters() as u64), args.model);
    term::catch_interrupts(2)?;
    let mut screen = Screen::default();
    let done = lora.learn(&data.examples, |p| {
        screen.show(p);
        !term::interrupted()
    });
    let last = screen.finish();
    let done = done?;
    lora.save(&out, &args.model)?;
    if let Some(p) = last {
        eprintln!(
            "{} tokens in {}, {} tokens/s, loss {:.4}, at most {} of memory",
            grouped(p.tokens as u64),
            duration(p.took),
            rate(p.tokens as f64 / p.took.as_secs_f64()),
            p.loss,
            machine::peak_bytes().map_or("an unknown amount".into(), bytes),
        );
    }
    eprintln!(
        "{}: the adapter. Try it:\n  fathom run -m {} --adapter {} '...'",
        out.display(),
        args.model,
        out.display()
    );
    if !done {
        eprintln!("stopped before the end; what was learned until then is kept");
        return Ok(ExitCode::from(term::INTERRUPTED));
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what is learned from, and what is not.
fn describe(data: &Conversations, most: usize) {
    let tokens: usize = data.examples.iter().map(|e| e.tokens.len()).sum();
    let answers: usize = data.examples.iter().map(|e| e.tokens.len() - e.from).sum();
    eprintln!(
        "{} answers in {} conversations: {} tokens, {} of them to learn",
        grouped(data.examples.len() as u64),
        grouped(data.lines as u64),
        grouped(tokens as u64),
        grouped(answers as u64)
    );
    if !data.too_long.is_empty() {
        let some: Vec<String> = data.too_long.iter().take(5).map(|(line, n)| format!("line {line} ({n})")).collect();
        let more = data.too_long.len().saturating_sub(5);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        eprintln!(
            "{} answers are left out: with their prompts they have more than {most} tokens: {}{more}; --sequence allows more",
            grouped(data.too_long.len() as u64),
            some.join(", "),
        );
    }
    for (key, lines) in &data.unused {
        eprintln!("`{key}` has no effect (in {} lines)", grouped(*lines as u64));
    }
}

/// Time between two lines where nobody watches.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What the terminal shows.
#[derive(Default)]
struct Screen {
    bar: Option<ProgressBar>,
    line: Option<Instant>,
    last: Option<Progress>,
}

impl Screen {
    fn show(&mut self, p: &Progress) {
        self.last = Some(*p);
        let text = format!(
            "step {} of {}  loss {:.4}  norm {:.2}  lr {:.1e}  {} tokens/s  {} left",
            grouped(p.step as u64),
            grouped(p.steps as u64),
            p.loss,
            p.norm,
            p.lr,
            rate(p.tokens as f64 / p.took.as_secs_f64()),
            duration(p.left),
        );
        if term::stderr_is_terminal() {
            let bar = self.bar.get_or_insert_with(|| {
                let style = ProgressStyle::with_template("{msg}\n{wide_bar}  {percent}%");
                ProgressBar::new(p.steps as u64).with_style(style.expect("invariant: the template is well formed"))
            });
            bar.set_message(text);
            bar.set_position(p.step as u64);
        } else if p.step == p.steps || self.line.is_none_or(|l| l.elapsed() >= LINE_EVERY) {
            self.line = Some(Instant::now());
            eprintln!("{text}");
        }
    }

    /// Takes the bar away; the last step.
    fn finish(&mut self) -> Option<Progress> {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.last
    }
}
