//! Q8_0: 32 numbers in 34 bytes, 8.5 bits per weight: x = d · q.
//!
//! Block: f16 scale d, then 32 signed bytes.
//! Source: ggml `dequantize_row_q8_0`, `quantize_row_q8_0_ref`.

use super::{BlockFormat, FormatId, inverse, peak, read_f16, write_f16};

/// 8-bit, symmetric.
pub const Q8_0: FormatId = FormatId("Q8_0");

pub(super) struct Codec;

impl BlockFormat for Codec {
    fn id(&self) -> FormatId {
        Q8_0
    }
    fn block_elems(&self) -> usize {
        32
    }
    fn block_bytes(&self) -> usize {
        34
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(8)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        let d = read_f16(bytes);
        for (o, q) in out.iter_mut().zip(&bytes[2..]) {
            *o = f32::from(*q as i8) * d;
        }
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        let d = peak(x).abs() / 127.0;
        let inverse = inverse(d);
        write_f16(out, d);
        for (o, v) in out[2..].iter_mut().zip(x) {
            *o = (v * inverse).round() as i8 as u8;
        }
        true
    }
}
