//! The subcommands, one file each, and what `fathom --help` says of them.

mod bench;
mod chat;
mod completions;
mod convert;
mod draw;
mod logits;
mod models;
mod pull;
mod run;
mod serve;
mod show;
mod tokenize;
mod train;
mod verify;

use std::process::ExitCode;

use anyhow::Result;

/// The command line.
#[derive(clap::Parser)]
#[command(
    name = "fathom",
    version,
    about = "DeepSeek's open models on your own hardware",
    long_about = "DeepSeek's open models on your own hardware: V3, R1, V2 and their relatives, and every R1 distil.\n\n\
        Without a command, fathom chats.",
    after_help = EXAMPLES,
    max_term_width = 110,
    arg_required_else_help = false
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "Start here:
  fathom pull r1-1.5b                  fetch the smallest R1 distil (1.1 GB)
  fathom -m r1-1.5b                    talk to it

More:
  fathom run -m r1-1.5b 'Why is the sky blue?'
  git diff | fathom run -m r1-7b 'Review this change:'
  fathom serve r1-7b                   OpenAI's, Anthropic's and Ollama's APIs, and a page
  fathom show r1-7b                    what it is and the memory it takes
  fathom bench r1-7b                   how fast it runs here

Exit status: 0 done, 1 failed, 2 wrong command line, 130 interrupted.
`fathom COMMAND --help` has examples for each command.";

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    Chat(Box<chat::Args>),
    Run(Box<run::Args>),
    Serve(Box<serve::Args>),
    Draw(Box<draw::Args>),
    Convert(convert::Args),
    Show(show::Args),
    Tokenize(tokenize::Args),
    Logits(logits::Args),
    Verify(verify::Args),
    Bench(bench::Args),
    Train(Box<train::Args>),
    Pull(pull::Args),
    List(models::ListArgs),
    Rm(models::RmArgs),
    Completions(completions::CompletionsArgs),
    #[command(hide = true)]
    Man(completions::ManArgs),
}

impl Command {
    /// Carries it out.
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self {
            Command::Chat(args) => chat::run(&args),
            Command::Run(args) => run::run(&args),
            Command::Serve(args) => serve::run(&args),
            Command::Draw(args) => draw::run(&args),
            Command::Convert(args) => convert::run(&args),
            Command::Show(args) => show::run(&args),
            Command::Tokenize(args) => tokenize::run(args),
            Command::Logits(args) => logits::run(&args),
            Command::Verify(args) => verify::run(&args),
            Command::Bench(args) => bench::run(&args),
            Command::Train(args) => train::run(&args),
            Command::Pull(args) => pull::run(&args),
            Command::List(args) => models::list(&args),
            Command::Rm(args) => models::rm(&args),
            Command::Completions(args) => completions::completions(&args),
            Command::Man(args) => completions::man(&args),
        }
    }
}
