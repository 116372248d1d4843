//! Block formats: how numbers lie in a file, one file each.
//!
//! A format packs `block_elems` numbers into `block_bytes` bytes. Its scalar codec here is the executable
//! specification that every fast kernel is tested against. To add one: write `format/x.rs` with a `BlockFormat` and
//! an id, and add its line to [`FORMATS`]; it then loads, decodes, converts and runs on every backend by
//! decode-then-dot (`docs/adding-a-format.md`).

mod plain;

use std::fmt;

pub use plain::{BF16, F16, F32};

/// All known formats. The one place to add a line.
static FORMATS: &[&dyn BlockFormat] = &[&plain::PlainF32, &plain::PlainF16, &plain::PlainBf16];

/// Names a block format; constants such as [`F32`] can be matched on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FormatId(&'static str);

impl FormatId {
    /// The codec.
    pub fn get(self) -> &'static dyn BlockFormat {
        *FORMATS.iter().find(|f| f.id() == self).expect("invariant: every format id has a line in FORMATS")
    }

    /// The name, as GGUF tools print it (`Q4_K`).
    pub fn name(self) -> &'static str {
        self.0
    }

    /// Every known format.
    pub fn all() -> impl Iterator<Item = FormatId> {
        FORMATS.iter().map(|f| f.id())
    }

    /// The format that GGUF numbers `code`.
    pub fn from_gguf(code: u32) -> Option<FormatId> {
        FORMATS.iter().find(|f| f.gguf_code() == Some(code)).map(|f| f.id())
    }
}

impl fmt::Display for FormatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for FormatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A number format made of blocks of fixed size.
pub trait BlockFormat: Send + Sync {
    /// Its name.
    fn id(&self) -> FormatId;

    /// Numbers per block.
    fn block_elems(&self) -> usize;

    /// Bytes per block.
    fn block_bytes(&self) -> usize;

    /// Its number in GGUF (`ggml_type`), if it has one.
    fn gguf_code(&self) -> Option<u32>;

    /// Decodes one block; `bytes` and `out` have exactly the block's sizes.
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]);

    /// Encodes one block by rounding to the nearest value; returns whether the format can be written.
    fn encode_block(&self, _x: &[f32], _out: &mut [u8]) -> bool {
        false
    }

    /// Decodes a run of blocks.
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        for (b, o) in bytes.chunks_exact(self.block_bytes()).zip(out.chunks_exact_mut(self.block_elems())) {
            self.decode_block(b, o);
        }
    }
}
