//! GGUF files, versions 2 and 3, little endian, whole or split in parts.
//!
//! Layout: magic, version, counts; key-value pairs; one record per tensor; then, from the next multiple of
//! `general.alignment`, the data. A split model keeps its metadata in the first part and tensors in every part.
//! Source: GGUF specification (ggml, `docs/gguf.md`) and `llama-gguf-split` for the `split.*` keys.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrayvec::ArrayVec;
use fathom_core::{ByteSource, Bytes, FormatId};

use crate::cursor::Cursor;
use crate::fault::{Error, Fault, Faults, Result, quoted};
use crate::map::Map;
use crate::metadata::{Entry, Metadata, ValueType};
use crate::table::{Stored, StoredType, Table};

/// Caps: far above every published model, low enough that a hostile header costs little.
const MAX_METADATA_BYTES: usize = 256 << 20;
const MAX_PAIRS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 17;
const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
const MAX_STRING_BYTES: u64 = 32 << 20;
const MAX_ARRAY_LEN: u64 = 1 << 24;
const MAX_NAME_BYTES: u64 = 256;
const MAX_ALIGNMENT: u32 = 1 << 20;
const MAX_PARTS: u32 = 4096;
/// Dimensions of a tensor.
const MAX_DIMS: usize = 4;

/// `general.alignment` where a file does not say.
pub(crate) const DEFAULT_ALIGNMENT: u32 = 32;

/// Types that ggml has and fathom does not compute with: number, name, elements and bytes of a block.
/// Their tensors can be listed and stepped over; using one is an error that names the type.
const OTHER_TYPES: &[(u32, &str, usize, usize)] = &[
    (9, "Q8_1", 32, 36),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
];

/// The type that ggml numbers `code`, with elements and bytes of a block.
fn stored_type(code: u32) -> Option<(StoredType, usize, usize)> {
    if let Some(id) = FormatId::from_gguf(code) {
        return Some((Ok(id), id.get().block_elems(), id.get().block_bytes()));
    }
    OTHER_TYPES.iter().find(|t| t.0 == code).map(|&(_, name, elems, bytes)| (Err(name), elems, bytes))
}

/// An open GGUF model.
pub struct Gguf {
    /// Key-value pairs (of the first part).
    pub metadata: Metadata,
    /// The files: one, or all parts in order.
    pub parts: Vec<PathBuf>,
    pub(crate) table: Table,
}

impl Gguf {
    /// Opens a GGUF file; of a split model any part, and the other parts with it.
    ///
    /// # Errors
    /// Every fault that the parts show.
    pub fn open(path: &Path) -> Result<Gguf> {
        let mut faults = Faults::default();
        let part = Part::open(path, &mut faults)?;
        let parts = match Split::of(&part.metadata)? {
            None => vec![part],
            Some(split) => split.open_parts(path, part, &mut faults)?,
        };
        Gguf::new(parts, faults)
    }

    /// Reads a whole GGUF file from memory.
    ///
    /// # Errors
    /// Every fault that it shows.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Gguf> {
        Self::from_source(Path::new("(memory)"), Arc::new(bytes))
    }

    /// Reads a whole GGUF file from memory; `name` stands for its path in messages.
    ///
    /// # Errors
    /// Every fault that it shows.
    pub fn from_source(name: &Path, source: Arc<dyn ByteSource>) -> Result<Gguf> {
        let mut faults = Faults::default();
        let part = Part::read(name, source, &mut faults)?;
        Gguf::new(vec![part], faults)
    }

    fn new(parts: Vec<Part>, mut faults: Faults) -> Result<Gguf> {
        let mut table = Table::default();
        let mut paths = Vec::new();
        let mut metadata = None;
        for part in parts {
            let file = table.add_file(&part.metadata.file, part.source);
            for (name, stored) in part.tensors {
                table.insert(&name, Stored { file, ..stored }, &mut faults);
            }
            paths.push(part.metadata.file.clone());
            metadata.get_or_insert(part.metadata);
        }
        table.check_overlap(&mut faults);
        faults.or(Gguf { metadata: metadata.expect("invariant: a model has a part"), parts: paths, table })
    }
}

/// One file.
struct Part {
    metadata: Metadata,
    source: Arc<dyn ByteSource>,
    tensors: Vec<(String, Stored)>,
}

impl Part {
    fn open(path: &Path, faults: &mut Faults) -> Result<Part> {
        Part::read(path, Arc::new(Map::open(path)?), faults)
    }

    /// Reads a header. Faults that hide what follows end the reading, others are collected.
    fn read(path: &Path, source: Arc<dyn ByteSource>, faults: &mut Faults) -> Result<Part> {
        let len = source.bytes().len();
        let mut c = Cursor { file: path, bytes: source.bytes(), at: 0 };

        let magic = c.take(4, "the magic \"GGUF\"")?;
        if magic != b"GGUF" {
            let found = quoted(&String::from_utf8_lossy(magic));
            return Err(Fault::byte(path, 0, "the magic \"GGUF\"", found).into());
        }
        let version = c.u32("the version")?;
        if !(2..=3).contains(&version) {
            let found = match version.swap_bytes() {
                1..=0xffff => "a big-endian file".to_owned(),
                _ => version.to_string(),
            };
            return Err(Fault::byte(path, 4, "version 2 or 3, little endian", found).into());
        }
        let tensor_count = c.count("a number of tensors", MAX_TENSORS)?;
        let pair_count = c.count("a number of key-value pairs", MAX_PAIRS)?;
        let metadata = read_pairs(&mut c, pair_count, Bytes::new(source.clone(), 0..len), faults)?;
        let alignment = match metadata.get("general.alignment")? {
            Some(a @ 1..=MAX_ALIGNMENT) if u32::is_power_of_two(a) => a,
            None => DEFAULT_ALIGNMENT,
            Some(a) => {
                let expected = format!("a power of two, at most {MAX_ALIGNMENT}");
                faults.push(Fault::key(path, "general.alignment", expected, a.to_string()));
                DEFAULT_ALIGNMENT
            }
        } as u64;

        let mut records = Vec::new();
        for _ in 0..tensor_count {
            records.push(Record::read(&mut c)?);
        }
        let data = (c.at as u64).next_multiple_of(alignment)..len as u64;
        let mut tensors = Vec::new();
        for record in records {
            match record.stored(path, alignment, &data) {
                Ok(stored) => tensors.push((record.name, stored)),
                Err(fault) => faults.push(fault),
            }
        }
        Ok(Part { metadata, source, tensors })
    }
}

/// Reads and checks the key-value pairs; notes where they lie.
fn read_pairs(c: &mut Cursor, count: u64, bytes: Bytes, faults: &mut Faults) -> Result<Metadata, Fault> {
    let mut m = Metadata { file: c.file.to_owned(), bytes, entries: Vec::new(), sorted: Vec::new() };
    for _ in 0..count {
        let start = c.at + 8;
        let key = start..start + c.string("a key", MAX_KEY_BYTES)?.len();
        let ty = value_type(c)?;
        m.entries.push(Entry { key, ty, at: c.at });
        if ty == ValueType::Array {
            let at = c.at;
            let elem = value_type(c)?;
            if elem == ValueType::Array {
                return Err(Fault::byte(c.file, at, "an array of numbers, booleans or strings", "an array of arrays"));
            }
            let len = c.count("the length of an array", MAX_ARRAY_LEN)?;
            match elem.size() {
                Some(size) => {
                    let at = c.at;
                    let values = c.take(len * size, "the elements of an array")?;
                    if elem == ValueType::Bool
                        && let Some(i) = values.iter().position(|v| *v > 1)
                    {
                        return Err(Fault::byte(c.file, at + i, "a boolean, 0 or 1", values[i].to_string()));
                    }
                }
                None => {
                    for _ in 0..len {
                        c.string("a string", MAX_STRING_BYTES)?;
                    }
                }
            }
        } else if let Some(size) = ty.size() {
            let at = c.at;
            let value = c.take(size, "a value")?;
            if ty == ValueType::Bool && value[0] > 1 {
                return Err(Fault::byte(c.file, at, "a boolean, 0 or 1", value[0].to_string()));
            }
        } else {
            c.string("a string", MAX_STRING_BYTES)?;
        }
        if c.at > MAX_METADATA_BYTES {
            let expected = format!("key-value pairs of at most {MAX_METADATA_BYTES} bytes");
            return Err(Fault::byte(c.file, c.at, expected, "more"));
        }
    }
    let mut sorted: Vec<u32> = (0..m.entries.len() as u32).collect();
    let key = |i: u32| m.key_of(&m.entries[i as usize]);
    sorted.sort_by(|&a, &b| key(a).cmp(key(b)));
    for pair in sorted.windows(2).filter(|p| key(p[0]) == key(p[1])) {
        let at = m.entries[pair[1] as usize].key.start;
        faults.push(Fault::key(c.file, key(pair[1]), "each key once", format!("it again at byte {at}")));
    }
    m.sorted = sorted;
    Ok(m)
}

fn value_type(c: &mut Cursor) -> Result<ValueType, Fault> {
    let at = c.at;
    let code = c.u32("a value type")?;
    ValueType::from_code(code).ok_or_else(|| Fault::byte(c.file, at, "a value type, 0 to 12", code.to_string()))
}

/// A tensor's record, as read.
struct Record {
    name: String,
    /// Innermost first.
    dims: ArrayVec<u64, MAX_DIMS>,
    ty: u32,
    offset: u64,
}

impl Record {
    fn read(c: &mut Cursor) -> Result<Record, Fault> {
        let at = c.at;
        let name = c.string("a tensor name", MAX_NAME_BYTES)?.to_owned();
        if name.is_empty() {
            return Err(Fault::byte(c.file, at, "a tensor name", "an empty one"));
        }
        let rank = c.u32("a number of dimensions")?;
        if !(1..=MAX_DIMS as u32).contains(&rank) {
            return Err(Fault::tensor(c.file, &name, format!("1 to {MAX_DIMS} dimensions"), rank.to_string()));
        }
        let mut dims = ArrayVec::new();
        for _ in 0..rank {
            dims.push(c.u64("a dimension")?);
        }
        Ok(Record { name, dims, ty: c.u32("a tensor type")?, offset: c.u64("a tensor offset")? })
    }

    /// Checks type, shape, and that the data lie inside `data`, the bytes behind the header.
    fn stored(&self, file: &Path, alignment: u64, data: &Range<u64>) -> Result<Stored, Fault> {
        let fault = |expected: String, found: String| Fault::tensor(file, &self.name, expected, found);
        let (ty, block_elems, block_bytes) =
            stored_type(self.ty).ok_or_else(|| fault("a known ggml type".into(), format!("type {}", self.ty)))?;
        if self.dims.contains(&0) {
            return Err(fault("dimensions of at least 1".into(), format!("{:?}", self.dims)));
        }
        if !self.dims[0].is_multiple_of(block_elems as u64) {
            let expected = format!("rows of whole blocks of {block_elems}");
            return Err(fault(expected, format!("rows of {}", self.dims[0])));
        }
        let bytes = (self.dims.iter())
            .try_fold(1u64, |n, d| n.checked_mul(*d))
            .and_then(|n| (n / block_elems as u64).checked_mul(block_bytes as u64))
            .ok_or_else(|| fault("a size below 2^64 bytes".into(), format!("dimensions {:?}", self.dims)))?;
        if !self.offset.is_multiple_of(alignment) {
            return Err(fault(format!("an offset that is a multiple of {alignment}"), self.offset.to_string()));
        }
        let extent = data.start.checked_add(self.offset).and_then(|start| Some(start..start.checked_add(bytes)?));
        match extent {
            Some(e) if e.end <= data.end => Ok(Stored {
                ty,
                shape: self.dims.iter().rev().map(|d| *d as usize).collect(),
                file: 0,
                range: e.start as usize..e.end as usize,
            }),
            _ => {
                let expected = format!("{bytes} bytes from offset {} of the data", self.offset);
                let found = format!("{} bytes of data", data.end.saturating_sub(data.start));
                Err(fault(expected, found))
            }
        }
    }
}

/// What a part says of its place in a split model.
struct Split {
    no: u32,
    count: u32,
    tensors: Option<u64>,
}

impl Split {
    /// The split keys of a file that has them.
    fn of(m: &Metadata) -> Result<Option<Split>, Fault> {
        let count = match m.get("split.count")? {
            None | Some(0 | 1) => return Ok(None),
            Some(n @ 2..=MAX_PARTS) => n,
            Some(n) => {
                return Err(Fault::key(&m.file, "split.count", format!("at most {MAX_PARTS}"), n.to_string()));
            }
        };
        let no: u32 = m.need("split.no")?;
        if no >= count {
            return Err(Fault::key(&m.file, "split.no", format!("less than split.count = {count}"), no.to_string()));
        }
        Ok(Some(Split { no, count, tensors: m.get("split.tensors.count")? }))
    }

    /// Opens the other parts and puts `part`, which was read from `path`, in its place.
    fn open_parts(&self, path: &Path, part: Part, faults: &mut Faults) -> Result<Vec<Part>> {
        let suffix = |no: u32| format!("-{:05}-of-{:05}.gguf", no + 1, self.count);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(stem) = name.strip_suffix(&suffix(self.no)) else {
            return Err(Fault::file(path, format!("a name that ends in {}", suffix(self.no)), quoted(&name)).into());
        };
        let mut parts = Vec::new();
        let mut part = Some(part);
        for no in 0..self.count {
            if no == self.no {
                parts.extend(part.take());
                continue;
            }
            let sibling = path.with_file_name(format!("{stem}{}", suffix(no)));
            let opened = Part::open(&sibling, faults);
            let Some(opened) = faults.catch(opened) else { continue };
            match Split::of(&opened.metadata) {
                Ok(Some(s)) if s.no == no && s.count == self.count => parts.push(opened),
                Ok(s) => {
                    let found = s.map_or("no part".into(), |s| format!("part {} of {}", s.no, s.count));
                    faults.push(Fault::key(&sibling, "split.no", format!("part {no} of {}", self.count), found));
                }
                Err(fault) => faults.push(fault),
            }
        }
        if faults.total() > 0 {
            return Err(Error::Faults(std::mem::take(faults)));
        }
        let found: usize = parts.iter().map(|p| p.tensors.len()).sum();
        let expected = Split::of(&parts[0].metadata)?.and_then(|s| s.tensors);
        if let Some(n) = expected
            && n != found as u64
        {
            let place = &parts[0].metadata.file;
            faults.push(Fault::key(
                place,
                "split.tensors.count",
                format!("the number of tensors, {found}"),
                n.to_string(),
            ));
        }
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_that_core_knows_is_not_listed_as_another() {
        for (code, name, ..) in OTHER_TYPES {
            assert_eq!(FormatId::from_gguf(*code), None, "{name} has a codec now: delete its line");
            assert!(FormatId::all().all(|id| id.name() != *name), "{name}");
        }
    }
}
