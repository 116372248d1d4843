//! An adapter worked into the weights that it stood beside.
//!
//! The new file is the old one but for the adapted projections: `W + s·B·A`, in the format that they had or in another.
//! Rounding them again costs what the [`Merged`] report says, which can be more than an adapter of small changes is worth.

use std::path::Path;
use std::thread;

use fathom_core::{FormatId, Weight};
use fathom_files::{Archive, Fault, GgufWriter, Kind};
use fathom_model::names::{Naming, TensorId};
use fathom_model::{Adapter, Model};

use crate::error::Result;

/// What merging did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Merged {
    /// Projections changed.
    pub tensors: usize,
    /// The adapter's part of them: root mean square, relative to the weights'.
    pub change: f64,
    /// What storing them lost, likewise.
    pub rounding: f64,
}

/// Rows that a thread takes at a time.
const ROWS: usize = 64;

/// Writes `model`, which is a GGUF file, with `adapter` worked in. `format`: of the changed projections; `None`: as they were.
/// `told` hears how many bytes are done, of how many.
///
/// # Errors
/// If the model is not one GGUF file, the format cannot be written, or the disk is full or fails.
pub fn merge(
    model: &Model,
    adapter: &Adapter,
    format: Option<FormatId>,
    out: &Path,
    told: &mut dyn FnMut(u64, u64),
) -> Result<Merged> {
    let archive = &model.archive;
    let Some(metadata) = archive.metadata().filter(|_| archive.kind() == Kind::Gguf) else {
        let found = "a Hugging Face directory: PEFT's merge_and_unload merges those";
        return Err(fathom_files::Error::from(Fault::file(archive.path(), "a GGUF file to merge into", found)).into());
    };
    let mut writer = GgufWriter::new();
    for (key, value) in metadata.iter().filter(|(key, _)| *key != "general.alignment" && !key.starts_with("split.")) {
        writer.pair(key, value);
    }
    let names: Vec<&str> = archive.names().collect();
    for name in &names {
        let info = info(archive, name)?;
        let to = if pair(adapter, name).is_some() { format.unwrap_or(info.format) } else { info.format };
        writer.tensor(name, to, &info.shape)?;
    }
    let mut file = writer.create(out)?;
    let (mut done, total) = (0, archive.total_bytes());
    let mut sums = Sums::default();
    let mut report = Merged::default();
    for name in &names {
        let info = info(archive, name)?;
        done += info.bytes.len() as u64;
        match pair(adapter, name) {
            None => file.write(info.bytes.as_slice())?,
            Some(id) => {
                let to = format.unwrap_or(info.format);
                let cols = info.shape[info.shape.len() - 1];
                let rows = info.shape.iter().product::<usize>() / cols;
                let weight = Weight::new(info.format, rows, cols, info.bytes, None)?;
                file.write(&changed(&weight, adapter, id, to, &mut sums)?)?;
                report.tensors += 1;
            }
        }
        told(done, total);
    }
    file.finish()?;
    report.change = (sums.change / sums.weights).sqrt();
    report.rounding = (sums.rounding / sums.weights).sqrt();
    Ok(report)
}

fn info(archive: &Archive, name: &str) -> Result<fathom_files::TensorInfo> {
    let info = archive.tensor(name).map_err(fathom_files::Error::from)?;
    Ok(info.expect("invariant: the archive listed this name"))
}

/// The adapted projection that a name means.
fn pair(adapter: &Adapter, name: &str) -> Option<TensorId> {
    TensorId::parse(name, Naming::Gguf).filter(|id| adapter.get(*id).is_some())
}

/// Sums of squares.
#[derive(Clone, Copy, Default)]
struct Sums {
    weights: f64,
    change: f64,
    rounding: f64,
}

/// The bytes of a projection with its adapter, in the format `to`.
fn changed(weight: &Weight, adapter: &Adapter, id: TensorId, to: FormatId, sums: &mut Sums) -> Result<Vec<u8>> {
    let pieces: Vec<(usize, usize)> =
        (0..weight.rows).step_by(ROWS).map(|first| (first, ROWS.min(weight.rows - first))).collect();
    let threads = thread::available_parallelism().map_or(1, usize::from).min(pieces.len()).max(1);
    let work = |&(first, rows): &(usize, usize)| -> Result<(Vec<u8>, Sums)> {
        let before = weight.slice_rows(first..first + rows).decode();
        let mut after = before.clone();
        adapter.merge(id, first, &mut after);
        let stored = Weight::encode(to, rows, weight.cols, &after)?;
        let mut sums = Sums::default();
        for ((before, after), stored) in before.iter().zip(&after).zip(stored.decode()) {
            sums.weights += f64::from(*before).powi(2);
            sums.change += f64::from(after - before).powi(2);
            sums.rounding += f64::from(stored - after).powi(2);
        }
        Ok((stored.bytes.as_slice().to_vec(), sums))
    };
    let done: Vec<Result<(Vec<u8>, Sums)>> = thread::scope(|scope| {
        let work = &work;
        let share = |piece: &'_ [(usize, usize)]| piece.to_vec();
        let parts: Vec<_> = pieces.chunks(pieces.len().div_ceil(threads)).map(share).collect();
        let all: Vec<_> =
            parts.into_iter().map(|part| scope.spawn(move || part.iter().map(work).collect::<Vec<_>>())).collect();
        all.into_iter().flat_map(|t| t.join().expect("invariant: encoding does not panic")).collect()
    });
    let mut bytes = Vec::new();
    for piece in done {
        let (piece, part) = piece?;
        bytes.extend(piece);
        sums.weights += part.weights;
        sums.change += part.change;
        sums.rounding += part.rounding;
    }
    Ok(bytes)
}
