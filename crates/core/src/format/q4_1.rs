//! Q4_1: 32 numbers in 20 bytes, 5 bits per weight: x = d · q + m.
//!
//! Block: f16 scale d, f16 minimum m, then 16 bytes as in Q4_0.
//! Source: ggml `dequantize_row_q4_1`, `quantize_row_q4_1_ref`.

use super::{BlockFormat, FormatId, inverse, range, read_f16, write_f16};

/// 4-bit with a minimum.
pub const Q4_1: FormatId = FormatId("Q4_1");

pub(super) struct Codec;

impl BlockFormat for Codec {
    fn id(&self) -> FormatId {
        Q4_1
    }
    fn block_elems(&self) -> usize {
        32
    }
    fn block_bytes(&self) -> usize {
        20
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(3)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        let (d, m) = (read_f16(bytes), read_f16(&bytes[2..]));
        for (j, q) in bytes[4..].iter().enumerate() {
            out[j] = f32::from(q & 15) * d + m;
            out[j + 16] = f32::from(q >> 4) * d + m;
        }
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        let (min, max) = range(x);
        let d = (max - min) / 15.0;
        let inverse = inverse(d);
        let q = |v: f32| ((v - min) * inverse + 0.5).min(15.0) as u8;
        write_f16(out, d);
        write_f16(&mut out[2..], min);
        for (j, o) in out[4..].iter_mut().enumerate() {
            *o = q(x[j]) | q(x[j + 16]) << 4;
        }
        true
    }
}
