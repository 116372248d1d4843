//! `cargo xtask claims`: every figure and capability that the README claims, with its proof.
//!
//! `claims.toml` is the record; CLAIMS.md is written from it. An entry has a command, the way to
//! read a value out of the command's output, a target, and the value last measured with date,
//! machine and commit. Whether a claim is reached is computed, never stored. A README sentence
//! refers to its entry by `<!-- claim:ID -->`; CI fails on a marker without an entry.

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use toml_edit::{DocumentMut, value};

const RECORD: &str = "claims.toml";
const TABLE: &str = "CLAIMS.md";

/// Options of `cargo xtask claims`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only check that claims.toml, CLAIMS.md and the README agree
    #[arg(long)]
    check: bool,
    /// Run the commands (of this claim, else of all) and record what they show
    #[arg(long, value_name = "ID", num_args = 0..=1, default_missing_value = "")]
    run: Option<String>,
}

/// The record.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    #[serde(default)]
    claim: Vec<Claim>,
}

/// One claim.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Claim {
    id: String,
    /// The claim as the README states it.
    text: String,
    /// Shell command that shows it, run in the workspace root.
    command: String,
    /// `json:/pointer` into standard output, or `regex:pattern` whose first group is the value.
    read: String,
    #[serde(default)]
    unit: String,
    /// `>= x`, `<= x` or `= x`.
    target: String,
    /// What was read last; absent until measured, like the three fields below.
    measured: Option<String>,
    date: Option<String>,
    machine: Option<String>,
    commit: Option<String>,
}

/// Carries out what the options ask for.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    if options.check {
        return check(root);
    }
    if let Some(id) = &options.run {
        measure(root, id)?;
    }
    let record = read(root)?;
    fs::write(root.join(TABLE), table(&record)).context(TABLE)?;
    println!("{TABLE}: {} claims", record.claim.len());
    Ok(())
}

/// Fails if the record is unsound, the README refers to a claim it lacks, or CLAIMS.md is stale.
pub(crate) fn check(root: &Path) -> Result<()> {
    let record = read(root)?;
    let readme = fs::read_to_string(root.join("README.md")).unwrap_or_default();
    let written = fs::read_to_string(root.join(TABLE)).context(TABLE)?;
    let mut faults = faults(&record, &readme);
    if written != table(&record) {
        faults.push(format!("{TABLE} does not match {RECORD}: run `cargo xtask claims`"));
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    println!("{} claims, all with a command", record.claim.len());
    Ok(())
}

fn read(root: &Path) -> Result<Record> {
    let text = fs::read_to_string(root.join(RECORD)).context(RECORD)?;
    toml_edit::de::from_str(&text).context(RECORD)
}

/// What is wrong with the record and with the README's references to it.
fn faults(record: &Record, readme: &str) -> Vec<String> {
    let mut faults = vec![];
    let mut ids = BTreeSet::new();
    for claim in &record.claim {
        let id = &claim.id;
        if !ids.insert(id.as_str()) {
            faults.push(format!("claim {id} is there twice"));
        }
        if claim.command.trim().is_empty() {
            faults.push(format!("claim {id} has no command"));
        }
        if let Err(error) = Reading::parse(&claim.read).map(drop).and(reached(&claim.target, "0").map(drop)) {
            faults.push(format!("claim {id}: {error:#}"));
        }
        let facts = [&claim.date, &claim.machine, &claim.commit];
        if claim.measured.is_some() && facts.iter().any(|f| f.is_none()) {
            faults.push(format!("claim {id} is measured but lacks date, machine or commit"));
        }
    }
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let flat = words(readme);
    let marker = Regex::new(r"<!--\s*claim:\s*([^\s>]*)\s*-->").expect("the pattern is a constant");
    for found in marker.captures_iter(readme) {
        let id = &found[1];
        match record.claim.iter().find(|c| c.id == id) {
            None => faults.push(format!("the README marks claim {id}, which {RECORD} lacks")),
            Some(claim) if !flat.contains(&words(&claim.text)) => {
                faults.push(format!("the README marks claim {id} but does not say \"{}\"", claim.text));
            }
            Some(_) => {}
        }
    }
    faults
}

/// How a value is read out of a command's output.
enum Reading {
    Json(String),
    Regex(Regex),
}

impl Reading {
    fn parse(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("json", pointer)) => Ok(Reading::Json(pointer.into())),
            Some(("regex", pattern)) => {
                let regex = Regex::new(pattern)?;
                ensure!(regex.captures_len() == 2, "the pattern {pattern} needs exactly one group");
                Ok(Reading::Regex(regex))
            }
            _ => bail!("`read` must start with json: or regex:, found `{text}`"),
        }
    }

    fn value(&self, output: &str) -> Result<String> {
        match self {
            Reading::Json(pointer) => {
                let json: serde_json::Value = serde_json::from_str(output.trim()).context("the output is not JSON")?;
                match json.pointer(pointer) {
                    Some(serde_json::Value::String(text)) => Ok(text.clone()),
                    Some(value) => Ok(value.to_string()),
                    None => bail!("the output has nothing at {pointer}"),
                }
            }
            Reading::Regex(regex) => {
                let found = regex.captures(output).with_context(|| format!("the output does not match {regex}"))?;
                Ok(found[1].to_owned())
            }
        }
    }
}

/// Whether `measured` meets `target`.
fn reached(target: &str, measured: &str) -> Result<bool> {
    let (relation, wanted) = target.split_once(' ').with_context(|| format!("target `{target}`"))?;
    let numbers = (measured.parse::<f64>(), wanted.parse::<f64>());
    match (relation, numbers) {
        (">=", (Ok(measured), Ok(wanted))) => Ok(measured >= wanted),
        ("<=", (Ok(measured), Ok(wanted))) => Ok(measured <= wanted),
        ("=", (Ok(measured), Ok(wanted))) => Ok(measured == wanted),
        ("=", _) => Ok(measured == wanted),
        _ => bail!("target `{target}` must be `>= x`, `<= x` or `= x`, and `{measured}` a number"),
    }
}

/// CLAIMS.md.
fn table(record: &Record) -> String {
    let mut text = String::from(
        "# Claims\n\nEvery figure and capability that the README claims, with the command that shows it.\n\
         Written by `cargo xtask claims` from `claims.toml`; `cargo xtask claims --run ID` measures again.\n\n\
         | claim | target | measured | reached | date | machine | commit |\n|---|---|---|---|---|---|---|\n",
    );
    for claim in &record.claim {
        let cell = |field: &Option<String>| field.clone().unwrap_or_default();
        let verdict = match &claim.measured {
            None => "not measured",
            Some(measured) => match reached(&claim.target, measured) {
                Ok(true) => "yes",
                Ok(false) => "**no**",
                Err(_) => "unreadable",
            },
        };
        let unit = |value: String| if value.is_empty() { value } else { format!("{value} {}", claim.unit) };
        let row = [
            format!("{} ([{}](#{}))", claim.text.replace('|', "\\|"), claim.id, claim.id),
            unit(claim.target.clone()).trim_end().to_owned(),
            unit(cell(&claim.measured)).trim_end().to_owned(),
            verdict.to_owned(),
            cell(&claim.date),
            cell(&claim.machine),
            cell(&claim.commit),
        ];
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    for claim in &record.claim {
        let _ =
            writeln!(text, "\n## {}\n\n```sh\n{}\n```\n\nRead by `{}`.", claim.id, claim.command.trim(), claim.read);
    }
    text
}

/// Runs the command of claim `id` (of all, if empty) and writes what it shows into the record.
fn measure(root: &Path, id: &str) -> Result<()> {
    let record = read(root)?;
    let path = root.join(RECORD);
    let mut document: DocumentMut = fs::read_to_string(&path)?.parse()?;
    let mut failed = 0;
    ensure!(id.is_empty() || record.claim.iter().any(|c| c.id == id), "{RECORD} has no claim {id}");
    for (index, claim) in record.claim.iter().enumerate().filter(|(_, c)| id.is_empty() || c.id == id) {
        println!("== {}\n{}", claim.id, claim.command.trim());
        let measured = match show(root, claim) {
            Ok(measured) => measured,
            Err(error) => {
                println!("{}: {error:#}", claim.id);
                failed += 1;
                continue;
            }
        };
        println!("measured {measured} {} (target {})", claim.unit, claim.target);
        let entry = document["claim"][index].as_table_mut().context("claims.toml holds [[claim]] tables")?;
        let facts = [("measured", measured), ("date", today()?), ("machine", machine()), ("commit", commit(root)?)];
        for (key, fact) in facts {
            entry[key] = value(fact);
        }
        // After each, so that an interrupted run keeps what it has measured.
        fs::write(&path, document.to_string())?;
    }
    ensure!(failed == 0, "{failed} commands failed; their old values stand");
    Ok(())
}

/// Runs a claim's command and reads its value.
fn show(root: &Path, claim: &Claim) -> Result<String> {
    let out = Command::new("bash").args(["-c", &claim.command]).current_dir(root).output()?;
    let stdout = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        bail!("{}\n{stdout}{}", out.status, String::from_utf8_lossy(&out.stderr));
    }
    Reading::parse(&claim.read)?.value(&stdout)
}

fn today() -> Result<String> {
    Ok(crate::output(Path::new("."), "date", &["-u", "+%Y-%m-%d"])?.trim().to_owned())
}

/// The commit measured, with `+` if the work tree differs from it.
fn commit(root: &Path) -> Result<String> {
    let hash = crate::output(root, "git", &["rev-parse", "--short=10", "HEAD"])?;
    let changed = crate::output(root, "git", &["status", "--porcelain", "--", ".", ":!claims.toml", ":!CLAIMS.md"])?;
    Ok(format!("{}{}", hash.trim(), if changed.is_empty() { "" } else { "+" }))
}

/// Processor, cores and memory, as far as this system tells them.
fn machine() -> String {
    let field = |file: &str, key: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|l| l.starts_with(key))?.to_owned();
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let name = field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let kib = field("/proc/meminfo", "MemTotal").and_then(|m| m.split(' ').next()?.parse::<u64>().ok());
    let memory = kib.map_or(String::new(), |kib| format!(", {} GiB", kib >> 20));
    format!("{name}, {cores} cores{memory}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(id: &str) -> Claim {
        Claim {
            id: id.into(),
            text: format!("does {id}"),
            command: "true".into(),
            read: "regex:(.*)".into(),
            target: ">= 1".into(),
            ..Claim::default()
        }
    }

    #[test]
    fn a_sound_record_has_no_faults() {
        let record = Record { claim: vec![claim("a"), claim("b")] };
        assert_eq!(faults(&record, "It\ndoes a <!-- claim:a --> well."), Vec::<String>::new());
    }

    #[test]
    fn each_fault_is_found() {
        let broken = |change: fn(&mut Claim), readme: &str| {
            let mut claim = claim("a");
            change(&mut claim);
            faults(&Record { claim: vec![claim] }, readme).join(" ")
        };
        assert!(broken(|c| c.command = " ".into(), "").contains("has no command"));
        assert!(broken(|c| c.read = "column 3".into(), "").contains("must start with json:"));
        assert!(broken(|c| c.read = "regex:no group".into(), "").contains("exactly one group"));
        assert!(broken(|c| c.target = "fast".into(), "").contains("target `fast`"));
        assert!(broken(|c| c.measured = Some("3".into()), "").contains("lacks date"));
        assert!(broken(|_| {}, "<!-- claim:z -->").contains("claim z, which claims.toml lacks"));
        assert!(broken(|_| {}, "does b <!-- claim:a -->").contains("does not say \"does a\""));
        let twice = Record { claim: vec![claim("a"), claim("a")] };
        assert_eq!(faults(&twice, ""), ["claim a is there twice"]);
    }

    #[test]
    fn values_are_read_and_compared() {
        let json = Reading::parse("json:/decode/median").unwrap();
        assert_eq!(json.value("{\"decode\": {\"median\": 8.5}}\n").unwrap(), "8.5");
        assert!(json.value("{}").is_err());
        let regex = Reading::parse(r"regex:(\d+) passed").unwrap();
        assert_eq!(regex.value("ok. 12 passed; 0 failed").unwrap(), "12");
        assert!(regex.value("none").is_err());
        let verdicts =
            [(">= 8", "8.5", true), (">= 9", "8.5", false), ("<= 300", "299", true), ("= 671.03", "671.030", true)];
        for (target, measured, verdict) in verdicts {
            assert_eq!(reached(target, measured).unwrap(), verdict, "{target} {measured}");
        }
        assert!(reached("= exact", "exact").unwrap());
        assert!(reached(">= 8", "fast").is_err());
    }

    #[test]
    fn the_table_shows_what_is_not_reached() {
        let mut short = claim("a");
        short.measured = Some("0.5".into());
        let text = table(&Record { claim: vec![short, claim("b")] });
        assert!(text.contains("| does a ([a](#a)) | >= 1 | 0.5 | **no** |"), "{text}");
        assert!(text.contains("| does b ([b](#b)) | >= 1 |  | not measured |"), "{text}");
    }
}
