//! Q4_0: 32 numbers in 18 bytes, 4.5 bits per weight: x = d · (q − 8).
//!
//! Block: f16 scale d, then 16 bytes; byte j holds number j in its low half and number j + 16 in its high half.
//! Source: ggml `dequantize_row_q4_0`, `quantize_row_q4_0_ref`.

use super::{BlockFormat, FormatId, inverse, peak, read_f16, write_f16};

/// 4-bit, symmetric.
pub const Q4_0: FormatId = FormatId("Q4_0");

pub(super) struct Codec;

impl BlockFormat for Codec {
    fn id(&self) -> FormatId {
        Q4_0
    }
    fn block_elems(&self) -> usize {
        32
    }
    fn block_bytes(&self) -> usize {
        18
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(2)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        let d = read_f16(bytes);
        for (j, q) in bytes[2..].iter().enumerate() {
            out[j] = (i32::from(q & 15) - 8) as f32 * d;
            out[j + 16] = (i32::from(q >> 4) - 8) as f32 * d;
        }
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        // The number of largest magnitude becomes −8 exactly: the range is not symmetric.
        let d = peak(x) / -8.0;
        let inverse = inverse(d);
        let q = |v: f32| (v * inverse + 8.5).min(15.0) as u8;
        write_f16(out, d);
        for (j, o) in out[2..].iter_mut().enumerate() {
            *o = q(x[j]) | q(x[j + 16]) << 4;
        }
        true
    }
}
