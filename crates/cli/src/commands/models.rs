//! `fathom list` and `fathom rm`: the models that were fetched.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Result, bail};
use fathom_hub::Hub;

use crate::units;

/// List the models that were fetched
#[derive(clap::Args)]
pub(crate) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Delete fetched models
#[derive(clap::Args)]
#[command(after_help = "Examples:
  fathom rm r1-7b                                   the distil's Q4_K_M file
  fathom rm deepseek-ai/DeepSeek-V2-Lite-Chat       everything fetched of it

Files that another model of the cache shares stay.")]
pub(crate) struct RmArgs {
    /// Name as it was fetched, or as `fathom list` shows it
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

pub(crate) fn list(args: &ListArgs) -> Result<ExitCode> {
    let hub = Hub::from_env()?;
    let all = hub.list()?;
    let mut out = io::stdout().lock();
    if args.json {
        let entries = all.iter().map(|c| {
            serde_json::json!({
                "repo": c.repo, "models": c.models, "bytes": c.bytes, "unfinished_bytes": c.unfinished_bytes, "path": c.path,
            })
        });
        writeln!(out, "{:#}", serde_json::Value::Array(entries.collect()))?;
        return Ok(ExitCode::SUCCESS);
    }
    if all.is_empty() {
        crate::term::note(&format!(
            "no model in {} yet; `fathom pull r1-1.5b` fetches the smallest R1 distil",
            hub.config().cache.display()
        ));
    }
    for cached in all {
        writeln!(out, "{:>11}  {}", units::bytes(cached.bytes), cached.repo)?;
        for model in cached.models.iter().filter(|m| **m != cached.repo) {
            writeln!(out, "{:>11}  {model}", "")?;
        }
        if cached.unfinished_bytes > 0 {
            let rest = units::bytes(cached.unfinished_bytes);
            writeln!(out, "{rest:>11}  of it unfinished: `fathom pull` resumes, `fathom rm {}` deletes", cached.repo)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn rm(args: &RmArgs) -> Result<ExitCode> {
    let hub = Hub::from_env()?;
    for name in &args.names {
        match hub.delete(name)? {
            0 => bail!("{name} is not in {}; `fathom list` shows what is", hub.config().cache.display()),
            freed => writeln!(io::stdout(), "{name}: {} freed", units::bytes(freed))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}
