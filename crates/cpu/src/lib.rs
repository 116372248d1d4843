#![deny(unsafe_code)]
//! Floor 1: the CPU backend. A resident thread pool ([`pool`]), instruction levels ([`isa`]), kernels written once over
//! sixteen-lane vectors (`simd`, `kernels`), and the [`Backend`](fathom_core::Backend) made of them ([`Cpu`]).
//!
//! It must not know: files, model families, tokens, environment variables. It never prints.
//! Start at [`Cpu`], then `kernels`.
//!
//! Two laws hold everywhere: a row's result does not depend on the rows beside it nor on the number of
//! threads, and after the first steps nothing allocates. `unsafe` is in `simd` and `pool` only.

pub mod isa;
#[allow(unsafe_code)]
pub mod pool;
#[allow(unsafe_code)]
mod simd;

mod attention;
mod attention_grad;
mod attention_latent;
mod backend;
mod bandwidth;
mod gemm;
mod grad;
mod kernels;
mod kv;
mod matrix;
mod memory;
mod optim;
mod pack;
mod peak;
mod picture;
mod product;
mod scratch;

pub use backend::{Cpu, CpuOptions};
pub use bandwidth::{BandwidthProbe, read_bandwidth};
pub use gemm::Products;
pub use isa::Level;
pub use peak::{Peak, arithmetic_peak};
pub use pool::Pool;

/// Name of the device.
pub(crate) const DEVICE: &str = "cpu";
