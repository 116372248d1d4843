//! `cargo xtask test`: everything that must hold before a change lands, with cargo alone.
//!
//! Steps run in order and all of them run, so that one report shows every fault. The last line is
//! `N passed, N failed, N skipped` over all test binaries: a failed step counts as a failure, and a
//! line `skipped: ...` that a test printed (data that is not here) counts beside the ignored ones.

use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Golden data that lies beside the repository on machines that have it.
const SHARED: &str = "../shared/fixtures";

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Also what needs more than cargo (Python's and Node's clients, below the target directory; Chromium, by apt-get where there is
    /// none), or the shared golden data
    #[arg(long)]
    full: bool,
    /// Only the step of this name
    #[arg(long, value_name = "STEP")]
    only: Option<String>,
}

/// What the test binaries reported.
#[derive(Default, Debug, PartialEq, Clone)]
struct Tally {
    passed: usize,
    failed: usize,
    ignored: usize,
    /// The lines in which tests said what they left out.
    skipped: Vec<String>,
}

impl Tally {
    /// Takes in one line of a test binary's output.
    fn read(&mut self, line: &str) {
        if let Some(reason) = line.strip_prefix("skipped:") {
            self.skipped.push(reason.trim().to_owned());
        }
        let Some(counts) = line.strip_prefix("test result: ") else { return };
        for part in counts.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(kind)) = (words.next(), words.next()) else { continue };
            let Ok(number) = number.parse::<usize>() else { continue };
            match kind {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    /// The closing line.
    fn close(&self, failed_steps: usize) -> String {
        let failed = self.failed.max(failed_steps);
        format!("{} passed, {failed} failed, {} skipped", self.passed, self.ignored + self.skipped.len())
    }
}

/// One part of the run: its name and what it does.
type Step<'a> = (&'static str, Box<dyn Fn(&mut Tally) -> Result<()> + 'a>);

/// Runs every step; an error if any failed.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let cargo = |args: &'static [&'static str]| Box::new(move |_: &mut Tally| cargo(root, args));
    let mut steps: Vec<Step> = vec![
        ("format", cargo(&["fmt", "--all", "--check"])),
        ("fuzz-fmt", cargo(&["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"])),
        ("laws", Box::new(|_| crate::check::run(root, &Default::default()))),
        ("claims", Box::new(|_| crate::claims::check(root))),
        ("clippy", cargo(&["clippy", "--workspace", "--all-targets", "--keep-going", "--", "-D", "warnings"])),
        ("rustdoc", cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--keep-going"])),
        ("tests", Box::new(|tally| tests(root, tally))),
    ];
    if options.full || options.only.is_some() {
        steps.push(("fuzz", cargo(&["check", "--manifest-path", "fuzz/Cargo.toml", "--bins"])));
        steps.push(("verify", Box::new(|_| verify(root))));
        steps.push(("clients", Box::new(|tally| crate::clients::run(root, &built(root)?, &mut tally.skipped))));
        steps.push(("golden", Box::new(|tally| shared_data_is_used(root, tally))));
    }

    if let Some(only) = &options.only {
        let names: Vec<&str> = steps.iter().map(|(name, _)| *name).collect();
        ensure!(names.contains(&only.as_str()), "no step {only}; there are: {}", names.join(", "));
        steps.retain(|(name, _)| name == only);
    }
    let mut tally = Tally::default();
    let mut report = String::new();
    let mut failed = 0;
    for (name, step) in &steps {
        println!("== {name}");
        let start = Instant::now();
        let result = step(&mut tally);
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        report += &format!("{name:<10}{word:<8}{:>7.1} s\n", start.elapsed().as_secs_f64());
        if let Err(error) = result {
            println!("{name}: {error:#}");
            failed += 1;
        }
    }
    println!("\n{report}");
    for reason in &tally.skipped {
        println!("left out: {reason}");
    }
    println!("{}", tally.close(failed));
    ensure!(failed == 0, "{failed} steps failed");
    Ok(())
}

/// Where everything is compiled.
pub(crate) fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

pub(crate) fn cargo(root: &Path, args: &[&str]) -> Result<()> {
    let status = Command::new(crate::cargo())
        .args(args)
        // The fuzz crate stands outside the workspace; one directory compiles what both use once.
        .env("CARGO_TARGET_DIR", target(root))
        .env("RUSTDOCFLAGS", "-D warnings")
        .current_dir(root)
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "cargo {}: {status}", args.join(" "));
    Ok(())
}

/// Runs every test of the workspace, passing its lines on and counting them.
fn tests(root: &Path, tally: &mut Tally) -> Result<()> {
    // --show-output: a passing test's `skipped:` line would otherwise be swallowed.
    let args = ["test", "--workspace", "--no-fail-fast", "--", "--show-output"];
    let mut child = Command::new(crate::cargo())
        .args(args)
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let stdout = child.stdout.take().context("cargo's output")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.read(&line);
    }
    let status = child.wait()?;
    ensure!(status.success(), "cargo test: {status}");
    ensure!(tally.passed > 0, "no test ran");
    Ok(())
}

/// The program that the tests step compiled; nothing is left to compile after it. Not what a person installs, which takes seven more
/// minutes to compile (`soak` does it): the kernels are optimised alike in both, and here sums that overflow are caught.
fn built(root: &Path) -> Result<PathBuf> {
    cargo(root, &["test", "--workspace", "--no-run"])?;
    Ok(target(root).join("debug/fathom"))
}

/// Holds the program to every golden that is here.
fn verify(root: &Path) -> Result<()> {
    let program = built(root)?;
    let mut runs = vec![vec!["verify", "testdata/models"], vec!["verify", "testdata/models", "--precision", "fast"]];
    if root.join(SHARED).is_dir() {
        runs.push(vec!["verify", SHARED]);
    }
    for run in runs {
        println!("fathom {}", run.join(" "));
        let status = Command::new(&program).args(&run).current_dir(root).status()?;
        ensure!(status.success(), "fathom {}: {status}", run.join(" "));
    }
    Ok(())
}

/// Where the shared golden data lies beside the repository, no test may have left it out.
fn shared_data_is_used(root: &Path, tally: &mut Tally) -> Result<()> {
    if !root.join(SHARED).is_dir() {
        tally.skipped.push("no ../shared beside this checkout; testdata/ was used alone".into());
        return Ok(());
    }
    let unused: Vec<&String> = tally.skipped.iter().filter(|reason| reason.contains("shared")).collect();
    if let Some(first) = unused.first() {
        bail!("../shared is here, yet {} tests left it out, the first: {first}", unused.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tally_sums_binaries_and_skips() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "skipped: ../shared/fixtures/janus is not here",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.50s",
            "a line that says 9 passed; 9 failed",
        ] {
            tally.read(line);
        }
        assert_eq!((tally.passed, tally.failed, tally.ignored), (7, 2, 1));
        assert_eq!(tally.skipped, ["../shared/fixtures/janus is not here"]);
        assert_eq!(tally.close(1), "7 passed, 2 failed, 2 skipped");
    }

    #[test]
    fn a_failed_step_is_a_failure_even_if_no_test_failed() {
        assert_eq!(Tally { passed: 5, ..Tally::default() }.close(2), "5 passed, 2 failed, 0 skipped");
    }
}
