//! IQ4_XS: 256 numbers in 136 bytes, 4.25 bits per weight: x = d · (s − 32) · `LEVELS[q]`.
//!
//! Block: f16 d, 16 bits with the high two bits of eight six-bit scales s (one per 32 numbers), 4 bytes with
//! the low four, two to a byte, then 16 bytes per sub-block as in IQ4_NL, with its levels.
//! Source: ggml `dequantize_row_iq4_xs`.

use super::iq4_nl::{LEVELS, fit_levels, nearest_level};
use super::search::fit_multiples;
use super::{BlockFormat, FormatId, inverse, read_f16, write_f16};

/// 4-bit super-blocks with uneven levels.
pub const IQ4_XS: FormatId = FormatId("IQ4_XS");

pub(super) struct Codec;

impl BlockFormat for Codec {
    fn id(&self) -> FormatId {
        IQ4_XS
    }
    fn block_elems(&self) -> usize {
        256
    }
    fn block_bytes(&self) -> usize {
        136
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(23)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        let d = read_f16(bytes);
        let high = u16::from_le_bytes([bytes[2], bytes[3]]);
        for (j, out) in out.chunks_exact_mut(32).enumerate() {
            let s = bytes[4 + j / 2] >> (j % 2 * 4) & 15 | ((high >> (2 * j) & 3) << 4) as u8;
            let scale = d * f32::from(s as i8 - 32);
            for (l, q) in bytes[8 + j * 16..8 + (j + 1) * 16].iter().enumerate() {
                out[l] = scale * f32::from(LEVELS[usize::from(q & 15)]);
                out[l + 16] = scale * f32::from(LEVELS[usize::from(q >> 4)]);
            }
        }
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        let mut scales = [0.0; 8];
        for (s, x) in scales.iter_mut().zip(x.chunks_exact(32)) {
            *s = fit_levels(x);
        }
        let (d, multiples) = fit_multiples(scales, -32.0, 31.0);
        out.fill(0);
        write_f16(out, d);
        let mut high = 0u16;
        for (j, x) in x.chunks_exact(32).enumerate() {
            let s = (multiples[j] + 32.0) as u8;
            out[4 + j / 2] |= (s & 15) << (j % 2 * 4);
            high |= u16::from(s >> 4) << (2 * j);
            let inverse = inverse(d * multiples[j]);
            for l in 0..16 {
                out[8 + j * 16 + l] = nearest_level(x[l] * inverse) | nearest_level(x[l + 16] * inverse) << 4;
            }
        }
        out[2..4].copy_from_slice(&high.to_le_bytes());
        true
    }
}
