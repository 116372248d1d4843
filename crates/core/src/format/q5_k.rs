//! Q5_K: 256 numbers in 176 bytes, 5.5 bits per weight: x = d · s · q − dmin · m.
//!
//! Block: f16 d, f16 dmin and 12 bytes of scales and minima as in Q4_K, 32 bytes with the fifth bit of q
//! (number i: byte i % 32, bit i / 32), 128 bytes with the lower four as in Q4_K.
//! Source: ggml `dequantize_row_q5_K`.

use super::q4_k::{fit_pairs, unpack_pair};
use super::search::nearest_in;
use super::{BlockFormat, FormatId, inverse, read_f16};

/// 5-bit super-blocks with minima.
pub const Q5_K: FormatId = FormatId("Q5_K");

pub(super) struct Codec;

impl BlockFormat for Codec {
    fn id(&self) -> FormatId {
        Q5_K
    }
    fn block_elems(&self) -> usize {
        256
    }
    fn block_bytes(&self) -> usize {
        176
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(13)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        let (d, dmin) = (read_f16(bytes), read_f16(&bytes[2..]));
        let high = &bytes[16..48];
        for (j, out) in out.chunks_exact_mut(32).enumerate() {
            let (s, m) = unpack_pair(&bytes[4..16], j);
            let (scale, min) = (d * f32::from(s), dmin * f32::from(m));
            let low = &bytes[48 + j / 2 * 32..];
            for (l, o) in out.iter_mut().enumerate() {
                let q = low[l] >> (j % 2 * 4) & 15 | (high[l] >> j & 1) << 4;
                *o = scale * f32::from(q) - min;
            }
        }
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        let pairs = fit_pairs(x, 31.0, out);
        out[16..].fill(0);
        let level = nearest_in(0.0, 31.0);
        for (i, v) in x.iter().enumerate() {
            let (scale, min) = pairs[i / 32];
            let q = level((v + min) * inverse(scale)) as u8;
            out[48 + i / 64 * 32 + i % 32] |= (q & 15) << (i / 32 % 2 * 4);
            out[16 + i % 32] |= q >> 4 << (i / 32);
        }
        true
    }
}
