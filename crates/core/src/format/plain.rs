//! F32, F16, BF16: one number per block.

use half::{bf16, f16};

use super::{BlockFormat, FormatId};

/// IEEE binary32.
pub const F32: FormatId = FormatId("F32");
/// IEEE binary16.
pub const F16: FormatId = FormatId("F16");
/// bfloat16: the upper half of a binary32.
pub const BF16: FormatId = FormatId("BF16");

pub(super) struct PlainF32;
pub(super) struct PlainF16;
pub(super) struct PlainBf16;

impl BlockFormat for PlainF32 {
    fn id(&self) -> FormatId {
        F32
    }
    fn block_elems(&self) -> usize {
        1
    }
    fn block_bytes(&self) -> usize {
        4
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(0)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        out[0] = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        out.copy_from_slice(&x[0].to_le_bytes());
        true
    }
}

impl BlockFormat for PlainF16 {
    fn id(&self) -> FormatId {
        F16
    }
    fn block_elems(&self) -> usize {
        1
    }
    fn block_bytes(&self) -> usize {
        2
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(1)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        out[0] = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        out.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes());
        true
    }
}

impl BlockFormat for PlainBf16 {
    fn id(&self) -> FormatId {
        BF16
    }
    fn block_elems(&self) -> usize {
        1
    }
    fn block_bytes(&self) -> usize {
        2
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(30)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        out[0] = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        out.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes());
        true
    }
}
