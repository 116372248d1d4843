//! `cargo xtask`: the tasks that keep the house in order. It needs cargo only.
//!
//! `check` holds the laws of ARCHITECTURE.md, `test` is what CI runs, `claims` keeps CLAIMS.md
//! honest, `soak` fuzzes for as long as one likes. Each is one module; the alias is in
//! `.cargo/config.toml`. Nothing here is part of the product, and the product never sees it.
#![forbid(unsafe_code)]

mod check;
mod claims;
mod clients;
mod soak;
mod source;
mod test;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "fathom's development tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Hold the laws of the house: floors, names, sizes, unsafe
    Check(check::Options),
    /// Format, lints, laws, documentation, tests and claims; what CI runs
    Test(test::Options),
    /// Write CLAIMS.md from claims.toml, check it, or measure again
    Claims(claims::Options),
    /// Sanitised kernels, a server under load, every parser fuzzed for minutes: outside CI
    Soak(soak::Options),
}

fn main() -> ExitCode {
    let root = root();
    let result = match Cli::parse().task {
        Task::Check(options) => check::run(&root, &options),
        Task::Test(options) => test::run(&root, &options),
        Task::Claims(options) => claims::run(&root, &options),
        Task::Soak(options) => soak::run(&root, &options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace root: two levels above this crate.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("crates/xtask lies two levels below the root")
        .to_path_buf()
}

/// Runs a program in `root` and returns its standard output, or an error that carries its standard error.
fn output(root: &Path, program: &str, args: &[&str]) -> Result<String> {
    let out = std::process::Command::new(program)
        .args(args)
        .current_dir(root)
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    anyhow::ensure!(
        out.status.success(),
        "{program} {}: {}\n{}",
        args.join(" "),
        out.status,
        String::from_utf8_lossy(&out.stderr).trim_end()
    );
    Ok(String::from_utf8(out.stdout)?)
}

/// The cargo that runs us, so that a toolchain override holds for what we start.
fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".into())
}
