//! `fathom pull`: fetches a model from the hub into the hub's own cache.

use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::Result;
use fathom_hub::{DISTILS, Hub, Progress, Stage};

use crate::term::{self, ByteBar};
use crate::units;

/// Fetch a model from Hugging Face, or resume doing so
#[derive(clap::Args)]
#[command(after_help = after_help())]
pub(crate) struct Args {
    /// ORG/REPO, ORG/REPO:FILE, ORG/REPO:TYPE (a GGUF type), or one of the short names below
    #[arg(value_name = "NAME")]
    name: String,

    /// Print what was fetched as JSON
    #[arg(long)]
    json: bool,
}

fn after_help() -> String {
    let mut text =
        "Short names (append :Q8_0 for another type, :safetensors for the publisher's own files):\n".to_owned();
    for d in DISTILS {
        text +=
            &format!("  {:<9}{:>6.1} B parameters {:>6.1} GB   {}\n", d.short, d.parameters_b, d.gguf_gb, d.licence);
    }
    text + "
Examples:
  fathom pull r1-1.5b
  fathom pull deepseek-ai/DeepSeek-V2-Lite-Chat
  fathom pull bartowski/DeepSeek-R1-Distill-Qwen-7B-GGUF:Q6_K

An interrupted pull is resumed by the same command. Files are checked against the hub's sha256 and lie in the hub's own
cache, so other tools find them and theirs are found here. HF_HOME, HF_HUB_CACHE, HF_ENDPOINT and HF_TOKEN are honoured;
the token goes to the endpoint and nowhere else."
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let hub = Hub::from_env()?;
    term::catch_interrupts(2)?;
    let mut display = Display::new();
    let pulled = hub.pull(&args.name, &mut |progress| {
        display.show(progress);
        if term::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    drop(display);
    let pulled = match pulled {
        Err(fathom_hub::Error::Cancelled) => {
            eprintln!("fathom: {}", fathom_hub::Error::Cancelled);
            return Ok(ExitCode::from(term::INTERRUPTED));
        }
        other => other?,
    };
    let mut out = io::stdout().lock();
    if args.json {
        let json = serde_json::json!({
            "repo": pulled.repo, "commit": pulled.commit, "path": pulled.path, "files": pulled.files,
            "total_bytes": pulled.total_bytes, "received_bytes": pulled.received_bytes,
        });
        writeln!(out, "{json:#}")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{}", pulled.path.display())?;
    let news = match pulled.received_bytes {
        0 => "all here already".to_owned(),
        n => format!("{} fetched", units::bytes(n)),
    };
    term::note(&format!(
        "{}: {}, {news}. Talk to it: fathom -m {}",
        pulled.repo,
        units::bytes(pulled.total_bytes),
        args.name
    ));
    Ok(ExitCode::SUCCESS)
}

/// The progress of a pull: a bar where someone watches, else a line per file and retry.
struct Display {
    bar: ByteBar,
    /// Bytes that were on disk before this call.
    had: Option<u64>,
    last: Option<(Stage, String)>,
}

impl Display {
    fn new() -> Self {
        Display { bar: ByteBar::new("asking the hub"), had: None, last: None }
    }

    fn show(&mut self, p: &Progress<'_>) {
        let words = match p.stage {
            Stage::Asking => "asking the hub".to_owned(),
            Stage::Waiting => format!("waiting for another process to fetch {}", p.file),
            Stage::Fetching => format!("fetching {}", p.file),
            Stage::Checking => format!("checking {}", p.file),
            Stage::Retrying { attempt, wait } => {
                format!("connection lost; attempt {attempt} in {}", units::duration(wait))
            }
        };
        if p.total_bytes > 0 {
            let had = *self.had.get_or_insert(p.done_bytes.saturating_sub(p.received_bytes));
            self.bar.label(&words);
            self.bar.update(p.done_bytes, p.total_bytes, had);
        }
        let now = (p.stage, p.file.to_owned());
        let told = self.last.as_ref().is_some_and(|(stage, file)| {
            std::mem::discriminant(stage) == std::mem::discriminant(&now.0) && *file == now.1
        });
        if !told && !term::stderr_is_terminal() && !p.file.is_empty() {
            term::note(&words);
        }
        self.last = Some(now);
    }
}
