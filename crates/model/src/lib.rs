#![forbid(unsafe_code)]
//! Floor 2: model families, the spec they boil down to, and the one decoder that runs them all.
//!
//! [`Model::open`] reads what a model is; [`Model::load`] hands its weights to a backend and gives a [`Decoder`];
//! a [`Batch`] says what a step computes. Architecture names live in [`families`] alone.
//!
//! It must not know: which backend it runs on, threads, scheduling, sampling, printing.
//! Start at [`decoder`], then `mixer/` and `ffn/`.

pub mod adapter;
pub mod batch;
pub mod convert;
pub mod decoder;
pub mod error;
pub mod families;
pub mod ffn;
pub mod fused;
pub mod kv;
pub mod linear;
pub mod load;
pub mod mixer;
pub mod names;
pub mod picture;
pub mod probe;
pub mod spec;
pub mod weights;

pub use adapter::Adapter;
pub use batch::{Batch, Input, Logits};
pub use decoder::Decoder;
pub use error::{Error, Result};
pub use families::{AttnFactor, Options};
pub use fused::Fused;
pub use kv::{BLOCK, KvPool};
pub use load::{Defaults, Model};
pub use probe::{NoProbe, Probe};
pub use spec::ModelSpec;
