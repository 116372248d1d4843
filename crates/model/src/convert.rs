//! Any supported model as one GGUF file, in a chosen format.
//!
//! The loader's walk over the spec lists the tensors, so whatever loads can be converted. A tensor is read, decoded and encoded a block of
//! rows at a time; a model larger than memory passes through. What is already in the wanted format is copied as it is.

use std::path::Path;
use std::thread;

use fathom_core::{FormatId, RopeLayout, Weight, format};
use fathom_files::GgufWriter;
use fathom_text::{TokenRef, VocabSource, Vocabulary};

use crate::error::{Error, Result};
use crate::families::write::{gguf_metadata, pairs_rotated_rows};
use crate::load::Model;
use crate::names::Slot;
use crate::spec::{Mixer, ModelSpec, RopeScaling};
use crate::weights::{self, Found, Progress};

/// Values that are decoded at a time: 64 MB of them.
const AT_ONCE: usize = 16 << 20;

/// What came of a conversion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// Tensors written.
    pub tensors: usize,
    /// Bytes of them before.
    pub bytes_in: u64,
    /// Bytes of them after.
    pub bytes_out: u64,
}

/// One tensor of the new file.
struct Tensor {
    name: String,
    /// Outermost first.
    shape: Vec<usize>,
    /// What its rows are taken from, one below the other.
    parts: Vec<Weight>,
    format: FormatId,
    /// Width of a head, if its rotated rows change from halves to pairs.
    paired: Option<usize>,
}

/// The format of a tensor when matrices are to be in `wanted`.
///
/// Vectors and routers stay exact. The picture side is small, and its errors are seen: its projections take 8 bit at least, its
/// convolutions, codebook and whatever has no whole blocks 16.
fn format_of(found: &Found, wanted: FormatId) -> FormatId {
    let (source, cols) = (found.weight.format, found.weight.cols);
    let blocks = |f: FormatId| cols.is_multiple_of(f.get().block_elems());
    let plain = |f: FormatId| f.get().block_elems() == 1 && f != format::F8_E4M3;
    let narrow = if plain(source) && source != format::F32 { source } else { format::F16 };
    if found.weight.rows == 1 || found.slot == Some(Slot::Router) {
        return format::F32;
    }
    if plain(wanted) {
        return wanted;
    }
    match found.slot {
        None if found.exact || !blocks(format::Q8_0) => narrow,
        None => format::Q8_0,
        Some(_) if blocks(wanted) => wanted,
        Some(_) if blocks(format::Q8_0) => format::Q8_0,
        Some(_) => narrow,
    }
}

/// Writes `model` as the GGUF file `to` with its matrices in `wanted`.
///
/// # Errors
/// If the model's tensors are faulty, if GGUF cannot describe it, if the format cannot be written, or the disk is full.
pub fn convert(
    model: &Model,
    wanted: FormatId,
    to: &Path,
    threads: usize,
    progress: Progress<'_>,
) -> Result<Converted> {
    let mut spec = model.spec.clone();
    let pairs = pairs_rows(&mut spec);
    let divisors = divisors(&mut spec);
    let mut tensors: Vec<Tensor> = Vec::new();
    for found in weights::found(&model.spec, &model.archive)? {
        let format = format_of(&found, wanted);
        match tensors.last_mut().filter(|t| t.name == found.name) {
            // Experts that the source keeps singly.
            Some(tensor) => tensor.parts.push(found.weight),
            None => tensors.push(Tensor {
                paired: pairs.filter(|_| matches!(found.slot, Some(Slot::AttnQ | Slot::AttnK))),
                name: found.name,
                shape: found.shape,
                parts: vec![found.weight],
                format,
            }),
        }
    }
    if let Some(divisors) = divisors {
        let weight = Weight::encode(format::F32, 1, divisors.len(), &divisors)?;
        let (name, shape) = ("rope_freqs.weight".to_owned(), vec![divisors.len()]);
        tensors.push(Tensor { name, shape, parts: vec![weight], format: format::F32, paired: None });
    }
    let mut writer = GgufWriter::new();
    gguf_metadata(&spec, &mut writer)?;
    describe(model, &mut writer)?;
    let mut done = Converted::default();
    for t in &mut tensors {
        if t.parts.len() > 1 {
            t.shape.insert(0, t.parts.len());
        }
        let shape = if t.shape.len() == 2 && t.shape[0] == 1 { &t.shape[1..] } else { &t.shape[..] };
        writer.tensor(&t.name, t.format, shape)?;
        done.bytes_in += t.parts.iter().map(|w| w.total_bytes() as u64).sum::<u64>();
    }
    let total = done.bytes_in;
    let (mut data, mut read) = (writer.create(to)?, 0);
    for t in &tensors {
        for part in &t.parts {
            done.bytes_out += put(&mut data, t, part, threads)?;
            read += part.total_bytes() as u64;
            progress(read, total);
        }
        done.tensors += 1;
    }
    data.finish()?;
    Ok(done)
}

fn put(data: &mut fathom_files::GgufData, t: &Tensor, part: &Weight, threads: usize) -> Result<u64> {
    if part.format == t.format && part.scales.is_none() && t.paired.is_none() {
        data.write(part.bytes.as_slice())?;
        part.bytes.discard();
        return Ok(part.bytes.len() as u64);
    }
    let mut written = 0;
    let (rows, cols) = (part.rows, part.cols);
    let step = (AT_ONCE / cols).max(1);
    let place = |row: usize| match t.paired {
        None => row,
        // Pairs lie side by side in GGUF's Llama: of every head first, middle, second, …
        Some(dim) => {
            let (head, at) = (row / dim, row % dim);
            head * dim + at % 2 * (dim / 2) + at / 2
        }
    };
    for first in (0..rows).step_by(step) {
        let count = step.min(rows - first);
        let each = count.div_ceil(threads.max(1)).max(1);
        let encode = |from: usize| {
            let n = each.min(first + count - from);
            let mut values = vec![0.0; n * cols];
            for (i, row) in values.chunks_exact_mut(cols).enumerate() {
                part.decode_row(place(from + i), row);
            }
            Weight::encode(t.format, n, cols, &values)
        };
        let blocks: Vec<_> = thread::scope(|scope| {
            let starts = (first..first + count).step_by(each);
            let workers: Vec<_> = starts.map(|from| scope.spawn(move || encode(from))).collect();
            let join = |w: thread::ScopedJoinHandle<'_, _>| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
            workers.into_iter().map(join).collect()
        });
        for block in blocks {
            let block = block?;
            data.write(block.bytes.as_slice())?;
            written += block.bytes.len() as u64;
        }
    }
    part.bytes.discard();
    Ok(written)
}

/// Width of the heads whose rows must be paired, if the family's GGUF wants that; the spec then says so.
fn pairs_rows(spec: &mut ModelSpec) -> Option<usize> {
    let Mixer::Gqa { head_dim, .. } = spec.layers.first()?.mixer else { return None };
    if spec.rope.layout != RopeLayout::Halves || !pairs_rotated_rows(spec) {
        return None;
    }
    spec.rope.layout = RopeLayout::Interleaved;
    Some(head_dim)
}

/// Llama 3's frequencies as the divisors that GGUF holds them as.
fn divisors(spec: &mut ModelSpec) -> Option<Vec<f32>> {
    match &spec.rope.scaling {
        RopeScaling::Divisors(d) => Some(d.clone()),
        RopeScaling::Llama3 { .. } => {
            let scaled = spec.rope.freqs().inv_freq;
            let base = |i: usize| spec.rope.theta.powf(-(2.0 * i as f64) / spec.rope.dim as f64);
            let divisors: Vec<f32> = scaled.iter().enumerate().map(|(i, f)| (base(i) / f64::from(*f)) as f32).collect();
            spec.rope.scaling = RopeScaling::Divisors(divisors.clone());
            Some(divisors)
        }
        _ => None,
    }
}

/// Name, vocabulary, template and sampling.
fn describe(model: &Model, w: &mut GgufWriter) -> Result<()> {
    if let Some(meta) = model.archive.metadata() {
        for (key, value) in meta.iter() {
            let general = key.starts_with("general.") && key != "general.architecture" && key != "general.file_type";
            if general || key.starts_with("tokenizer.") {
                w.pair(key, value);
            }
        }
        return Ok(());
    }
    if let Some(name) = model.archive.path().file_name() {
        w.pair("general.name", &*name.to_string_lossy());
    }
    let defaults = model.defaults()?;
    w.pair("general.sampling.temp", defaults.temperature).pair("general.sampling.top_p", defaults.top_p);
    vocabulary(&model.vocab()?, w)
}

/// The tokenizer as its own file describes it: GGUF's lists say less.
fn vocabulary(source: &VocabSource, w: &mut GgufWriter) -> Result<()> {
    let Vocabulary::TokenizerJson(json) = &source.vocabulary else {
        unreachable!("invariant: only GGUF has lists, and its keys are copied");
    };
    let tokenizer = fathom_text::Tokenizer::new(source)?;
    w.pair("tokenizer.huggingface.json", json.as_str());
    let mut token = |key: &str, token: &Option<TokenRef>| {
        let id = match token {
            Some(TokenRef::Id(id)) => Some(*id),
            Some(TokenRef::Text(text)) => tokenizer.id_of(text),
            None => None,
        };
        if let Some(id) = id {
            w.pair(&format!("tokenizer.ggml.{key}_token_id"), id);
        }
    };
    token("bos", &source.bos);
    token("eos", &source.eos);
    token("padding", &source.pad);
    for (key, end) in ["eot", "eom"].into_iter().zip(tokenizer.end_tokens().iter().skip(1)) {
        token(key, &Some(TokenRef::Id(*end)));
    }
    w.pair("tokenizer.ggml.add_bos_token", tokenizer.adds_bos());
    let mut names = Vec::new();
    for (i, template) in source.templates.iter().enumerate() {
        if i == 0 {
            w.pair("tokenizer.chat_template", template.source.as_str());
        } else {
            w.pair(&format!("tokenizer.chat_template.{}", template.name), template.source.as_str());
            names.push(template.name.as_str());
        }
    }
    if !names.is_empty() {
        w.pair("tokenizer.chat_templates", &names[..]);
    }
    Ok(())
}

impl From<fathom_files::Fault> for Error {
    fn from(fault: fathom_files::Fault) -> Self {
        Error::Files(fault.into())
    }
}
