//! `fathom serve`: the APIs that existing programs speak, and a page for people.

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use fathom_core::Precision;
use fathom_server::{Access, Alias, Limits, Log, ModelOptions, ServeOptions, Store as _, serve};
use fathom_text::Thinking;

use crate::args::{Draft, LoadArgs};
use crate::load::Device;
use crate::machine;
use crate::store::Models;
use crate::term;

const ACCESS: &str = "Access";
const LIMITS: &str = "Limits";

/// Serve models to programs and people
#[derive(clap::Args)]
#[command(after_help = "Examples:
  fathom serve r1-7b                          http://127.0.0.1:8080 for programs, the same address for people
  fathom serve small=r1-1.5b big=r1-32b       two models under names of your own; the first is loaded at once
  fathom serve r1-7b --adapter facts=DIR      the same weights twice: as r1-7b, and with the adapter as facts
  fathom serve r1-7b --host 0.0.0.0           the network, with an API key that is made and printed once

Point OPENAI_BASE_URL at http://127.0.0.1:8080/v1, ANTHROPIC_BASE_URL or OLLAMA_HOST at http://127.0.0.1:8080.
DeepSeek's names `deepseek-chat` and `deepseek-reasoner` mean the first model, thinking off and on, unless --alias says otherwise.

SIGTERM or Ctrl-C stops taking requests, gives answers under way time to end, and exits 0; a second one ends at once.")]
pub(crate) struct Args {
    /// Models: GGUF files, directories, fetched names, or NAME=MODEL to choose the name; the first is loaded at once
    #[arg(value_name = "MODEL")]
    models: Vec<String>,

    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = ACCESS)]
    host: String,

    /// Port; 0 takes any free one
    #[arg(long, value_name = "PORT", default_value_t = 8080, help_heading = ACCESS)]
    port: u16,

    /// A key that clients must send; may be given several times [env: FATHOM_API_KEY, separated by commas]
    #[arg(long, value_name = "KEY", help_heading = ACCESS)]
    api_key: Vec<String>,

    /// A name that the server goes by, beside addresses and localhost
    #[arg(long, value_name = "NAME", help_heading = ACCESS)]
    allow_host: Vec<String>,

    /// An origin whose pages may ask, such as `https://chat.example`
    #[arg(long, value_name = "ORIGIN", help_heading = ACCESS)]
    allow_origin: Vec<String>,

    /// Let clients fetch and delete models
    #[arg(long, help_heading = ACCESS)]
    allow_pull: bool,

    /// Another name for a model, with thinking switched if wanted: NAME=MODEL[,on|off]
    #[arg(long, value_name = "NAME=MODEL", value_parser = parse_alias, help_heading = "Model")]
    alias: Vec<Alias>,

    /// Minutes that a model loaded on demand stays without a request
    #[arg(long, value_name = "MINUTES", default_value_t = 5, help_heading = "Model")]
    keep_alive: u64,

    /// Tokens that a model's cache holds for all conversations together [default: one full context]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Model")]
    cache_tokens: Option<u32>,

    /// Guess tokens ahead
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Draft::Off, help_heading = "Machine")]
    draft: Draft,

    /// Answers that one API key may have under way at once; more are refused with 429 [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = LIMITS)]
    per_key: Option<u32>,

    /// Seconds that answers under way get when the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = LIMITS)]
    drain: u64,

    /// Seconds from a request to its first token at most
    #[arg(long, value_name = "SECONDS", default_value_t = 600, help_heading = LIMITS)]
    first_token_limit: u64,

    /// Seconds from a request to its last token at most
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, help_heading = LIMITS)]
    total_limit: u64,

    /// Write a line of JSON per request and answer to standard error, without what was said
    #[arg(long)]
    log: bool,

    #[command(flatten)]
    load: LoadArgs,
}

fn parse_alias(text: &str) -> Result<Alias, String> {
    let (name, rest) = text.split_once('=').ok_or("expected NAME=MODEL or NAME=MODEL,on|off")?;
    let (model, thinking) = match rest.rsplit_once(',') {
        Some((model, "on")) => (model, Thinking::On),
        Some((model, "off")) => (model, Thinking::Off),
        _ => (rest, Thinking::Default),
    };
    if name.is_empty() || model.is_empty() {
        return Err("expected NAME=MODEL or NAME=MODEL,on|off".to_owned());
    }
    Ok(Alias { name: name.to_owned(), model: model.to_owned(), thinking })
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut names = args.models.clone();
    names.extend(args.load.model.clone());
    let device = Device::open(&args.load, Precision::Fast)?;
    let described = device.describe();
    let cache = args.cache_tokens.map(|n| n as usize);
    let store = Models::new(&names, args.load.clone(), device, args.draft, cache, args.allow_pull)?;
    let names = store.names();
    let kept = names[..1].to_vec();

    let mut aliases = args.alias.clone();
    for (name, thinking) in [("deepseek-chat", Thinking::Off), ("deepseek-reasoner", Thinking::On)] {
        if aliases.iter().all(|a| a.name != name) && !names.iter().any(|n| n == name) {
            aliases.push(Alias { name: name.to_owned(), model: kept[0].clone(), thinking });
        }
    }
    if let Some(alias) = aliases.iter().find(|a| store.offers().iter().all(|o| o.name != a.model)) {
        bail!("--alias {}={}: there is no model {}", alias.name, alias.model, alias.model);
    }

    let mut keys = args.api_key.clone();
    if let Ok(text) = std::env::var("FATHOM_API_KEY") {
        keys.extend(text.split(',').map(str::trim).filter(|k| !k.is_empty()).map(str::to_owned));
    }
    if keys.iter().any(String::is_empty) {
        bail!("--api-key: an empty key would let nobody in");
    }
    if keys.is_empty() && !is_loopback(&args.host) {
        let key = random_key()?;
        term::note(&format!("beyond this machine a key is needed; this one was made for this run:\n\n    {key}\n"));
        keys.push(key);
    }
    let memory = args.load.memory.or_else(machine::available_bytes);
    let options = ServeOptions {
        host: args.host.clone(),
        port: args.port,
        access: Access::new(&keys, args.allow_host.clone(), args.allow_origin.clone()),
        limits: Limits {
            per_key: args.per_key.map(|n| n as usize),
            drain: Duration::from_secs(args.drain),
            first_token: Duration::from_secs(args.first_token_limit),
            total: Duration::from_secs(args.total_limit),
            ..Limits::default()
        },
        models: ModelOptions {
            kept,
            aliases,
            keep_alive: Duration::from_secs(args.keep_alive * 60),
            memory,
            load_wait: Duration::from_secs(60),
        },
        log: if args.log { Log::to(io::stderr()) } else { Log::off() },
    };
    let mut said = Ok(());
    let mut bound = |address: SocketAddr| {
        term::note(&format!("{} on {described}", names.join(", ")));
        // The one line on standard output, for scripts that asked for port 0.
        said = writeln!(io::stdout(), "listening on http://{address}");
    };
    serve(options, Arc::new(store), &mut bound)
        .with_context(|| format!("cannot serve on {}:{}", args.host, args.port))?;
    said?;
    Ok(ExitCode::SUCCESS)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// 256 random bits of the system, in hexadecimal.
fn random_key() -> Result<String> {
    let mut bytes = [0u8; 32];
    let mut file = std::fs::File::open("/dev/urandom").context("/dev/urandom, for a key; --api-key gives one")?;
    io::Read::read_exact(&mut file, &mut bytes).context("/dev/urandom")?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_and_addresses_are_read() {
        let alias = parse_alias("fast=r1-7b,off").unwrap();
        assert_eq!((alias.name.as_str(), alias.model.as_str(), alias.thinking), ("fast", "r1-7b", Thinking::Off));
        assert_eq!(parse_alias("a=b").unwrap().thinking, Thinking::Default);
        assert!(parse_alias("a").is_err() && parse_alias("=b").is_err() && parse_alias("a=").is_err());
        assert!(is_loopback("127.0.0.1") && is_loopback("::1") && is_loopback("localhost"));
        assert!(!is_loopback("0.0.0.0") && !is_loopback("192.168.1.2"));
        assert_ne!(random_key().unwrap(), random_key().unwrap());
    }
}
