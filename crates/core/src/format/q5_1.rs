//! Q5_1: 32 numbers in 24 bytes, 6 bits per weight: x = d · q + m.
//!
//! Block: f16 scale d, f16 minimum m, 32 bits with the fifth bit of every number, then 16 bytes as in Q4_0.
//! Source: ggml `dequantize_row_q5_1`, `quantize_row_q5_1_ref`.

use super::{BlockFormat, FormatId, inverse, range, read_f16, write_f16};

/// 5-bit with a minimum.
pub const Q5_1: FormatId = FormatId("Q5_1");

pub(super) struct Codec;

impl BlockFormat for Codec {
    fn id(&self) -> FormatId {
        Q5_1
    }
    fn block_elems(&self) -> usize {
        32
    }
    fn block_bytes(&self) -> usize {
        24
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(7)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        let (d, m) = (read_f16(bytes), read_f16(&bytes[2..]));
        let high = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let fifth = |i: usize| (high >> i & 1) << 4;
        for (j, q) in bytes[8..].iter().enumerate() {
            out[j] = (u32::from(q & 15) | fifth(j)) as f32 * d + m;
            out[j + 16] = (u32::from(q >> 4) | fifth(j + 16)) as f32 * d + m;
        }
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        let (min, max) = range(x);
        let d = (max - min) / 31.0;
        let inverse = inverse(d);
        let q = |v: f32| ((v - min) * inverse + 0.5).min(31.0) as u8;
        write_f16(out, d);
        write_f16(&mut out[2..], min);
        let mut high = 0u32;
        for (j, o) in out[8..].iter_mut().enumerate() {
            let (a, b) = (q(x[j]), q(x[j + 16]));
            *o = a & 15 | b << 4;
            high |= u32::from(a >> 4) << j | u32::from(b >> 4) << (j + 16);
        }
        out[4..8].copy_from_slice(&high.to_le_bytes());
        true
    }
}
