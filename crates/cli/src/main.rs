#![forbid(unsafe_code)]
//! Floor 5: the command `fathom`. One file per subcommand in [`commands`]; this file reads the command line and turns
//! failure into words and an exit status.
//!
//! Standard output carries the answer and nothing else. Exit status: 0 done, 1 failed, 2 a command line that makes no
//! sense, 130 interrupted.

mod args;
mod assistant;
mod commands;
mod load;
mod machine;
mod markdown;
mod npy;
mod show_picture;
mod source;
mod store;
mod term;
mod units;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = commands::Cli::parse_from(with_default_command(std::env::args_os()));
    match cli.command.run() {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fathom: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Plain `fathom`, also with options of `chat`, is `fathom chat`.
fn with_default_command(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    let own = ["-h", "--help", "-V", "--version"];
    let chat = match args.get(1).map(|a| a.to_string_lossy()) {
        None => true,
        Some(first) => first.starts_with('-') && !own.contains(&&*first),
    };
    if chat {
        args.insert(1.min(args.len()), "chat".into());
    }
    args
}

/// The error and its causes, each said once: many errors already contain their cause's words.
fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Whether whoever read our output has left (`fathom ... | head`), which is no failure of ours.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|e| e.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(args: &[&str]) -> Vec<OsString> {
        with_default_command(std::iter::once("fathom").chain(args.iter().copied()).map(OsString::from))
    }

    #[test]
    fn no_command_is_chat() {
        assert_eq!(given(&[]), ["fathom", "chat"]);
        assert_eq!(given(&["-m", "x"]), ["fathom", "chat", "-m", "x"]);
        assert_eq!(given(&["--help"]), ["fathom", "--help"]);
        assert_eq!(given(&["run", "x"]), ["fathom", "run", "x"]);
    }

    #[test]
    fn causes_are_said_once() {
        let error = anyhow::anyhow!("no such file").context("cannot open x").context("loading failed: cannot open x");
        assert_eq!(explain(&error), "loading failed: cannot open x: no such file");
    }
}
