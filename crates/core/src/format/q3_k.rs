//! Q3_K: 256 numbers in 110 bytes, 3.44 bits per weight: x = d · (s − 32) · (q − 4).
//!
//! Block: 32 bytes with the high bit of q, 64 bytes with the low two, 12 bytes with 16 six-bit scales s (one
//! per 16 numbers: low four bits first, two to a byte, then the high two, four to a byte), f16 d. Number i has its high
//! bit in byte i % 32 at bit i / 32, its low bits in byte i / 128 · 32 + i % 32 at bit 2 · (i / 32 % 4).
//! Source: ggml `dequantize_row_q3_K`.

use super::search::{fit_multiples, fit_scale, nearest_in};
use super::{BlockFormat, FormatId, inverse, read_f16, write_f16};

/// 3-bit super-blocks, symmetric.
pub const Q3_K: FormatId = FormatId("Q3_K");

pub(super) struct Codec;

impl BlockFormat for Codec {
    fn id(&self) -> FormatId {
        Q3_K
    }
    fn block_elems(&self) -> usize {
        256
    }
    fn block_bytes(&self) -> usize {
        110
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(11)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        let (high, low, packed) = (&bytes[..32], &bytes[32..96], &bytes[96..108]);
        let d = read_f16(&bytes[108..]);
        for (j, out) in out.chunks_exact_mut(16).enumerate() {
            let s = packed[j % 8] >> (j / 8 * 4) & 15 | (packed[8 + j % 4] >> (j / 4 * 2) & 3) << 4;
            let scale = d * f32::from(s as i8 - 32);
            for (l, o) in out.iter_mut().enumerate() {
                let i = j * 16 + l;
                let q = low[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3 | (high[i % 32] >> (i / 32) & 1) << 2;
                *o = scale * f32::from(q as i8 - 4);
            }
        }
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        let level = nearest_in(-4.0, 3.0);
        let mut scales = [0.0; 16];
        for (s, x) in scales.iter_mut().zip(x.chunks_exact(16)) {
            *s = fit_scale(x, -4.0, 1.0, &level);
        }
        let (d, multiples) = fit_multiples(scales, -32.0, 31.0);
        out.fill(0);
        for (i, v) in x.iter().enumerate() {
            let q = (level(v * inverse(d * multiples[i / 16])) + 4.0) as u8;
            out[i % 32] |= q >> 2 << (i / 32);
            out[32 + i / 128 * 32 + i % 32] |= (q & 3) << (2 * (i / 32 % 4));
        }
        for (j, m) in multiples.iter().enumerate() {
            let s = (m + 32.0) as u8;
            out[96 + j % 8] |= (s & 15) << (j / 8 * 4);
            out[104 + j % 4] |= s >> 4 << (j / 4 * 2);
        }
        write_f16(&mut out[108..], d);
        true
    }
}
