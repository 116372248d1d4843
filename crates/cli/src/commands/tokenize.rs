//! `fathom tokenize`: text to token ids, and back.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use fathom_text::{Specials, Tokenizer};
use serde_json::{Value, json};

use crate::args::{MODEL_HELP, model_then_text};
use crate::source;

/// Turn text into token ids, or back
#[derive(clap::Args)]
#[command(after_help = "Examples:
  fathom tokenize r1-7b 'Hello world'                 9707 1879
  fathom tokenize -m r1-7b --json < letter.txt        ids with the text of each
  fathom tokenize r1-7b --decode '9707,1879'          the text of ids
  fathom tokenize r1-7b --prompt 'Hi'                 as a prompt: with BOS if the model wants one")]
pub(crate) struct Args {
    #[arg(value_name = "MODEL", help = MODEL_HELP)]
    first: Option<String>,

    /// The text [default: standard input]
    #[arg(value_name = "TEXT", allow_hyphen_values = true)]
    second: Option<String>,

    /// The same as MODEL
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,

    /// TEXT is a list of token ids; print what they say
    #[arg(long, conflicts_with_all = ["plain", "prompt"])]
    decode: bool,

    /// Text that spells a special token is ordinary text
    #[arg(long, conflicts_with = "prompt")]
    plain: bool,

    /// Put BOS first if the model wants it
    #[arg(long)]
    prompt: bool,

    /// Print JSON: ids and the text of each
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let (model, text) = model_then_text(args.model, args.first, args.second)?;
    let place = source::locate(model.as_deref())?;
    let text = match text {
        Some(text) => text,
        None => {
            if io::stdin().is_terminal() {
                eprintln!("(text from standard input; Ctrl-D ends it)");
            }
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).context("standard input: expected UTF-8 text")?;
            text
        }
    };
    let model = place.open(&Default::default())?;
    let tokenizer = Tokenizer::new(&model.vocab()?)?;
    let ids = match (args.decode, args.prompt, args.plain) {
        (true, ..) => {
            let ids = parse_ids(&text)?;
            let size = tokenizer.vocab_size();
            match ids.iter().find(|id| **id as usize >= size) {
                Some(id) => bail!("token id {id} is outside the vocabulary of {size}"),
                None => ids,
            }
        }
        (_, true, _) => tokenizer.encode_prompt(&text)?,
        (_, _, true) => tokenizer.encode(&text, Specials::Plain)?,
        _ => tokenizer.encode(&text, Specials::Parse)?,
    };
    let mut out = io::stdout().lock();
    if args.json {
        let tokens = ids.iter().map(|&id| {
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            json!({ "id": id, "text": String::from_utf8_lossy(bytes), "special": tokenizer.is_special(id) })
        });
        let json = json!({ "count": ids.len(), "ids": ids, "text": tokenizer.decode(&ids), "tokens": tokens.collect::<Value>() });
        writeln!(out, "{json:#}")?;
    } else if args.decode {
        writeln!(out, "{}", tokenizer.decode(&ids))?;
    } else {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        writeln!(out, "{}", ids.join(" "))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Ids between commas, white space or brackets.
pub(crate) fn parse_ids(text: &str) -> Result<Vec<u32>> {
    let words = text.split(|c: char| c.is_whitespace() || ",[]".contains(c)).filter(|w| !w.is_empty());
    let parse =
        |word: &str| word.parse().with_context(|| format!("`{word}` is no token id; expected numbers such as 1,2,3"));
    let ids: Vec<u32> = words.map(parse).collect::<Result<_>>()?;
    ensure!(!ids.is_empty(), "no token ids; expected numbers such as 1,2,3");
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_in_many_dresses() {
        assert_eq!(parse_ids("1,2, 3\n").unwrap(), [1, 2, 3]);
        assert_eq!(parse_ids("[1 2]").unwrap(), [1, 2]);
        for bad in ["", "1,x", "-1", "4294967296", "1.5"] {
            assert!(parse_ids(bad).is_err(), "{bad}");
        }
    }
}
