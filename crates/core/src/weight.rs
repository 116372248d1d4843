//! Weights as they lie in a file, and as a backend holds them.
//!
//! A [`Weight`] is a view: format, shape, a slice of a mapped file. Nothing is copied until a backend's
//! `upload` decides to; it may then give the source pages back.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::{Error, FormatId, Result};

/// Memory that weights are read from: a mapped file, or a vector.
pub trait ByteSource: Send + Sync {
    /// All bytes.
    fn bytes(&self) -> &[u8];

    /// Says that a range will not be read again soon, so its pages may go. The contents stay valid.
    fn discard(&self, _range: Range<usize>) {}
}

impl ByteSource for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// Bytes inside the program.
impl ByteSource for &'static [u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A slice of a shared [`ByteSource`].
#[derive(Clone)]
pub struct Bytes {
    source: Arc<dyn ByteSource>,
    range: Range<usize>,
}

/// Where a source lies: its identity while it lives.
pub fn address(source: &Arc<dyn ByteSource>) -> usize {
    Arc::as_ptr(source).addr()
}

impl Bytes {
    /// The bytes `range` of `source`.
    ///
    /// # Panics
    /// If the range reaches past the end: readers check extents before they build one.
    pub fn new(source: Arc<dyn ByteSource>, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= source.bytes().len(),
            "invariant: a reader checks a tensor's extent before it makes a view"
        );
        Bytes { source, range }
    }

    /// Owned bytes.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Bytes { source: Arc::new(bytes), range }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.source.bytes()[self.range.clone()]
    }

    /// Where the source lies: equal for two slices of one source, without holding it.
    pub fn source_address(&self) -> usize {
        address(&self.source)
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// A part of the slice, relative to its start.
    ///
    /// # Panics
    /// If it reaches past the end.
    pub fn slice(&self, part: Range<usize>) -> Bytes {
        assert!(part.end <= self.range.len(), "invariant: a part lies inside its slice");
        Bytes { source: self.source.clone(), range: self.range.start + part.start..self.range.start + part.end }
    }

    /// Lets the pages behind the slice go.
    pub fn discard(&self) {
        self.source.discard(self.range.clone());
    }
}

/// Scales kept beside a weight, one per block of `block.0` rows and `block.1` columns (DeepSeek's FP8:
/// 128 × 128; V3 paper section 3.3, `weight_scale_inv`: multiply, despite the name).
#[derive(Clone)]
pub struct BlockScales {
    /// Scale values, row-major `[⌈rows/block.0⌉, ⌈cols/block.1⌉]` of the tensor as stored.
    pub bytes: Bytes,
    /// `F32`, `BF16`, or `UE8M0` (one byte u meaning 2^(u−127)).
    pub format: FormatId,
    /// Rows and columns that share a scale.
    pub block: (usize, usize),
    /// Row of the stored tensor at which this weight starts (not 0 after [`Weight::slice_rows`]).
    pub first_row: usize,
}

/// A matrix `[rows, cols]` = `[out, in]` as stored; a vector has one row.
#[derive(Clone)]
pub struct Weight {
    /// Block format.
    pub format: FormatId,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// The blocks, row after row.
    pub bytes: Bytes,
    /// Scales beside the blocks, for formats that need them.
    pub scales: Option<BlockScales>,
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weight({} [{}, {}])", self.format, self.rows, self.cols)
    }
}

impl Weight {
    /// A view of stored blocks.
    ///
    /// # Errors
    /// If rows are not whole blocks, or the bytes (or scales) do not make up the shape.
    pub fn new(format: FormatId, rows: usize, cols: usize, bytes: Bytes, scales: Option<BlockScales>) -> Result<Self> {
        let f = format.get();
        if !cols.is_multiple_of(f.block_elems()) {
            return Err(Error::RaggedRow { format, block: f.block_elems(), cols });
        }
        let size = |n: usize| Error::WeightSize {
            format,
            rows,
            cols,
            expected_bytes: n as u64,
            found_bytes: bytes.len() as u64,
        };
        let expected = (cols / f.block_elems())
            .checked_mul(f.block_bytes())
            .and_then(|r| r.checked_mul(rows))
            .ok_or_else(|| size(usize::MAX))?;
        if expected != bytes.len() {
            return Err(size(expected));
        }
        if let Some(s) = &scales {
            let n = rows.div_ceil(s.block.0) * cols.div_ceil(s.block.1) * s.format.get().block_bytes();
            if s.bytes.len() != n || s.first_row != 0 {
                return Err(Error::WeightSize {
                    format: s.format,
                    rows: rows.div_ceil(s.block.0),
                    cols: cols.div_ceil(s.block.1),
                    expected_bytes: n as u64,
                    found_bytes: s.bytes.len() as u64,
                });
            }
        }
        Ok(Weight { format, rows, cols, bytes, scales })
    }

    /// A weight made of f32 values, row-major.
    ///
    /// # Panics
    /// If `values` is not `rows × cols` long.
    pub fn from_f32(rows: usize, cols: usize, values: &[f32]) -> Self {
        assert_eq!(values.len(), rows * cols, "invariant: as many values as the shape has");
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Weight { format: crate::format::F32, rows, cols, bytes: Bytes::from_vec(bytes), scales: None }
    }

    /// Encodes f32 values, row-major, in `format`.
    ///
    /// # Errors
    /// If the format has no encoder or rows are not whole blocks.
    pub fn encode(format: FormatId, rows: usize, cols: usize, values: &[f32]) -> Result<Self> {
        assert_eq!(values.len(), rows * cols, "invariant: as many values as the shape has");
        let f = format.get();
        if !cols.is_multiple_of(f.block_elems()) {
            return Err(Error::RaggedRow { format, block: f.block_elems(), cols });
        }
        let mut bytes = vec![0; rows * cols / f.block_elems() * f.block_bytes()];
        for (x, out) in values.chunks_exact(f.block_elems()).zip(bytes.chunks_exact_mut(f.block_bytes())) {
            if !f.encode_block(x, out) {
                return Err(Error::NoEncoder(format));
            }
        }
        Ok(Weight { format, rows, cols, bytes: Bytes::from_vec(bytes), scales: None })
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        let f = self.format.get();
        self.cols / f.block_elems() * f.block_bytes()
    }

    /// The stored blocks of row `row`.
    pub fn row(&self, row: usize) -> &[u8] {
        let n = self.row_bytes();
        &self.bytes.as_slice()[row * n..(row + 1) * n]
    }

    /// Bytes in all, scales included.
    pub fn total_bytes(&self) -> usize {
        self.bytes.len() + self.scales.as_ref().map_or(0, |s| s.bytes.len())
    }

    /// Decodes row `row` into `out`, which holds `cols` values.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "invariant: a decoded row has as many values as the weight has columns");
        self.format.get().decode(self.row(row), out);
        if let Some(s) = &self.scales {
            let per_row = self.cols.div_ceil(s.block.1);
            let n = s.format.get().block_bytes();
            let first = (row + s.first_row) / s.block.0 * per_row;
            for (i, o) in out.chunks_mut(s.block.1).enumerate() {
                let mut scale = [0.0];
                s.format.get().decode_block(&s.bytes.as_slice()[(first + i) * n..(first + i + 1) * n], &mut scale);
                o.iter_mut().for_each(|v| *v *= scale[0]);
            }
        }
    }

    /// All values, row-major.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        for (r, o) in out.chunks_exact_mut(self.cols).enumerate() {
            self.decode_row(r, o);
        }
        out
    }

    /// Rows `range` as a weight of their own, without copying.
    ///
    /// # Panics
    /// If the range reaches past the last row.
    pub fn slice_rows(&self, range: Range<usize>) -> Weight {
        let n = self.row_bytes();
        let scales = self.scales.clone().map(|s| BlockScales { first_row: s.first_row + range.start, ..s });
        Weight { rows: range.len(), bytes: self.bytes.slice(range.start * n..range.end * n), scales, ..self.clone() }
    }
}

/// The weights of one projection of all routed experts of a layer.
#[derive(Clone, Debug)]
pub enum Experts {
    /// GGUF: one tensor `[experts × rows, cols]`.
    Stacked {
        /// All experts, one below the other.
        weight: Weight,
        /// How many there are.
        experts: usize,
    },
    /// Hugging Face: a tensor each.
    Each(Vec<Weight>),
}

impl Experts {
    /// Number of experts.
    pub fn len(&self) -> usize {
        match self {
            Experts::Stacked { experts, .. } => *experts,
            Experts::Each(all) => all.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Expert `i` as a weight of its own, without copying.
    pub fn get(&self, i: usize) -> Weight {
        match self {
            Experts::Stacked { weight, experts } => {
                let rows = weight.rows / experts;
                weight.slice_rows(i * rows..(i + 1) * rows)
            }
            Experts::Each(all) => all[i].clone(),
        }
    }
}

/// A weight that a backend has taken over: `[rows, cols]` = `[out, in]`.
#[derive(Clone)]
pub struct Resident {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Format of the numbers (a backend may have rearranged them).
    pub format: FormatId,
    device: &'static str,
    data: Arc<dyn Any + Send + Sync>,
}

impl Resident {
    /// Wraps a backend's own form of a weight.
    pub fn new(
        device: &'static str,
        rows: usize,
        cols: usize,
        format: FormatId,
        data: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Resident { rows, cols, format, device, data }
    }

    /// The backend's own form.
    ///
    /// # Errors
    /// If another backend made it.
    pub fn data<T: Any>(&self, op: &'static str, device: &'static str) -> Result<&T> {
        match self.data.downcast_ref() {
            Some(d) if self.device == device => Ok(d),
            _ => Err(Error::Foreign { op, expected: device, found: self.device }),
        }
    }
}

/// [`Experts`] that a backend has taken over: each `[rows, cols]`.
#[derive(Clone)]
pub struct ResidentExperts {
    /// Number of experts.
    pub experts: usize,
    /// The data: as for a [`Resident`], with the shape of one expert.
    pub each: Resident,
}
