//! Kernels: what a task of a region does, each written once over [`crate::simd::Simd`].

pub(crate) mod attend;
pub(crate) mod dot;
pub(crate) mod gemm;
pub(crate) mod latent;
pub(crate) mod packed;
pub(crate) mod route;
pub(crate) mod rows;
