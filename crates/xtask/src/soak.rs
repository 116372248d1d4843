//! `cargo xtask soak`: what takes too long for CI. The kernels under AddressSanitizer, a server under load, then every parser fuzzed for
//! minutes each.
//!
//! Fuzz targets come from `fuzz/Cargo.toml`. cargo-fuzz wants nightly flags; `RUSTC_BOOTSTRAP=1` gives
//! them to the stable toolchain. Golden files of `testdata/` and recorded requests seed the corpus. An input that crashes
//! is kept in `testdata/fuzz/TARGET/`, where it seeds later runs and stays as a regression test of
//! the crate whose parser it broke.

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread;
use toml_edit::DocumentMut;

/// Options of `cargo xtask soak`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Minutes for each target
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Targets that run at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    jobs: u64,
    /// Only this: a fuzz target, `fuzz` for all of them, `kernels` or `load`
    target: Option<String>,
}

/// A part of the soak that is no fuzzing: its name and what it does.
type Part = (&'static str, fn(&Path) -> Result<()>);
const PARTS: [Part; 2] = [("kernels", sanitise), ("load", load)];

/// Runs the targets, `jobs` at a time; an error names those that crashed.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let manifest = fs::read_to_string(root.join("fuzz/Cargo.toml")).context("fuzz/Cargo.toml")?;
    let (mut targets, seeds) = read_manifest(&manifest)?;
    let wanted = |name: &str| options.target.as_deref().is_none_or(|only| only == name);
    for (name, part) in PARTS.iter().filter(|(name, _)| wanted(name)) {
        println!("== {name}");
        part(root)?;
    }
    if options.target.as_deref().is_some_and(|only| PARTS.iter().any(|(name, _)| *name == only)) {
        return Ok(());
    }
    if let Some(only) = options.target.as_ref().filter(|only| *only != "fuzz") {
        ensure!(
            targets.contains(only),
            "nothing is called {only}; there are: fuzz, kernels, load, {}",
            targets.join(", ")
        );
        targets.retain(|t| t == only);
    }
    crate::output(root, &crate::cargo(), &["fuzz", "--version"])
        .context("cargo-fuzz is not here: cargo install --locked cargo-fuzz")?;
    for target in &targets {
        let corpus = root.join("fuzz/corpus").join(target);
        match seeds.get(target) {
            Some(ending) => seed(&root.join("testdata"), ending, &corpus)?,
            None => requests(root, &corpus)?,
        }
    }
    let (next, found) = (AtomicUsize::new(0), Mutex::new(vec![]));
    thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                while let Some(target) = targets.get(next.fetch_add(1, Relaxed)) {
                    println!("== {target}: {} minutes", options.minutes);
                    let crashes = fuzz(root, target, options.minutes * 60);
                    found.lock().unwrap_or_else(PoisonError::into_inner).push((target, crashes));
                }
            });
        }
    });
    let mut crashed = vec![];
    for (target, crashes) in found.into_inner().unwrap_or_else(PoisonError::into_inner) {
        match crashes? {
            0 => {}
            n => crashed.push(format!("{target} ({n})")),
        }
    }
    ensure!(crashed.is_empty(), "crashed: {}; the inputs are in testdata/fuzz", crashed.join(", "));
    println!("{} targets, {} minutes each, no crash", targets.len(), options.minutes);
    Ok(())
}

/// Tests of the one crate with `unsafe` kernels, every access checked. The sanitizer's own target directory: its flags would
/// otherwise compile everything anew.
fn sanitise(root: &Path) -> Result<()> {
    let version = crate::output(root, "rustc", &["-vV"])?;
    let host = version.lines().find_map(|l| l.strip_prefix("host: ")).context("rustc -vV names no host")?;
    let mut command = Command::new(crate::cargo());
    command.args(["test", "--locked", "-p", "fathom-cpu", "--target", host, "--target-dir", "target/sanitised"]);
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
    let status = command.current_dir(root).status()?;
    ensure!(status.success(), "fathom-cpu under AddressSanitizer: {status}");
    Ok(())
}

/// Two hundred clients for five minutes, of what a person would install.
fn load(root: &Path) -> Result<()> {
    crate::test::cargo(root, &["build", "--release", "--package", "fathom-cli"])?;
    crate::clients::load(root, &crate::test::target(root).join("release/fathom"))
}

/// Puts the recorded requests' bodies into a corpus: nothing else is so near to what parsers of requests meet.
fn requests(root: &Path, corpus: &Path) -> Result<()> {
    fs::create_dir_all(corpus)?;
    for entry in fs::read_dir(root.join("crates/server/tests/transcripts"))? {
        let entry = entry?;
        let text = fs::read_to_string(entry.path())?;
        if let Some((_, body)) = text.split_once("\n---\n").and_then(|(request, _)| request.split_once('\n')) {
            fs::write(corpus.join(entry.file_name()), body)?;
        }
    }
    Ok(())
}

/// The binaries of the fuzz crate, and how the files end that seed each.
fn read_manifest(text: &str) -> Result<(Vec<String>, BTreeMap<String, String>)> {
    let document: DocumentMut = text.parse().context("fuzz/Cargo.toml")?;
    let bins = document.get("bin").and_then(|b| b.as_array_of_tables());
    let names = bins.into_iter().flatten().filter_map(|b| b.get("name")?.as_str());
    let names: Vec<String> = names.map(str::to_owned).collect();
    ensure!(!names.is_empty(), "fuzz/Cargo.toml has no [[bin]]");
    let table = document.get("package").and_then(|p| p.get("metadata")?.get("seeds")?.as_table_like());
    let pairs = table.into_iter().flat_map(|t| t.iter());
    let seeds = pairs.map(|(name, ending)| (name.to_owned(), ending.as_str().unwrap_or_default().to_owned()));
    let seeds: BTreeMap<String, String> = seeds.collect();
    let stray = seeds.keys().find(|k| !names.contains(k));
    ensure!(stray.is_none(), "fuzz/Cargo.toml seeds {stray:?}, which is no [[bin]]");
    Ok((names, seeds))
}

/// Copies the files below `dir` whose path ends in `ending` into a corpus.
fn seed(dir: &Path, ending: &str, corpus: &Path) -> Result<()> {
    fs::create_dir_all(corpus)?;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.to_string_lossy().replace(['/', '\\'], "_");
        if path.is_dir() {
            seed(&path, ending, corpus)?;
        } else if name.ends_with(ending) {
            fs::copy(&path, corpus.join(name.trim_start_matches(['.', '_'])))?;
        }
    }
    Ok(())
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
    fn the_manifest_names_targets_and_seeds() {
        let bins = "[[bin]]\nname = \"gguf\"\n[[bin]]\nname = \"config\"\n";
        let manifest =
            |seeds: &str| read_manifest(&format!("[package]\nname = \"fuzz\"\n[package.metadata]\n{seeds}\n{bins}"));
        let (targets, seeds) = manifest("[package.metadata.seeds]\ngguf = \".gguf\"").unwrap();
        assert_eq!(targets, ["gguf", "config"]);
        assert_eq!(seeds["gguf"], ".gguf");
        assert!(manifest("[package.metadata.seeds]\nother = \"x\"").is_err());
        assert!(read_manifest("[package]\nname = \"fuzz\"\n").is_err());
    }

    #[test]
    fn seeds_are_copied_from_every_depth() {
        let dir = std::env::temp_dir().join(format!("fathom-xtask-{}", std::process::id()));
        fs::create_dir_all(dir.join("in/a")).unwrap();
        for (file, text) in [("in/x.gguf", "1"), ("in/a/x.gguf", "2"), ("in/a/y.txt", "3")] {
            fs::write(dir.join(file), text).unwrap();
        }
        seed(&dir.join("in"), ".gguf", &dir.join("out")).unwrap();
        assert_eq!(fs::read_dir(dir.join("out")).unwrap().count(), 2);
        fs::remove_dir_all(dir).unwrap();
    }
}
