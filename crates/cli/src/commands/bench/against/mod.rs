//! `fathom bench --against PATH`: the same file, lengths and threads in another program, `llama-bench` of llama.cpp or of a
//! fork, in turn with ours.
//!
//! What a peer can do is read from its `--help`; what cannot be compared is refused before anything runs. Each round starts the
//! peer once, with one repetition of every figure.

mod child;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use self::child::{Ended, run, shown};
use super::rates::{Rates, pairs};
use super::sweep::{Figure, Measured, What};
use crate::units::{bytes, rate};

/// What a peer takes besides weights and cache: buffers of its own.
const BUFFERS: u64 = 512 << 20;

/// Longer than this nobody needs for a help text.
const HELP: Duration = Duration::from_secs(60);

/// How a peer says that tokens are in the cache before.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Depth {
    /// `-d N`, for prefill and decode.
    Option,
    /// `-gp N,TOKENS`, for decode alone.
    Prompt,
    /// Not at all.
    None,
}

/// A peer.
pub(super) struct Peer {
    path: PathBuf,
    /// Arguments of every round.
    args: Vec<String>,
    /// What a person added.
    extra: Vec<String>,
    depth: Depth,
    figures: Vec<Figure>,
    threads: usize,
    timeout: Duration,
    /// The commit that it says it was built from.
    build: Option<String>,
    /// Tokens per second of each figure, round by round.
    rates: Vec<Vec<f64>>,
}

/// Whether a help text lists this option.
fn lists(help: &str, option: &str) -> bool {
    help.split(|c: char| c.is_whitespace() || c == ',').any(|word| word == option)
}

/// What a person added, checked: what makes runs comparable is not theirs to set.
fn extra(text: &str) -> Result<Vec<String>> {
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    const OURS: [&str; 22] = [
        "-m",
        "--model",
        "-p",
        "--n-prompt",
        "-n",
        "--n-gen",
        "-d",
        "--n-depth",
        "-pg",
        "-gp",
        "-t",
        "--threads",
        "-r",
        "--repetitions",
        "-o",
        "--output",
        "-oe",
        "--output-err",
        "-ctk",
        "--cache-type-k",
        "-ctv",
        "--cache-type-v",
    ];
    if let Some(word) = words.iter().find(|w| OURS.contains(&w.as_str())) {
        bail!(
            "--against-args '{text}': {word} is set by fathom, so that both measure the same; \
             say it with fathom's own options (-p, -n, -d, -r, --threads)"
        );
    }
    Ok(words)
}

/// The peers that the command line names, with what was added for each: nothing, one text for all, or one for each.
pub(super) fn open(paths: &[PathBuf], added: &[String], timeout: Duration) -> Result<Vec<Peer>> {
    ensure!(
        added.len() <= 1 || added.len() == paths.len(),
        "--against-args is given {} times and --against {} times: give it once, for all, or once for each, in order ('' for none)",
        added.len(),
        paths.len()
    );
    let args = |i: usize| added.get(if added.len() == 1 { 0 } else { i }).map_or("", String::as_str);
    paths.iter().enumerate().map(|(i, path)| Peer::open(path, args(i), timeout)).collect()
}

impl Peer {
    fn open(path: &Path, added: &str, timeout: Duration) -> Result<Peer> {
        let extra = extra(added)?;
        let Ended { out, err, .. } = run(path, &["--help".into()], timeout.min(HELP))?;
        let help = out + &err;
        let lacks: Vec<&str> =
            ["-m", "-p", "-n", "-t", "-r", "-o", "-fa"].into_iter().filter(|o| !lists(&help, o)).collect();
        ensure!(
            lacks.is_empty(),
            "--against {}: its --help does not tell of {}, so it is no llama-bench that fathom knows how to ask",
            path.display(),
            lacks.join(", ")
        );
        let depth = if lists(&help, "-d") {
            Depth::Option
        } else if lists(&help, "-gp") {
            Depth::Prompt
        } else {
            Depth::None
        };
        let (path, args, figures) = (path.to_owned(), Vec::new(), Vec::new());
        Ok(Peer { path, args, extra, depth, figures, threads: 0, timeout, build: None, rates: Vec::new() })
    }

    /// Says what it will be asked for, or refuses.
    pub(super) fn plan(&mut self, file: &Path, figures: &[Figure], threads: usize) -> Result<()> {
        let path = self.path.display();
        if figures.iter().any(|f| f.sequences > 1) {
            bail!("--against {path}: llama-bench decodes one sequence; leave out -b");
        }
        let deep = |what| figures.iter().any(|f| f.what == what && f.depth > 0);
        match self.depth {
            Depth::Option => {}
            Depth::Prompt if !deep(What::Prefill) => {}
            Depth::Prompt => bail!(
                "--against {path}: it has no -d, so it cannot measure prefill behind a depth: leave prefill out with -p 0, \
                 or depth 0 alone"
            ),
            Depth::None if !deep(What::Prefill) && !deep(What::Decode) => {}
            Depth::None => bail!("--against {path}: it has neither -d nor -gp, so it knows no depth; leave out -d"),
        }
        let of = |what| figures.iter().filter(move |f| f.what == what);
        let tokens = |what| of(what).next().map_or(0, |f| f.tokens);
        let mut depths: Vec<usize> = figures.iter().map(|f| f.depth).collect();
        depths.dedup();
        let mut args: Vec<String> = ["-m", &file.display().to_string()].map(str::to_owned).into();
        let mut add = |option: &str, value: String| args.extend([option.to_owned(), value]);
        add("-t", threads.to_string());
        if !self.extra.iter().any(|a| a == "-fa" || a == "--flash-attn") {
            add("-fa", "1".into());
        }
        add("-r", "1".into());
        add("-o", "json".into());
        match self.depth {
            Depth::Option => {
                add("-p", tokens(What::Prefill).to_string());
                add("-n", tokens(What::Decode).to_string());
                add("-d", depths.iter().map(usize::to_string).collect::<Vec<_>>().join(","));
            }
            Depth::Prompt | Depth::None => {
                let plain = if depths.contains(&0) { tokens(What::Decode) } else { 0 };
                add("-p", tokens(What::Prefill).to_string());
                add("-n", plain.to_string());
                for figure in of(What::Decode).filter(|f| f.depth > 0) {
                    add("-gp", format!("{},{}", figure.depth, figure.tokens));
                }
            }
        }
        args.extend(self.extra.iter().cloned());
        self.args = args;
        self.figures = figures.to_vec();
        self.threads = threads;
        self.rates = vec![Vec::new(); figures.len()];
        Ok(())
    }

    /// File name and what was added.
    pub(super) fn name(&self) -> String {
        let mut name = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned();
        self.extra.iter().for_each(|a| name += &format!(" {a}"));
        name
    }

    /// Runs it once and keeps what it measured.
    pub(super) fn round(&mut self) -> Result<()> {
        let command = shown(&self.path, &self.args);
        let ended = run(&self.path, &self.args, self.timeout)?;
        if !ended.success {
            bail!("`{command}` ended with {}{}", ended.status, ended.last_words());
        }
        let answers: Vec<Value> = serde_json::from_str(&ended.out).map_err(|e| {
            anyhow::anyhow!("`{command}` did not print the JSON list of llama-bench ({e}){}", ended.last_words())
        })?;
        for answer in &answers {
            self.check(answer).with_context(|| format!("`{command}` cannot be compared"))?;
        }
        for (i, figure) in self.figures.iter().enumerate() {
            let found = answers.iter().find(|a| self.answers(a, figure)).and_then(|a| a["avg_ts"].as_f64());
            let found = found.filter(|r| r.is_finite() && *r > 0.0);
            let Some(found) = found else {
                bail!("`{command}` gave no rate for {} of {}", figure.what.name(), figure.describe());
            };
            self.rates[i].push(found);
        }
        Ok(())
    }

    /// That an answer was measured on processors alone, with our threads, by the build of the first round.
    fn check(&mut self, answer: &Value) -> Result<()> {
        let devices = answer["backends"].as_str().unwrap_or_default();
        let foreign = devices.split(',').map(str::trim).find(|d| !["", "CPU", "BLAS"].contains(d));
        let flags = ["cuda", "vulkan", "metal", "sycl", "gpu_blas"];
        let foreign = foreign.or_else(|| flags.into_iter().find(|f| answer[*f] == Value::Bool(true)));
        if let Some(device) = foreign {
            bail!("it was built for {device}: build it for processors alone");
        }
        let threads = answer["n_threads"].as_u64();
        ensure!(
            threads == Some(self.threads as u64),
            "it ran {threads:?} threads where {} were asked for",
            self.threads
        );
        let Some(build) = answer["build_commit"].as_str() else {
            bail!("it does not say which build it is (build_commit)")
        };
        match &self.build {
            None => self.build = Some(build.to_owned()),
            Some(first) => {
                ensure!(first == build, "it was build {first} in the rounds before and is build {build} now")
            }
        }
        Ok(())
    }

    /// Whether this is what it measured for the figure.
    fn answers(&self, answer: &Value, figure: &Figure) -> bool {
        let said = |key: &str| answer[key].as_u64().unwrap_or(0) as usize;
        let behind = if self.depth == Depth::Prompt && figure.what == What::Decode { figure.depth } else { 0 };
        let (prompt, generate) = match figure.what {
            What::Prefill => (figure.tokens, 0),
            What::Decode => (behind, figure.tokens),
        };
        (said("n_prompt"), said("n_gen"), said("n_depth")) == (prompt, generate, figure.depth - behind)
    }

    fn build(&self) -> &str {
        self.build.as_deref().unwrap_or("unknown")
    }

    /// Our median and the peer's for every figure, and by how much we are faster.
    pub(super) fn print(&self, out: &mut impl std::io::Write, ours: &[Measured]) -> Result<()> {
        writeln!(out, "\nagainst {} (build {}), in turn, tokens/s", self.name(), self.build())?;
        writeln!(out, "  {:<34}{:>9}{:>9}{:>9}{:>9}", "", "fathom", "peer", "medians", "pairs")?;
        for (ours, theirs) in ours.iter().zip(&self.rates) {
            let (mine, peer) = (ours.rates().median(), Rates::sorted(theirs.clone()).median());
            writeln!(
                out,
                "  {:<34}{:>9}{:>9}{:>9.2}{:>9.2}",
                format!("{} {}", ours.figure.what.name(), ours.figure.describe()),
                rate(mine),
                rate(peer),
                mine / peer,
                pairs(&ours.rates, theirs)
            )?;
        }
        Ok(())
    }

    /// The same for programs.
    pub(super) fn json(&self, ours: &[Measured]) -> Value {
        let figure = |(ours, theirs): (&Measured, &Vec<f64>)| {
            let (mine, peer) = (ours.rates(), Rates::sorted(theirs.clone()));
            json!({
                "what": ours.figure.what.name(),
                "depth_tokens": ours.figure.depth,
                "tokens": ours.figure.tokens,
                "fathom_tokens_per_s": mine.json(),
                "peer_tokens_per_s": peer.json(),
                "ratio_of_medians": mine.median() / peer.median(),
                "median_of_ratios": pairs(&ours.rates, theirs),
            })
        };
        let figures: Vec<Value> = ours.iter().zip(&self.rates).map(figure).collect();
        json!({ "command": shown(&self.path, &self.args), "build": self.build(), "figures": figures })
    }
}

/// That the memory suffices for a peer beside us: it may copy the weights to rearrange them, as we do.
pub(super) fn check_memory(peers: &[Peer], weights: u64, cache: u64, available: Option<u64>) -> Result<()> {
    let (Some(peer), Some(available)) = (peers.first(), available) else { return Ok(()) };
    let needs = weights + cache + BUFFERS;
    ensure!(
        needs <= available,
        "--against {}: while fathom holds the model, {} are available, and the peer may need {}: {} of weights, {} of cache \
         and {} of buffers; take a smaller file or depth",
        peer.path.display(),
        bytes(available),
        bytes(needs),
        bytes(weights),
        bytes(cache),
        bytes(BUFFERS)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(depth: Depth, added: &str) -> Peer {
        let (path, figures) = (PathBuf::from("/x/llama-bench"), Vec::new());
        let (args, extra, timeout) = (Vec::new(), extra(added).unwrap(), Duration::ZERO);
        Peer { path, args, extra, depth, figures, threads: 0, timeout, build: None, rates: Vec::new() }
    }

    fn asked(depth: Depth, added: &str, figures: &[Figure]) -> Result<String> {
        let mut peer = peer(depth, added);
        peer.plan(Path::new("a.gguf"), figures, 2)?;
        Ok(peer.args.join(" "))
    }

    #[test]
    fn each_kind_of_peer_is_asked_in_its_own_words() {
        let sweep = Figure::all(512, 32, &[0, 4096], &[1]);
        assert_eq!(
            asked(Depth::Option, "--repack 0", &sweep).unwrap(),
            "-m a.gguf -t 2 -fa 1 -r 1 -o json -p 512 -n 32 -d 0,4096 --repack 0"
        );
        let refused = asked(Depth::Prompt, "", &sweep).unwrap_err().to_string();
        assert!(refused.contains("-p 0"), "{refused}");
        let decode = Figure::all(0, 32, &[0, 4096, 16384], &[1]);
        assert_eq!(
            asked(Depth::Prompt, "-rtr 1 -fa 0", &decode).unwrap(),
            "-m a.gguf -t 2 -r 1 -o json -p 0 -n 32 -gp 4096,32 -gp 16384,32 -rtr 1 -fa 0"
        );
        assert!(asked(Depth::None, "", &decode).unwrap_err().to_string().contains("leave out -d"));
        assert!(asked(Depth::None, "", &Figure::all(8, 8, &[0], &[1])).is_ok());
        let batch = asked(Depth::Option, "", &Figure::all(0, 8, &[0], &[1, 4])).unwrap_err().to_string();
        assert!(batch.contains("leave out -b"), "{batch}");
    }

    #[test]
    fn what_makes_runs_comparable_is_not_for_others_to_set() {
        assert!(extra("-rtr 1 -t 4").unwrap_err().to_string().contains("-t is set by fathom"));
        assert_eq!(extra("  ").unwrap(), Vec::<String>::new());
        assert!(lists("  -d, --n-depth <n>", "-d") && !lists("  -dev, --device", "-d"));
        let said = |n| open(&[], &vec![String::new(); n], Duration::ZERO).map(drop).unwrap_err().to_string();
        assert!(said(2).contains("once for each"));
    }

    #[test]
    fn answers_are_matched_by_what_was_asked() {
        let deep = Figure { what: What::Decode, depth: 4096, tokens: 32, sequences: 1 };
        let (option, prompt) = (peer(Depth::Option, ""), peer(Depth::Prompt, ""));
        let by_option = json!({ "n_prompt": 0, "n_gen": 32, "n_depth": 4096 });
        let by_prompt = json!({ "n_prompt": 4096, "n_gen": 32 });
        assert!(option.answers(&by_option, &deep) && !option.answers(&by_prompt, &deep));
        assert!(prompt.answers(&by_prompt, &deep) && !prompt.answers(&by_option, &deep));
    }

    #[test]
    fn another_device_build_or_number_of_threads_is_no_comparison() {
        let mut peer = peer(Depth::Option, "");
        peer.threads = 2;
        let answer =
            |backends, threads, build| json!({ "backends": backends, "n_threads": threads, "build_commit": build });
        peer.check(&answer("CPU", 2, "abc")).unwrap();
        let mut said = |a: &Value| peer.check(a).unwrap_err().to_string();
        assert!(said(&answer("CUDA,CPU", 2, "abc")).contains("CUDA"));
        assert!(said(&answer("CPU", 4, "abc")).contains("threads"));
        assert!(said(&answer("CPU", 2, "def")).contains("build abc"));
        assert!(said(&json!({ "n_threads": 2, "cuda": true })).contains("cuda"));
        assert!(said(&json!({ "n_threads": 2 })).contains("build_commit"));
    }

    #[test]
    fn memory_must_suffice_for_both() {
        let peers = [peer(Depth::Option, "")];
        check_memory(&peers, 1 << 30, 0, Some(2 << 30)).unwrap();
        check_memory(&peers, 1 << 40, 0, None).unwrap();
        check_memory(&[], 1 << 40, 0, Some(1)).unwrap();
        let said = check_memory(&peers, 2 << 30, 1 << 30, Some(3 << 30)).unwrap_err().to_string();
        assert!(said.contains("3.50 GiB") && said.contains("3.00 GiB are available"), "{said}");
    }
}
