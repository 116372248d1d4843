//! Writes safetensors files.
//!
//! Tensors are declared first; then each is asked for in the order of the names, which is the order of the data, and
//! its bytes are streamed. The file appears under its name only when it is whole.

use std::collections::BTreeMap;
use std::path::Path;

use fathom_core::FormatId;
use serde_json::{Map, Value, json};

use crate::fault::{Fault, Result};
use crate::new_file::NewFile;
use crate::safetensors::{MAX_DIMS, MAX_NAME_BYTES, TYPES};

/// A safetensors file being declared.
#[derive(Default)]
pub struct SafeTensorsWriter {
    metadata: BTreeMap<String, String>,
    /// Type name, shape and bytes by name.
    tensors: BTreeMap<String, (&'static str, Vec<usize>, u64)>,
}

impl SafeTensorsWriter {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry of `__metadata__`; a later value replaces an earlier one.
    pub fn metadata(&mut self, key: &str, value: &str) -> &mut Self {
        self.metadata.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds a tensor; `shape` has at most 4 dimensions, outermost first.
    ///
    /// # Errors
    /// If safetensors does not have the format, the name is too long, or it is there already.
    pub fn tensor(&mut self, name: &str, format: FormatId, shape: &[usize]) -> Result<&mut Self> {
        let fault =
            |expected: &str, found: String| Fault::tensor(Path::new("(new safetensors file)"), name, expected, found);
        let Some((ty, bits, _)) = TYPES.iter().find(|t| t.2 == Some(format)) else {
            return Err(fault("a format that safetensors has", format.to_string()).into());
        };
        if name.len() > MAX_NAME_BYTES || name == "__metadata__" {
            return Err(fault("a name of its own, of at most 1024 bytes", format!("{} bytes", name.len())).into());
        }
        if shape.len() > MAX_DIMS {
            return Err(fault("at most 4 dimensions", format!("{shape:?}")).into());
        }
        let bytes = shape.iter().product::<usize>() as u64 * bits / 8;
        if self.tensors.insert(name.to_owned(), (ty, shape.to_vec(), bytes)).is_some() {
            return Err(fault("each name once", "it again".to_owned()).into());
        }
        Ok(self)
    }

    /// Writes the file that will be `path`: calls `fill` for every tensor, in the order of their names, to write its bytes.
    ///
    /// # Errors
    /// If the disk is full or fails, or `fill` fails; then there is no new file, and an old one is as it was.
    ///
    /// # Panics
    /// If `fill` writes more or fewer bytes than the tensor has.
    pub fn write(self, path: &Path, mut fill: impl FnMut(&str, &mut TensorData<'_>) -> Result<()>) -> Result<()> {
        let mut file = NewFile::create(path)?;
        let header = self.header();
        file.write(&(header.len() as u64).to_le_bytes())?;
        file.write(&header)?;
        for (name, (_, _, bytes)) in &self.tensors {
            let mut data = TensorData { file: &mut file, left: *bytes };
            fill(name, &mut data)?;
            assert!(data.left == 0, "invariant: tensor {name} is written whole, {} bytes are missing", data.left);
        }
        file.finish()
    }

    /// The JSON header, padded so that the data begin at a multiple of eight bytes.
    fn header(&self) -> Vec<u8> {
        let mut entries = Map::new();
        if !self.metadata.is_empty() {
            entries.insert("__metadata__".to_owned(), json!(self.metadata));
        }
        let mut at = 0;
        for (name, (dtype, shape, bytes)) in &self.tensors {
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [at, at + bytes]});
            entries.insert(name.clone(), entry);
            at += bytes;
        }
        let mut header = Value::Object(entries).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        header
    }
}

/// Where the bytes of one tensor go.
pub struct TensorData<'a> {
    file: &'a mut NewFile,
    left: u64,
}

impl TensorData<'_> {
    /// Appends bytes of the tensor.
    ///
    /// # Errors
    /// If the disk is full or fails.
    ///
    /// # Panics
    /// If the tensor has fewer bytes left.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() as u64 <= self.left, "invariant: a write ends with its tensor or before");
        self.left -= bytes.len() as u64;
        self.file.write(bytes)
    }
}
