#![forbid(unsafe_code)]
//! Floor 4: the decoder that serves, learning.
//!
//! [`Tape`] records what a decoder does and walks it back; [`Params`] holds the weights that learn; [`optim`] changes them.
//!
//! It must not know: a model's family, a particular backend. Start at [`tape`].

pub mod optim;
pub mod params;
pub mod tape;
pub mod trainer;

pub use optim::{AdamW, Muon, Optimiser};
pub use params::{Param, Params};
pub use tape::Tape;
pub use trainer::{Example, Report, Trainer};
