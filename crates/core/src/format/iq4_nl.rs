//! IQ4_NL: 32 numbers in 18 bytes, 4.5 bits per weight: x = d · `LEVELS[q]`.
//!
//! Block: f16 d, then 16 bytes as in Q4_0. The 16 levels lie closer together near zero, where most weights are.
//! Source: ggml `dequantize_row_iq4_nl`, `kvalues_iq4nl`.

use super::search::fit_scale;
use super::{BlockFormat, FormatId, inverse, read_f16, round_f16, write_f16};

/// 4-bit with uneven levels.
pub const IQ4_NL: FormatId = FormatId("IQ4_NL");

pub(super) struct Codec;

/// The levels, ascending.
pub(super) const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl BlockFormat for Codec {
    fn id(&self) -> FormatId {
        IQ4_NL
    }
    fn block_elems(&self) -> usize {
        32
    }
    fn block_bytes(&self) -> usize {
        18
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(20)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        let d = read_f16(bytes);
        for (j, q) in bytes[2..].iter().enumerate() {
            out[j] = d * f32::from(LEVELS[usize::from(q & 15)]);
            out[j + 16] = d * f32::from(LEVELS[usize::from(q >> 4)]);
        }
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        let d = round_f16(fit_levels(x));
        let inverse = inverse(d);
        write_f16(out, d);
        for (j, o) in out[2..].iter_mut().enumerate() {
            *o = nearest_level(x[j] * inverse) | nearest_level(x[j + 16] * inverse) << 4;
        }
        true
    }
}

/// Index of the level nearest to `v`.
pub(super) fn nearest_level(v: f32) -> u8 {
    LEVELS.windows(2).filter(|pair| v > (f32::from(pair[0]) + f32::from(pair[1])) / 2.0).count() as u8
}

/// The scale that fits the levels to `x` best.
pub(super) fn fit_levels(x: &[f32]) -> f32 {
    fit_scale(x, -127.0, 23.0, |v| f32::from(LEVELS[usize::from(nearest_level(v))]))
}
