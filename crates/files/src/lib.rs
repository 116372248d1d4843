#![deny(unsafe_code)]
//! Floor 1: model files. Reads GGUF and Hugging Face directories, writes GGUF and safetensors.
//!
//! Files are mapped, never copied, never changed. Everything in them is treated as hostile: lengths are
//! capped and checked before they are used, and a load reports every [`Fault`] it can find, not the first.
//!
//! It must not know: what a tensor is for (families live in `model`), tokenizers, the network.
//! Start at [`Archive`], the one type over both kinds of model file.

mod archive;
mod cursor;
mod fault;
pub mod gguf;
mod gguf_write;
mod map;
mod metadata;
mod new_file;
mod pickle;
pub mod safetensors;
mod safetensors_write;
mod table;

pub use archive::{Archive, Kind, Sidecar, read_capped};
pub use fault::{Error, Fault, Faults, Place, Result};
pub use gguf_write::{Element, GgufData, GgufWriter, IntoValue};
pub use map::Map;
pub use metadata::{Array, FromValue, Metadata, Value};
pub use new_file::{NewFile, write_file};
pub use safetensors_write::{SafeTensorsWriter, TensorData};
pub use table::TensorInfo;
