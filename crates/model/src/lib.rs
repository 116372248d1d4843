#![forbid(unsafe_code)]
//! Floor 2: model families, the spec they boil down to, and the one decoder that runs them all.

pub mod batch;

pub use batch::{Batch, Logits};
