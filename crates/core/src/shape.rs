//! Shapes of at most four dimensions, kept inline so that a step allocates nothing for them.

use std::fmt;

/// A row-major shape; the last dimension is contiguous.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; 4],
    rank: u8,
}

impl Shape {
    /// `[rows, cols]`, the shape nearly every activation has: `[tokens, dim]`.
    pub const fn matrix(rows: usize, cols: usize) -> Self {
        Shape { dims: [rows, cols, 1, 1], rank: 2 }
    }

    /// A shape from one to four dimensions.
    ///
    /// # Panics
    /// If there are none or more than four.
    pub fn new(dims: &[usize]) -> Self {
        assert!((1..=4).contains(&dims.len()), "invariant: a shape has 1 to 4 dimensions, got {}", dims.len());
        let mut d = [1; 4];
        d[..dims.len()].copy_from_slice(dims);
        Shape { dims: d, rank: dims.len() as u8 }
    }

    /// The dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.dims().iter().product()
    }

    /// Size of the last dimension.
    pub fn cols(&self) -> usize {
        self.dims[self.rank as usize - 1]
    }

    /// Product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.dims()[..self.rank as usize - 1].iter().product()
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}
