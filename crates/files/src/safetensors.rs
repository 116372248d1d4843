//! Safetensors files, and the sets of them that make up a Hugging Face model.
//!
//! A file is: header length (8 bytes), a JSON header, data. A set is `model.safetensors`, or the files that
//! `model.safetensors.index.json` names; index and files are checked against each other both ways.
//! The header is read here and not with the `safetensors` crate because that one stops at the first fault,
//! keeps the last of two equal names and says neither place nor expectation; the tests compare the two.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::path::{Component, Path};
use std::sync::Arc;

use arrayvec::ArrayVec;
use fathom_core::{ByteSource, FormatId, format};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::archive::read_capped;
use crate::cursor::Cursor;
use crate::fault::{Error, Fault, Faults, Result, quoted};
use crate::map::Map;
use crate::table::{Stored, Table, TensorInfo};

const MAX_HEADER_BYTES: u64 = 100 << 20;
const MAX_INDEX_BYTES: u64 = 64 << 20;
const MAX_TENSORS: usize = 1 << 17;
pub(crate) const MAX_NAME_BYTES: usize = 1024;
pub(crate) const MAX_DIMS: usize = 4;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The types of the safetensors format: name, bits of an element, what fathom computes with, if it does.
pub(crate) const TYPES: &[(&str, u64, Option<FormatId>)] = &[
    ("F32", 32, Some(format::F32)),
    ("F16", 16, Some(format::F16)),
    ("BF16", 16, Some(format::BF16)),
    ("F8_E4M3", 8, Some(format::F8_E4M3)),
    ("F8_E8M0", 8, Some(format::UE8M0)),
    ("C64", 64, None),
    ("F64", 64, None),
    ("I64", 64, None),
    ("U64", 64, None),
    ("I32", 32, None),
    ("U32", 32, None),
    ("I16", 16, None),
    ("U16", 16, None),
    ("I8", 8, None),
    ("U8", 8, None),
    ("BOOL", 8, None),
    ("F8_E5M2", 8, None),
    ("F8_E4M3FNUZ", 8, None),
    ("F8_E5M2FNUZ", 8, None),
    ("F6_E2M3", 6, None),
    ("F6_E3M2", 6, None),
    ("F4", 4, None),
];

/// One or many safetensors files.
pub struct SafeTensors {
    pub(crate) table: Table,
}

impl SafeTensors {
    /// Opens one file.
    ///
    /// # Errors
    /// Every fault that it shows.
    pub fn open(path: &Path) -> Result<SafeTensors> {
        let mut faults = Faults::default();
        let mut table = Table::default();
        read_file(path, &mut table, &mut faults)?;
        table.check_overlap(&mut faults);
        faults.or(SafeTensors { table })
    }

    /// Reads one file from memory.
    ///
    /// # Errors
    /// Every fault that it shows.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<SafeTensors> {
        let mut faults = Faults::default();
        let mut table = Table::default();
        read_header(Path::new("(memory)"), Arc::new(bytes), &mut table, &mut faults)?;
        table.check_overlap(&mut faults);
        faults.or(SafeTensors { table })
    }

    /// Whether a directory holds a set of the names that [`SafeTensors::open_dir`] reads.
    pub(crate) fn is_in(dir: &Path) -> bool {
        dir.join(INDEX).exists() || dir.join(SINGLE).exists()
    }

    /// Opens a model's files in a directory.
    ///
    /// # Errors
    /// Every fault that they and their index show.
    pub fn open_dir(dir: &Path) -> Result<SafeTensors> {
        let index_path = dir.join(INDEX);
        if !index_path.exists() {
            return SafeTensors::open(&dir.join(SINGLE));
        }
        let mut faults = Faults::default();
        let index = read_index(&index_path, &mut faults)?;
        let mut table = Table::default();
        for file in stray_files(dir, &index)? {
            faults.push(Fault::file(
                &index_path,
                "every model*.safetensors named",
                format!("none of {}", quoted(&file)),
            ));
        }
        let files: BTreeSet<&String> = index.values().collect();
        let mut unread = BTreeSet::new();
        for file in files {
            let read = read_file(&dir.join(file), &mut table, &mut faults);
            if faults.catch(read).is_none() {
                unread.insert(file);
            }
        }
        for (name, file) in index.iter().filter(|(_, file)| !unread.contains(file)) {
            let path = dir.join(file);
            if table.file_of(name) != Some(&path) {
                faults.push(Fault::tensor(&path, name, "to be here, as the index says", "nothing of that name"));
            }
        }
        for name in table.names().filter(|n| !index.contains_key(*n)) {
            faults.push(Fault::tensor(&index_path, name, "every tensor of its files", "no such name"));
        }
        table.check_overlap(&mut faults);
        faults.or(SafeTensors { table })
    }

    /// The tensor `name`, if there is one.
    ///
    /// # Errors
    /// If its type is none that fathom computes with.
    pub fn tensor(&self, name: &str) -> Result<Option<TensorInfo>, Fault> {
        self.table.get(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.table.names()
    }
}

fn read_file(path: &Path, table: &mut Table, faults: &mut Faults) -> Result<()> {
    read_header(path, Arc::new(Map::open(path)?), table, faults)
}

/// Reads one file's header into the table.
fn read_header(path: &Path, source: Arc<dyn ByteSource>, table: &mut Table, faults: &mut Faults) -> Result<()> {
    let mut c = Cursor { file: path, bytes: source.bytes(), at: 0 };
    let header_len = c.count("a header length", MAX_HEADER_BYTES)?;
    let header: Pairs<RawEntry> = parse(path, c.take(header_len, "the header")?, 8, "a header of tensors by name")?;
    let (data, len) = (c.at, source.bytes().len());
    let file = table.add_file(path, source.clone());
    let faults_before = faults.total();
    let mut listed = 0;
    for (name, entry) in &header.0 {
        match entry.stored(path, name, file, data, len) {
            Ok(stored) => {
                listed += stored.range.len();
                table.insert(name, stored, faults);
            }
            Err(fault) => faults.push(fault),
        }
    }
    // The format leaves no room for bytes that belong to no tensor.
    if faults.total() == faults_before && listed < len - data {
        let expected = format!("{listed} bytes of data, as the header lists");
        faults.push(Fault::byte(path, data, expected, (len - data).to_string()));
    }
    Ok(())
}

/// Parses JSON that starts at byte `base` of the file.
fn parse<'a, T: Deserialize<'a>>(path: &Path, json: &'a [u8], base: usize, expected: &str) -> Result<T, Fault> {
    serde_json::from_slice(json).map_err(|e| {
        let lines = json.split_inclusive(|b| *b == b'\n').take(e.line().saturating_sub(1));
        let at = base + lines.map(<[u8]>::len).sum::<usize>() + e.column().saturating_sub(1);
        let text = e.to_string();
        let found = text.rsplit_once(" at line ").map_or(&*text, |(what, _)| what);
        Fault::byte(path, at, expected, found)
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with dtype, shape and data_offsets")]
struct RawEntry {
    dtype: String,
    shape: ArrayVec<u64, MAX_DIMS>,
    data_offsets: (u64, u64),
}

impl RawEntry {
    /// Checks type, shape and extent; `data` is the first byte of the data, `len` the file's length.
    fn stored(&self, path: &Path, name: &str, file: usize, data: usize, len: usize) -> Result<Stored, Fault> {
        let fault = |expected: String, found: String| Fault::tensor(path, name, expected, found);
        if name.len() > MAX_NAME_BYTES {
            return Err(fault(format!("a name of at most {MAX_NAME_BYTES} bytes"), name.len().to_string()));
        }
        let (type_name, elem_bits, format) = (TYPES.iter())
            .find(|t| t.0 == self.dtype)
            .ok_or_else(|| fault("a type of the safetensors format".into(), quoted(&self.dtype)))?;
        let bits = (self.shape.iter())
            .try_fold(*elem_bits, |n, d| n.checked_mul(*d))
            .ok_or_else(|| fault("a size below 2^61 bytes".into(), format!("dimensions {:?}", self.shape)))?;
        if !bits.is_multiple_of(8) {
            return Err(fault("whole bytes".into(), format!("{bits} bits in {type_name} {:?}", self.shape)));
        }
        let bytes = bits / 8;
        let (start, end) = self.data_offsets;
        if start.checked_add(bytes) != Some(end) {
            let expected = format!("offsets {bytes} bytes apart for {} {:?}", self.dtype, self.shape);
            return Err(fault(expected, format!("{start} to {end}")));
        }
        if end > (len - data) as u64 {
            return Err(fault(format!("data to end at offset {} at most", len - data), end.to_string()));
        }
        let shape = self.shape.iter().map(|d| *d as usize).collect();
        Ok(Stored { ty: format.ok_or(type_name), shape, file, range: data + start as usize..data + end as usize })
    }
}

/// The pairs of a JSON object in its order, doubles included, but without `__metadata__`.
struct Pairs<V>(Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Reader<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Reader<V> {
            type Value = Pairs<V>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object by tensor name")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<V>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<BTreeMap<String, String>>()?;
                    } else if pairs.len() == MAX_TENSORS {
                        return Err(serde::de::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    } else {
                        pairs.push((name, map.next_value()?));
                    }
                }
                Ok(Pairs(pairs))
            }
        }
        d.deserialize_map(Reader(PhantomData))
    }
}

/// File names by tensor name.
type Index = BTreeMap<String, String>;

fn read_index(path: &Path, faults: &mut Faults) -> Result<Index> {
    #[derive(Deserialize)]
    struct Raw {
        weight_map: Pairs<String>,
    }

    let json = read_capped(path, MAX_INDEX_BYTES)?;
    let raw: Raw = parse(path, &json, 0, "an index with a weight_map")?;
    let mut index = Index::new();
    for (name, file) in raw.weight_map.0 {
        // A name with directories in it could reach out of the model.
        let mut parts = Path::new(&file).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            faults.push(Fault::tensor(path, &name, "the name of a file beside the index", quoted(&file)));
            continue;
        }
        if let Some(old) = index.insert(name.clone(), file) {
            faults.push(Fault::tensor(path, &name, "each name once", format!("it again, first in {}", quoted(&old))));
        }
    }
    Ok(index)
}

/// Files of the directory that look like parts of the model and that the index does not name.
fn stray_files(dir: &Path, index: &Index) -> Result<Vec<String>> {
    let mut stray = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
        let name = entry.map_err(Error::io(dir, "list"))?.file_name().to_string_lossy().into_owned();
        let is_part = name.starts_with("model") && name.ends_with(".safetensors");
        if is_part && !index.values().any(|file| *file == name) {
            stray.push(name);
        }
    }
    stray.sort();
    Ok(stray)
}
