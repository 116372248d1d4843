//! `cargo xtask soak`: fuzz every parser for minutes each, outside CI.
//!
//! Targets come from `fuzz/Cargo.toml`. cargo-fuzz wants nightly flags; `RUSTC_BOOTSTRAP=1` gives
//! them to the stable toolchain. An input that crashes is copied to `testdata/fuzz/TARGET/`, where
//! it seeds later runs and stays as a regression test of the crate whose parser it broke.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::Path;
use std::process::Command;
use toml_edit::DocumentMut;

/// Options of `cargo xtask soak`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Minutes for each target
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Only this target
    target: Option<String>,
}

/// Runs the targets one after another; an error names those that crashed.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let manifest = fs::read_to_string(root.join("fuzz/Cargo.toml")).context("fuzz/Cargo.toml")?;
    let mut targets = targets(&manifest)?;
    if let Some(only) = &options.target {
        ensure!(targets.contains(only), "no fuzz target {only}; there are: {}", targets.join(", "));
        targets.retain(|t| t == only);
    }
    crate::output(root, &crate::cargo(), &["fuzz", "--version"])
        .context("cargo-fuzz is not here: cargo install --locked cargo-fuzz")?;
    let mut crashed = vec![];
    for target in &targets {
        println!("== {target}: {} minutes", options.minutes);
        let crashes = fuzz(root, target, options.minutes * 60)?;
        if crashes > 0 {
            crashed.push(format!("{target} ({crashes})"));
        }
    }
    ensure!(crashed.is_empty(), "crashed: {}; the inputs are in testdata/fuzz", crashed.join(", "));
    println!("{} targets, {} minutes each, no crash", targets.len(), options.minutes);
    Ok(())
}

/// The binaries of the fuzz crate.
fn targets(manifest: &str) -> Result<Vec<String>> {
    let document: DocumentMut = manifest.parse().context("fuzz/Cargo.toml")?;
    let bins = document.get("bin").and_then(|b| b.as_array_of_tables());
    let names = bins.into_iter().flatten().filter_map(|b| b.get("name")?.as_str());
    let names: Vec<String> = names.map(str::to_owned).collect();
    ensure!(!names.is_empty(), "fuzz/Cargo.toml has no [[bin]]");
    Ok(names)
}

/// Fuzzes one target and keeps its crashes; returns how many inputs crashed.
fn fuzz(root: &Path, target: &str, seconds: u64) -> Result<usize> {
    let kept = root.join("testdata/fuzz").join(target);
    let corpus = root.join("fuzz/corpus").join(target);
    let artifacts = root.join("fuzz/artifacts").join(target);
    for dir in [&corpus, &artifacts] {
        fs::create_dir_all(dir)?;
    }
    let mut command = Command::new(crate::cargo());
    command.args(["fuzz", "run", target]).arg(&corpus);
    if kept.is_dir() {
        command.arg(&kept);
    }
    command.args(["--", &format!("-max_total_time={seconds}"), "-timeout=20", "-rss_limit_mb=2048"]);
    let status = command.env("RUSTC_BOOTSTRAP", "1").current_dir(root).status()?;
    let mut crashes = 0;
    for entry in fs::read_dir(&artifacts)? {
        let entry = entry?;
        fs::create_dir_all(&kept)?;
        fs::rename(entry.path(), kept.join(entry.file_name()))?;
        crashes += 1;
    }
    if !status.success() && crashes == 0 {
        bail!("cargo fuzz run {target}: {status}");
    }
    Ok(crashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_bins() {
        let manifest = "[package]\nname = \"fuzz\"\n[[bin]]\nname = \"gguf\"\n[[bin]]\nname = \"config\"\n";
        assert_eq!(targets(manifest).unwrap(), ["gguf", "config"]);
        assert!(targets("[package]\nname = \"fuzz\"\n").is_err());
    }
}
