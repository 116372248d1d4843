#![forbid(unsafe_code)]
//! (filled next)
