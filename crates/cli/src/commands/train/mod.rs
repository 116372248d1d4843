//! `fathom train`: a model from a recipe, or an adapter for an existing one.

mod eval;
mod lora;
mod merge;
mod recipe;

use std::process::ExitCode;

use anyhow::Result;

/// Train a model from a recipe, or teach an existing one
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    long_about = "Train a model from a recipe: vocabulary, pre-training, supervised fine-tuning, reinforcement learning, evaluation.\n\n\
        A run lives in a folder and goes on from where it was interrupted, whenever that was.",
    after_help = "Examples:
  fathom train recipes/mini-r1-quick.toml              all stages, into runs/mini-r1-quick
  fathom train recipes/mini-r1-quick.toml --stage sft  one stage; it goes on from its last checkpoint
  fathom train recipes/mini-r1.toml --export mini.gguf --format q8_0
  fathom run -m mini.gguf 'Was ist 348 + 271?'
  fathom train eval mini.gguf                          how many held-out problems it gets right, kind by kind
  fathom train lora r1-1.5b facts.jsonl -o facts       teach an existing model; `fathom train lora --help` says how"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    recipe: recipe::RecipeArgs,
}

#[derive(clap::Subcommand)]
enum Command {
    Eval(eval::Args),
    Lora(Box<lora::Args>),
    Merge(merge::Args),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.command {
        Some(Command::Eval(args)) => eval::run(args),
        Some(Command::Lora(args)) => lora::run(args),
        Some(Command::Merge(args)) => merge::run(args),
        None => recipe::run(&args.recipe),
    }
}
