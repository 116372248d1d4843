//! `fathom logits`: what the model computes at every position, to the last digit. The tool for comparing engines.
//!
//! Rows are written as they are computed, so that a long prompt's logits never lie in memory at once.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use fathom_core::{Backend, LatentForm, Precision, Tensor};
use fathom_engine::golden::Replay;
use fathom_model::{ModelSpec, NoProbe, Probe};

use super::tokenize::parse_ids;
use crate::args::{LoadArgs, MODEL_HELP};
use crate::load::{Loaded, Room, load};
use crate::npy::NpyWriter;
use crate::term;

/// Rows that go through the model at once.
const CHUNK: usize = 256;

/// Rows whose logits lie in memory at once.
const HEAD_ROWS: usize = 32;

/// Print the logits at every position of a prompt
#[derive(clap::Args)]
#[command(after_help = "Examples:
  fathom logits r1-1.5b --tokens 151646,9707                    JSON
  fathom logits r1-1.5b --tokens 1,2,3 --out logits.npy         float32 [tokens, vocab] for NumPy
  fathom logits r1-1.5b --tokens 1,2,3 --probe blk.0.attn_out   another intermediate
  fathom tokenize r1-1.5b --prompt 'Hello' | fathom logits r1-1.5b --tokens -

Probes: embed, final_norm, and in every layer N: blk.N.attn_norm, blk.N.attn_out, blk.N.ffn_norm, blk.N.ffn_out and
blk.N.out (the residual stream after the layer).")]
pub(crate) struct Args {
    #[arg(value_name = "MODEL", help = MODEL_HELP)]
    first: Option<String>,

    /// The prompt as token ids, such as 1,2,3; - reads them from standard input
    #[arg(long, value_name = "IDS", allow_hyphen_values = true)]
    tokens: String,

    /// Write a NumPy array instead of JSON
    #[arg(long, value_name = "FILE.npy")]
    out: Option<PathBuf>,

    /// Print this intermediate instead of the logits
    #[arg(long, value_name = "NAME")]
    probe: Option<String>,

    #[command(flatten)]
    load: LoadArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let text = match args.tokens.as_str() {
        "-" => io::read_to_string(io::stdin()).context("standard input")?,
        ids => ids.to_owned(),
    };
    let ids = parse_ids(&text)?;
    let (loaded, _) = load(&args.load, args.first.as_deref(), Room::Tokens(ids.len()), Precision::Exact)?;
    let spec = &loaded.decoder.spec;
    if let Some(id) = ids.iter().find(|id| **id as usize >= spec.vocab) {
        bail!("token id {id} is outside the vocabulary of {}", spec.vocab);
    }
    let mut tap = args.probe.as_deref().map(|name| Tap::new(name, spec)).transpose()?;
    match &args.out {
        Some(path) => {
            let mut npy = None;
            compute(&loaded, &ids, tap.as_mut(), &mut |row| {
                let fail = || format!("cannot write {}", path.display());
                let npy = match &mut npy {
                    Some(npy) => npy,
                    none => none.insert(NpyWriter::create(path, ids.len(), row.len()).with_context(fail)?),
                };
                npy.row(row).with_context(fail)
            })?;
            npy.expect("invariant: a prompt has rows")
                .finish()
                .with_context(|| format!("cannot write {}", path.display()))?;
            term::note(&format!("{}: float32, {} rows", path.display(), ids.len()));
        }
        None => print_json(args, &loaded, &ids, tap.as_mut())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `{"model", "tokens", "shape", "logits": [[..], ..]}`, or `"probe"` and `"values"` instead of the last.
fn print_json(args: &Args, loaded: &Loaded, ids: &[u32], tap: Option<&mut Tap>) -> Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut rows = 0;
    compute(loaded, ids, tap, &mut |row| {
        if let Some(at) = row.iter().position(|x| !x.is_finite()) {
            bail!("row {rows}, column {at} is {}, which JSON cannot say; --out FILE.npy can", row[at]);
        }
        if rows == 0 {
            write!(
                out,
                "{{\"model\":{},\"tokens\":{}",
                serde_json::to_string(&loaded.name)?,
                serde_json::to_string(ids)?
            )?;
            write!(out, ",\"shape\":[{},{}]", ids.len(), row.len())?;
            match &args.probe {
                Some(name) => write!(out, ",\"probe\":{},\"values\":[", serde_json::to_string(name)?)?,
                None => write!(out, ",\"logits\":[")?,
            }
        }
        out.write_all(if rows == 0 { b"\n" } else { b",\n" })?;
        rows += 1;
        Ok(serde_json::to_writer(&mut out, row)?)
    })?;
    writeln!(out, "\n]}}")?;
    Ok(out.flush()?)
}

/// Runs the prompt and hands on the wanted rows, in order.
fn compute(
    loaded: &Loaded,
    ids: &[u32],
    mut tap: Option<&mut Tap>,
    emit: &mut dyn FnMut(&[f32]) -> Result<()>,
) -> Result<()> {
    let decoder = &loaded.decoder;
    let b = &*decoder.backend;
    // Generation computes a prompt's rows in the same form; in exact precision there is only one.
    let form = match b.precision() {
        Precision::Exact => LatentForm::Absorbed,
        Precision::Fast => LatentForm::Plain,
    };
    let mut replay = Replay::new(decoder, 1, ids.len(), loaded.kv)?;
    let table = replay.table(ids.len());
    for (i, chunk) in ids.chunks(CHUNK).enumerate() {
        let rows = (&table[..], i * CHUNK, chunk, form);
        match &mut tap {
            Some(tap) => {
                replay.trunk(&[rows], *tap)?;
                tap.take(emit)?;
            }
            None => {
                let h = replay.trunk(&[rows], &mut NoProbe)?;
                let all: Vec<u32> = (0..chunk.len() as u32).collect();
                for rows in all.chunks(HEAD_ROWS) {
                    let logits = decoder.head(&b.select_rows(&h, rows)?)?;
                    let values = read(b, &logits)?;
                    values.chunks_exact(decoder.spec.vocab).try_for_each(&mut *emit)?;
                }
            }
        }
    }
    Ok(())
}

fn read(b: &dyn Backend, x: &Tensor) -> fathom_core::Result<Vec<f32>> {
    let mut values = vec![0.0; x.shape.numel()];
    b.read(x, &mut values)?;
    Ok(values)
}

/// Picks one intermediate out of a forward pass.
struct Tap {
    layer: Option<usize>,
    name: String,
    values: Vec<f32>,
    cols: usize,
}

impl Tap {
    fn new(name: &str, spec: &ModelSpec) -> Result<Self> {
        let tap = |layer, name: &str| Tap { layer, name: name.to_owned(), values: Vec::new(), cols: 0 };
        if ["embed", "final_norm"].contains(&name) {
            return Ok(tap(None, name));
        }
        let layers = spec.layers.len();
        let of_layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        if let Some((layer, what)) = of_layer
            && let Ok(layer) = layer.parse::<usize>()
            && ["attn_norm", "attn_out", "ffn_norm", "ffn_out", "out"].contains(&what)
        {
            ensure!(layer < layers, "--probe {name}: this model has layers 0 to {}", layers - 1);
            return Ok(tap(Some(layer), what));
        }
        bail!(
            "--probe {name}: there is no such intermediate; there are embed, final_norm, and in layers 0 to {}: \
             blk.N.attn_norm, blk.N.attn_out, blk.N.ffn_norm, blk.N.ffn_out, blk.N.out",
            layers - 1
        )
    }

    /// Hands on what was picked from the last chunk.
    fn take(&mut self, emit: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let values = std::mem::take(&mut self.values);
        values.chunks_exact(self.cols).try_for_each(emit)
    }
}

impl Probe for Tap {
    fn tap(
        &mut self,
        layer: Option<usize>,
        name: &'static str,
        b: &dyn Backend,
        x: &Tensor,
    ) -> fathom_core::Result<()> {
        if layer == self.layer && name == self.name {
            self.values = read(b, x)?;
            self.cols = x.cols();
        }
        Ok(())
    }
}
