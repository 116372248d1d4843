//! The tensors of a model: names over one or many mapped files.
//!
//! Both file kinds end up here, so the checks that both need (extents inside the file, no overlap, no name
//! twice) are written once.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fathom_core::{ByteSource, Bytes, FormatId};

use crate::fault::{Fault, Faults};

/// A tensor as it lies in its file.
#[derive(Clone)]
pub struct TensorInfo {
    /// Its name in the file.
    pub name: String,
    /// Dimensions, outermost first (GGUF lists them innermost first).
    pub shape: Vec<usize>,
    /// Number format.
    pub format: FormatId,
    /// The blocks.
    pub bytes: Bytes,
}

/// Type of a stored tensor: one that fathom computes with, or the name of another.
pub(crate) type StoredType = Result<FormatId, &'static str>;

/// One line of a table.
pub(crate) struct Stored {
    pub(crate) ty: StoredType,
    pub(crate) shape: Vec<usize>,
    pub(crate) file: usize,
    /// Bytes of the file.
    pub(crate) range: Range<usize>,
}

/// Tensors by name.
#[derive(Default)]
pub(crate) struct Table {
    files: Vec<(PathBuf, Arc<dyn ByteSource>)>,
    tensors: BTreeMap<String, Stored>,
}

impl Table {
    /// Adds a file; returns its number.
    pub(crate) fn add_file(&mut self, path: &Path, source: Arc<dyn ByteSource>) -> usize {
        self.files.push((path.to_owned(), source));
        self.files.len() - 1
    }

    /// Adds a tensor of a file that was added.
    pub(crate) fn insert(&mut self, name: &str, stored: Stored, faults: &mut Faults) {
        match self.tensors.entry(name.to_owned()) {
            btree_map::Entry::Vacant(slot) => _ = slot.insert(stored),
            btree_map::Entry::Occupied(old) => {
                let found = format!("it again, first in {}", self.files[old.get().file].0.display());
                faults.push(Fault::tensor(&self.files[stored.file].0, name, "each name once", found));
            }
        }
    }

    /// Checks that no two tensors of a file share bytes.
    pub(crate) fn check_overlap(&self, faults: &mut Faults) {
        let mut all: Vec<_> = self.tensors.iter().filter(|(_, t)| !t.range.is_empty()).collect();
        all.sort_unstable_by_key(|(_, t)| (t.file, t.range.start));
        for pair in all.windows(2) {
            let ((first, a), (second, b)) = (pair[0], pair[1]);
            if a.file == b.file && b.range.start < a.range.end {
                let expected = format!("to start at byte {} or later, behind tensor {first}", a.range.end);
                faults.push(Fault::tensor(&self.files[b.file].0, second, expected, format!("byte {}", b.range.start)));
            }
        }
    }

    /// The file that holds `name`.
    pub(crate) fn file_of(&self, name: &str) -> Option<&Path> {
        self.tensors.get(name).map(|t| self.files[t.file].0.as_path())
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of all tensors.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.range.len() as u64).sum()
    }

    /// A view of the tensor `name`; an error if its type is not one to compute with.
    pub(crate) fn get(&self, name: &str) -> Result<Option<TensorInfo>, Fault> {
        let Some(t) = self.tensors.get(name) else { return Ok(None) };
        let (path, source) = &self.files[t.file];
        let format = t.ty.map_err(|ty| {
            let known: Vec<_> = FormatId::all().map(FormatId::name).collect();
            Fault::tensor(path, name, format!("one of the types {}", known.join(", ")), ty)
        })?;
        let bytes = Bytes::new(source.clone(), t.range.clone());
        Ok(Some(TensorInfo { name: name.to_owned(), shape: t.shape.clone(), format, bytes }))
    }
}
