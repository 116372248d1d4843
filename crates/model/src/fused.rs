//! A model's files with the latent's key and value projections in one tensor.
//!
//! Newer GGUF files keep them in two, the keys' transposed, which suits serving. Learning expands keys and values from the latent by
//! one projection, whose derivative is an operation that exists; so a trainer reads such files through [`Fused`].

use std::path::Path;

use fathom_core::{Bytes, Weight, format};
use fathom_files::{Archive, Fault, TensorInfo};

use crate::names::{Naming, Slot, TensorId};
use crate::spec::{Mixer, ModelSpec};
use crate::weights::TensorSource;

/// See the module.
pub struct Fused<'a> {
    /// The files.
    pub archive: &'a Archive,
    /// What the model is.
    pub spec: &'a ModelSpec,
}

impl Fused<'_> {
    /// What a name means, if it is one of the tensors that are shown otherwise than they are.
    fn split(&self, name: &str) -> Option<TensorId> {
        let id = TensorId::parse(name, self.naming())?;
        let has = |slot| TensorId { slot, ..id }.name(self.naming()).is_some_and(|n| self.archive.contains(&n));
        ([Slot::KvB, Slot::KB, Slot::VB].contains(&id.slot) && has(Slot::KB) && has(Slot::VB)).then_some(id)
    }

    /// Per head the key rows, then the value rows; f32.
    fn fuse(&self, id: TensorId) -> Result<Option<TensorInfo>, Fault> {
        let layer = id.layer.expect("invariant: these tensors belong to layers");
        let layers = self.spec.layers.iter().chain(&self.spec.mtp);
        let Some(Mixer::Mla { heads, kv_rank: rank, nope, v_dim, .. }) = layers.map(|l| l.mixer.clone()).nth(layer)
        else {
            return Ok(None);
        };
        let k = self.values(TensorId { slot: Slot::KB, ..id }, heads * rank, nope)?;
        let v = self.values(TensorId { slot: Slot::VB, ..id }, heads * v_dim, rank)?;
        let mut bytes = Vec::with_capacity(4 * heads * (nope + v_dim) * rank);
        let mut put = |value: f32| bytes.extend(value.to_le_bytes());
        for h in 0..heads {
            (0..nope).for_each(|j| (0..rank).for_each(|r| put(k[(h * rank + r) * nope + j])));
            v[h * v_dim * rank..(h + 1) * v_dim * rank].iter().for_each(|x| put(*x));
        }
        let name = id.name(self.naming()).expect("invariant: this name was parsed");
        let shape = vec![heads * (nope + v_dim), rank];
        Ok(Some(TensorInfo { name, shape, format: format::F32, bytes: Bytes::from_vec(bytes) }))
    }

    fn values(&self, id: TensorId, rows: usize, cols: usize) -> Result<Vec<f32>, Fault> {
        let name = id.name(self.naming()).expect("invariant: GGUF has both tensors");
        let fault = |found: String| Fault::tensor(self.file_of(&name), &name, format!("[{rows}, {cols}]"), found);
        let Some(info) = self.archive.tensor(&name)? else { return Err(fault("no such tensor".to_owned())) };
        if info.shape.iter().product::<usize>() != rows * cols || info.shape.last() != Some(&cols) {
            return Err(fault(format!("{:?}", info.shape)));
        }
        Weight::new(info.format, rows, cols, info.bytes, None).map(|w| w.decode()).map_err(|e| fault(e.to_string()))
    }
}

impl TensorSource for Fused<'_> {
    fn naming(&self) -> Naming {
        TensorSource::naming(self.archive)
    }

    fn tensor(&self, name: &str) -> Result<Option<TensorInfo>, Fault> {
        match self.split(name) {
            Some(id) if id.slot == Slot::KvB => self.fuse(id),
            Some(_) => Ok(None),
            None => self.archive.tensor(name),
        }
    }

    fn contains(&self, name: &str) -> bool {
        self.split(name).map_or_else(|| self.archive.contains(name), |id| id.slot == Slot::KvB)
    }

    fn file_of(&self, name: &str) -> &Path {
        TensorSource::file_of(self.archive, name)
    }

    fn total_bytes(&self) -> u64 {
        self.archive.total_bytes()
    }
}
