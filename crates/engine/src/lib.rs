//! The engine: many sequences over one model, a step at a time.
//!
//! It speaks tokens and events. It must not know HTTP, JSON dialects, file formats, families or which device computes.
//! Start at [`runner`] (the line to the model) and [`blocks`] (cache memory), then [`sampler`].

#![forbid(unsafe_code)]

pub mod blocks;
mod error;
pub mod runner;
pub mod sampler;
mod scripted;

pub use error::{Error, Result};
pub use runner::{Runner, RunnerInfo, StepOutput};
pub use sampler::{Sampler, Sampling};
pub use scripted::ScriptedRunner;
