//! `fathom run`: one question, one answer.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use fathom_engine::{Ending, TextOptions, with_pictures};
use fathom_text::{ChatMessage, Role};
use serde_json::json;

use crate::args::{ChatArgs, Draft, LoadArgs, SamplingArgs};
use crate::assistant::{Answer, Assistant, Piece};
use crate::show_picture;
use crate::term::{self, Spinner};

/// Answer one prompt
#[derive(clap::Args)]
#[command(after_help = "Examples:
  fathom run -m r1-1.5b 'Why is the sky blue?'
  fathom run -m r1-7b < question.txt
  fathom run -m janus-pro-1b --image cat.jpg 'What is it doing?'
  git diff | fathom run -m r1-7b 'Review this change:'       the prompt, then standard input
  fathom run -m r1-7b --json 'Is 91 prime?' | jq -r .text
  fathom run -m r1-7b --temperature 0 --think off 'Name three fish.'
  fathom run -m base.gguf --no-template 'Once upon a time' --max-tokens 50

The answer goes to standard output, reasoning and remarks to standard error. With --json both are in one object, with
`finish_reason` (stop, length or cancelled), `usage`, `timings` and the `seed` that repeats the answer.")]
pub(crate) struct Args {
    /// The prompt; what comes on standard input is appended
    #[arg(value_name = "PROMPT", allow_hyphen_values = true)]
    prompt: Option<String>,

    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    chat: ChatArgs,

    /// A picture that the prompt is about (PNG, JPEG or WebP); may be given several times
    #[arg(long, value_name = "FILE", help_heading = "Conversation")]
    image: Vec<PathBuf>,

    /// Continue the prompt as plain text, without the model's chat template
    #[arg(long, conflicts_with_all = ["system", "think", "think_budget", "image"], help_heading = "Conversation")]
    no_template: bool,

    /// Guess tokens ahead
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Draft::Off, help_heading = "Machine")]
    draft: Draft,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    args.sampling.check()?;
    let prompt = prompt(args)?;
    let pictures = args.image.iter().map(|path| show_picture::read(path)).collect::<Result<Vec<_>>>()?;
    let assistant = Assistant::start(&args.load, None, args.draft)?;
    if !pictures.is_empty() && !assistant.chat.sees() {
        bail!("{} does not see pictures; Janus and Janus-Pro do", assistant.name);
    }
    let count = pictures.len();
    let options = TextOptions { pictures, ..args.sampling.options(&assistant.defaults, args.chat.think_budget) };
    let request = if args.no_template {
        assistant.chat.complete(&prompt, &options)?
    } else {
        let mut messages = Vec::new();
        messages.extend(args.chat.system.as_ref().map(|text| ChatMessage::new(Role::System, text)));
        messages.push(ChatMessage::new(Role::User, with_pictures(count, &prompt)));
        assistant.turn(&messages, args.chat.thinking(), &options)?
    };
    term::catch_interrupts(2)?;
    let answer =
        if args.json { assistant.ask(request, &mut |_| Ok(()))? } else { print_as_it_comes(&assistant, request)? };
    if args.json {
        let (usage, timings) = answer.usage_json(assistant.load);
        let stop_string = match &answer.ending {
            Ending::StopString(text) => Some(text),
            _ => None,
        };
        let json = json!({
            "model": assistant.name,
            "text": answer.text,
            "reasoning": answer.reasoning,
            "finish_reason": answer.finish_reason(),
            "stop_string": stop_string,
            "seed": options.seed,
            "usage": usage,
            "timings": timings,
        });
        writeln!(io::stdout(), "{json:#}")?;
    } else {
        if let Some(remark) = answer.remark(assistant.context, options.max_tokens) {
            term::note(&remark);
        }
        if term::stderr_is_terminal() {
            term::note(&answer.summary());
        }
    }
    Ok(if answer.ending == Ending::Cancelled { ExitCode::from(term::INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// The prompt from the command line, standard input, or both.
fn prompt(args: &Args) -> Result<String> {
    let piped = if io::stdin().is_terminal() {
        None
    } else {
        let text = io::read_to_string(io::stdin()).context("standard input: expected UTF-8 text")?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        (!text.is_empty()).then(|| text.to_owned())
    };
    match (&args.prompt, piped) {
        (Some(prompt), Some(piped)) => Ok(format!("{prompt}\n\n{piped}")),
        (Some(prompt), None) => Ok(prompt.clone()),
        (None, Some(piped)) => Ok(piped),
        (None, None) => bail!("there is no prompt: give one as an argument or on standard input"),
    }
}

/// Streams the answer to standard output and the reasoning to standard error.
fn print_as_it_comes(
    assistant: &Assistant,
    request: (fathom_engine::Request, fathom_engine::Transcriber),
) -> Result<Answer> {
    let mut spinner = Spinner::new("reading the prompt");
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let dim = term::stderr_is_terminal();
    let mut reasoned = false;
    let answer = assistant.ask(request, &mut |piece| {
        spinner.clear();
        match piece {
            Piece::Reasoning(text) => {
                reasoned = true;
                write!(err, "{}", if dim { term::dim(text) } else { text.into() })?;
            }
            Piece::Text(text) => {
                if std::mem::take(&mut reasoned) {
                    err.write_all(b"\n\n")?;
                }
                out.write_all(text.as_bytes())?;
                out.flush()?;
            }
            Piece::TextWasReasoning => term::note("\n(all of this was reasoning)"),
        }
        Ok(())
    })?;
    drop(spinner);
    if reasoned {
        err.write_all(b"\n")?;
    }
    if !answer.text.is_empty() && !answer.text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(answer)
}
