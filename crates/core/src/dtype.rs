//! Element types of activations and caches.
//!
//! Weights have block formats instead (see [`crate::format`]); this short list is only what an
//! operation may read or write.

/// Consecutive elements of a row that share a scale in [`DType::Q8_0`]; the last of a row may be fewer.
pub const RUN: usize = 32;

/// Element type of a [`crate::Tensor`] or of a KV cache stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary32: activations everywhere, caches in exact precision.
    F32,
    /// IEEE binary16: caches in fast precision.
    F16,
    /// Signed bytes with a binary16 scale for every 32 of a row ([`crate::format::Q8_0`]): caches that shall be small.
    Q8_0,
    /// Unsigned 32-bit integers: token ids, expert ids.
    U32,
}

impl DType {
    /// Bytes of a row of `n` elements.
    pub const fn bytes(self, n: usize) -> usize {
        match self {
            DType::F32 | DType::U32 => 4 * n,
            DType::F16 => 2 * n,
            DType::Q8_0 => n + 2 * n.div_ceil(RUN),
        }
    }

    /// The name as error messages print it.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Q8_0 => "q8_0",
            DType::U32 => "u32",
        }
    }
}
