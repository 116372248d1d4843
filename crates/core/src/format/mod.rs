//! Block formats: how numbers lie in a file, one file each.
//!
//! A format packs `block_elems` numbers into `block_bytes` bytes. Its scalar codec here is the executable
//! specification that every fast kernel is tested against. To add one: write `format/x.rs` with a `BlockFormat`
//! and an id, and add its three lines here (`mod`, `pub use`, `FORMATS`); it then loads, decodes, converts and
//! runs on every backend by decode-then-dot (`docs/adding-a-format.md`).

mod fp8;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod plain;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod search;

use std::fmt;

use half::f16;

pub use fp8::{E4M3_VALUES, F8_E4M3, UE8M0};
pub use iq4_nl::IQ4_NL;
pub use iq4_xs::IQ4_XS;
pub use mxfp4::MXFP4;
pub use plain::{BF16, F16, F32};
pub use q2_k::Q2_K;
pub use q3_k::Q3_K;
pub use q4_0::Q4_0;
pub use q4_1::Q4_1;
pub use q4_k::Q4_K;
pub use q5_0::Q5_0;
pub use q5_1::Q5_1;
pub use q5_k::Q5_K;
pub use q6_k::Q6_K;
pub use q8_0::{Q8_0, q8_0_run};

/// All known formats. The one place to add a line.
static FORMATS: &[&dyn BlockFormat] = &[
    &plain::PlainF32,
    &plain::PlainF16,
    &plain::PlainBf16,
    &fp8::E4M3,
    &fp8::Ue8M0,
    &q4_0::Codec,
    &q4_1::Codec,
    &q5_0::Codec,
    &q5_1::Codec,
    &q8_0::Codec,
    &q2_k::Codec,
    &q3_k::Codec,
    &q4_k::Codec,
    &q5_k::Codec,
    &q6_k::Codec,
    &iq4_nl::Codec,
    &iq4_xs::Codec,
    &mxfp4::Codec,
];

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

    /// Encodes one block as near as the format can come; returns whether the format can be written.
    ///
    /// The numbers must be finite: infinities and NaN give a valid block of unspecified numbers.
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

/// The f16 at the start of `bytes`.
fn read_f16(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Writes the nearest finite f16 to the start of `out`; 0 for a NaN.
fn write_f16(out: &mut [u8], v: f32) {
    out[..2].copy_from_slice(&f16::from_f32(round_f16(v)).to_le_bytes());
}

/// The nearest finite f16; 0 for a NaN.
fn round_f16(v: f32) -> f32 {
    let largest = f16::MAX.to_f32();
    if v.is_nan() { 0.0 } else { f16::from_f32(v.clamp(-largest, largest)).to_f32() }
}

/// The number of largest magnitude, with its sign; 0 if there is none.
fn peak(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |peak: f32, v| if v.abs() > peak.abs() { *v } else { peak })
}

/// Smallest and largest number.
fn range(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), v| (min.min(*v), max.max(*v)))
}

/// 1 / d, and 0 for a block of zeros.
#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}
