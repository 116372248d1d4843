//! Kernels: what a task of a region does, each written once over [`crate::simd::Simd`].
//!
//! Register tiles are small arrays that loops of constant length walk by index: several arrays in step, which iterators would only
//! obscure.
#![allow(clippy::needless_range_loop)]

pub(crate) mod attend;
pub(crate) mod dot;
pub(crate) mod gemm;
pub(crate) mod grad;
pub(crate) mod grouped;
pub(crate) mod latent;
pub(crate) mod optim;
pub(crate) mod pack;
pub(crate) mod packed;
pub(crate) mod picture;
pub(crate) mod route;
pub(crate) mod rows;
pub(crate) mod tile;
