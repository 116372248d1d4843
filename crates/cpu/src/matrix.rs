//! Weights as this backend holds them.

use fathom_core::{Weight, format};

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
    /// By packed panels and int8 activations; plain matrices are packed panel by panel on the way.
    Packed(Layout),
}

impl Matrix {
    /// The way of a product in fast precision.
    pub(crate) fn fast_way(&self) -> Way {
        let layout = match self {
            Matrix::Plain(w) => Layout::of(w.format),
            Matrix::Packed(p) => Some(p.layout),
        };
        layout.map_or(Way::Widened, Way::Packed)
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

/// What a `Resident` holds: one matrix, or one per expert.
pub(crate) struct Held {
    /// The matrices, all of one shape.
    pub(crate) each: Vec<Matrix>,
    /// The numbers of a vector (norm weight, bias), decoded once.
    pub(crate) vector: Option<Vec<f32>>,
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
}

impl Widen {
    /// How `weight` is widened, if it is that simple.
    pub(crate) fn of(weight: &Weight) -> Option<Widen> {
        match weight.format {
            _ if weight.scales.is_some() => None,
            format::F32 => Some(Widen::F32),
            format::F16 => Some(Widen::F16),
            format::BF16 => Some(Widen::Bf16),
            _ => None,
        }
    }
}
