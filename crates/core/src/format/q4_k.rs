//! Q4_K: 256 numbers in 144 bytes, 4.5 bits per weight: x = d · s · q − dmin · m.
//!
//! Block: f16 d, f16 dmin, 12 bytes with eight pairs of six-bit scale s and minimum m (one pair per 32
//! numbers), 128 bytes with q: sub-blocks 2k and 2k + 1 are the low and high halves of bytes 32k to 32k + 31.
//! Source: ggml `dequantize_row_q4_K`, `get_scale_min_k4`.

use super::search::{fit_affine, fit_multiples, nearest_in};
use super::{BlockFormat, FormatId, inverse, read_f16, write_f16};

/// 4-bit super-blocks with minima.
pub const Q4_K: FormatId = FormatId("Q4_K");

pub(super) struct Codec;

impl BlockFormat for Codec {
    fn id(&self) -> FormatId {
        Q4_K
    }
    fn block_elems(&self) -> usize {
        256
    }
    fn block_bytes(&self) -> usize {
        144
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(12)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        let (d, dmin) = (read_f16(bytes), read_f16(&bytes[2..]));
        for (j, out) in out.chunks_exact_mut(32).enumerate() {
            let (s, m) = unpack_pair(&bytes[4..16], j);
            let (scale, min) = (d * f32::from(s), dmin * f32::from(m));
            for (o, q) in out.iter_mut().zip(&bytes[16 + j / 2 * 32..]) {
                *o = scale * f32::from(q >> (j % 2 * 4) & 15) - min;
            }
        }
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        let pairs = fit_pairs(x, 15.0, out);
        out[16..].fill(0);
        let level = nearest_in(0.0, 15.0);
        for (i, v) in x.iter().enumerate() {
            let (scale, min) = pairs[i / 32];
            let q = level((v + min) * inverse(scale)) as u8;
            out[16 + i / 64 * 32 + i % 32] |= q << (i / 32 % 2 * 4);
        }
        true
    }
}

/// Scale and minimum of sub-block `j`: the first four pairs lie in the low six bits of bytes 0 to 3 and 4 to 7;
/// of the last four, bytes 8 to 11 hold the low four bits and the top of the other bytes the high two.
pub(super) fn unpack_pair(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    }
}

/// Finds and writes the first 16 bytes of a block of eight sub-blocks with levels 0 to `levels`; returns each
/// sub-block's scale and minimum as a decoder will see them.
pub(super) fn fit_pairs(x: &[f32], levels: f32, out: &mut [u8]) -> [(f32, f32); 8] {
    let (mut scales, mut mins) = ([0.0; 8], [0.0; 8]);
    for (j, x) in x.chunks_exact(32).enumerate() {
        (scales[j], mins[j]) = fit_affine(x, levels);
    }
    let (d, s) = fit_multiples(scales, 0.0, 63.0);
    let (dmin, m) = fit_multiples(mins, 0.0, 63.0);
    write_f16(out, d);
    write_f16(&mut out[2..], dmin);
    let packed = &mut out[4..16];
    for j in 0..4 {
        let (s_low, m_low, s_high, m_high) = (s[j] as u8, m[j] as u8, s[j + 4] as u8, m[j + 4] as u8);
        packed[j] = s_low | s_high >> 4 << 6;
        packed[j + 4] = m_low | m_high >> 4 << 6;
        packed[j + 8] = s_high & 15 | (m_high & 15) << 4;
    }
    std::array::from_fn(|j| (d * s[j], dmin * m[j]))
}
