//! Weights as this backend holds them.

use fathom_core::{Weight, format};

/// One matrix.
pub(crate) enum Matrix {
    /// As stored, in the source's memory.
    Plain(Weight),
}

impl Matrix {
    /// Takes over a weight.
    pub(crate) fn new(weight: &Weight) -> Matrix {
        Matrix::Plain(weight.clone())
    }

    /// Decodes row `row`.
    pub(crate) fn decode_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Matrix::Plain(w) => w.decode_row(row, out),
        }
    }

    /// Bytes that a product reads per row.
    pub(crate) fn row_bytes(&self) -> usize {
        match self {
            Matrix::Plain(w) => w.row_bytes(),
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

impl Held {
    /// One matrix, or a vector.
    pub(crate) fn one(weight: &Weight) -> Held {
        let vector = (weight.rows == 1 || weight.cols == 1).then(|| weight.decode());
        Held { each: vec![Matrix::new(weight)], vector }
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
