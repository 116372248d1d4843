//! Weights as this backend holds them.

use std::sync::OnceLock;

use fathom_core::{Weight, format};
use half::f16;

use crate::pack::{Layout, Packed};

/// One matrix.
pub(crate) enum Matrix {
    /// As stored, in the source's memory.
    Plain(Weight),
    /// Rearranged, in memory of our own.
    Packed(Packed),
}

/// How a product with a matrix is computed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Decoded to f32 and multiplied there.
    Widened,
    /// In bfloat16 with f32 sums.
    Brain,
    /// By packed panels and activations rounded to integers; plain matrices are packed panel by panel on the way.
    Packed(Layout),
}

impl Matrix {
    /// The way of a product in fast precision; `brain` says whether bfloat16 is read in panels.
    pub(crate) fn fast_way(&self, brain: bool) -> Way {
        match self {
            Matrix::Packed(p) if p.layout == Layout::PAIRS => Way::Brain,
            Matrix::Packed(p) => Way::Packed(p.layout),
            Matrix::Plain(w) if brain && pairs(w) => Way::Brain,
            Matrix::Plain(w) => Layout::of(w.format).map_or(Way::Widened, Way::Packed),
        }
    }

    /// Decodes row `row`.
    pub(crate) fn decode_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Matrix::Plain(w) => w.decode_row(row, out),
            Matrix::Packed(p) => p.decode_row(row, out),
        }
    }

    /// Bytes that a product reads per row.
    pub(crate) fn row_bytes(&self) -> usize {
        match self {
            Matrix::Plain(w) => w.row_bytes(),
            Matrix::Packed(p) => p.panel_bytes() / crate::pack::ROWS,
        }
    }
}

/// Whether a weight is read in panels of bfloat16.
pub(crate) fn pairs(w: &Weight) -> bool {
    w.format == format::BF16 && w.scales.is_none() && w.cols.is_multiple_of(32)
}

/// What a `Resident` holds: one matrix, or one per expert.
pub(crate) struct Held {
    /// The matrices, all of one shape.
    pub(crate) each: Vec<Matrix>,
    /// The numbers of a vector (norm weight, bias), decoded once.
    pub(crate) vector: Option<Vec<f32>>,
    /// The whole matrix widened for latent attention, made when first asked for; the second with every head's slab transposed.
    pub(crate) wide: [OnceLock<Wide>; 2],
}

/// A widened matrix.
pub(crate) enum Wide {
    /// In exact precision.
    F32(Vec<f32>),
    /// In fast precision.
    F16(Vec<f16>),
}

impl Held {
    /// Holds matrices.
    pub(crate) fn new(each: Vec<Matrix>, vector: Option<Vec<f32>>) -> Held {
        Held { each, vector, wide: [const { OnceLock::new() }; 2] }
    }
}

/// Formats whose blocks are single numbers that a kernel widens in registers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Widen {
    /// Binary32.
    F32,
    /// Binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// FP8-E4M3.
    E4m3,
}

impl Widen {
    /// How `weight` is widened, if it is that simple.
    pub(crate) fn of(weight: &Weight) -> Option<Widen> {
        match weight.format {
            format::F32 => Some(Widen::F32),
            format::F16 => Some(Widen::F16),
            format::BF16 => Some(Widen::Bf16),
            format::F8_E4M3 => Some(Widen::E4m3),
            _ => None,
        }
    }
}
