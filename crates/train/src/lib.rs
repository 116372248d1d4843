#![forbid(unsafe_code)]
//! Floor 4: the decoder that serves, learning.
//!
//! [`Tape`] records what a decoder does and walks it back; [`Params`] holds the weights that learn; [`optim`] changes them.
//!
//! A [`Recipe`] says what to learn, a [`Run`] does it, stage after stage, in a folder; [`lora`] teaches an existing model by
//! [`conversations`]. It must not know: a particular backend, the terminal.
//! Start at [`run`], then [`trainer`] and [`tape`].

pub mod card;
pub mod checkpoint;
pub mod conversations;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod grpo;
pub mod lora;
pub mod merge;
pub mod optim;
pub mod params;
pub mod policy;
pub mod recipe;
pub mod report;
pub mod run;
pub mod tape;
pub mod trainer;
pub mod vocabulary;

pub use error::{Error, Result};
pub use optim::{AdamW, Muon, Optimiser};
pub use params::{Param, Params};
pub use recipe::Recipe;
pub use run::{Run, Stage};
pub use tape::Tape;
pub use trainer::{Example, Report, Trainer};
