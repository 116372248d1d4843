#![deny(unsafe_code)]
//! What tests of several crates share: random weights, the behaviour suite of backends, readers of golden data.
//!
//! Start at [`backend_suite`], the definition of "this backend works".

pub mod alloc;
pub mod backend_suite;
pub mod hostile;
pub mod picture_models;
pub mod random;
pub mod rehearsal;
pub mod vocab;
