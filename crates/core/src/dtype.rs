//! Element types of activations and caches.
//!
//! Weights have block formats instead (see [`crate::format`]); this short list is only what an
//! operation may read or write.

/// Element type of a [`crate::Tensor`] or of a KV cache stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary32: activations everywhere, caches in exact precision.
    F32,
    /// IEEE binary16: caches in fast precision.
    F16,
    /// Unsigned 32-bit integers: token ids, expert ids.
    U32,
}

impl DType {
    /// Size of one element in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::F16 => 2,
        }
    }

    /// The name as error messages print it.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::U32 => "u32",
        }
    }
}
