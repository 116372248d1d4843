//! Q5_0: 32 numbers in 22 bytes, 5.5 bits per weight: x = d · (q − 16).
//!
//! Block: f16 scale d, 32 bits with the fifth bit of every number, then 16 bytes as in Q4_0 with the lower four.
//! Source: ggml `dequantize_row_q5_0`, `quantize_row_q5_0_ref`.

use super::{BlockFormat, FormatId, inverse, peak, read_f16, write_f16};

/// 5-bit, symmetric.
pub const Q5_0: FormatId = FormatId("Q5_0");

pub(super) struct Codec;

impl BlockFormat for Codec {
    fn id(&self) -> FormatId {
        Q5_0
    }
    fn block_elems(&self) -> usize {
        32
    }
    fn block_bytes(&self) -> usize {
        22
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(6)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        let d = read_f16(bytes);
        let high = u32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]);
        let fifth = |i: usize| ((high >> i & 1) << 4) as i32;
        for (j, q) in bytes[6..].iter().enumerate() {
            out[j] = (i32::from(q & 15) + fifth(j) - 16) as f32 * d;
            out[j + 16] = (i32::from(q >> 4) + fifth(j + 16) - 16) as f32 * d;
        }
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        // The number of largest magnitude becomes −16 exactly: the range is not symmetric.
        let d = peak(x) / -16.0;
        let inverse = inverse(d);
        let q = |v: f32| (v * inverse + 16.5).min(31.0) as u8;
        write_f16(out, d);
        let mut high = 0u32;
        for (j, o) in out[6..].iter_mut().enumerate() {
            let (a, b) = (q(x[j]), q(x[j + 16]));
            *o = a & 15 | b << 4;
            high |= u32::from(a >> 4) << j | u32::from(b >> 4) << (j + 16);
        }
        out[2..6].copy_from_slice(&high.to_le_bytes());
        true
    }
}
