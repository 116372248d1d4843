#![forbid(unsafe_code)]
//! Floor 0: the words every other crate speaks.
//!
//! Number formats ([`mod@format`]), weights as they lie in a file ([`weight`]), activations on some
//! device ([`tensor`]), the [`Backend`] trait that turns one into the other, and two backends that need
//! nothing else: [`mod@reference`] (slow, plain, the executable specification) and [`null`] (no data,
//! counts operations and bytes). [`timed`] stands in front of any of them and notes where time goes.
//!
//! It must not know: files, tokenizers, model families, threads, instruction sets.
//! Start at [`backend`], then [`mod@reference`].

pub mod backend;
pub mod check;
pub mod dtype;
pub mod error;
pub mod format;
pub mod grad;
pub mod host;
pub mod null;
pub mod optim;
pub mod reference;
pub mod rng;
pub mod rope;
pub mod shape;
pub mod tensor;
pub mod timed;
pub mod weight;

pub use backend::{
    AttendSpec, Backend, ConvSpec, GroupNormSpec, HeadProj, KvCache, KvStream, KvView, LatentForm, LatentSpec, Mask,
    Outputs, Precision, Proj, RouteSpec, Routing, Score, Span, Spans,
};
pub use dtype::DType;
pub use error::{Error, Result};
pub use format::{BlockFormat, FormatId};
pub use grad::Grad;
pub use rope::{RopeFreqs, RopeLayout};
pub use shape::Shape;
pub use tensor::{Buffer, Storage, Tensor};
pub use weight::{BlockScales, ByteSource, Bytes, Experts, Resident, ResidentExperts, Weight, address};
