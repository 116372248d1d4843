//! Q2_K: 256 numbers in 84 bytes, 2.63 bits per weight: x = d · s · q − dmin · m.
//!
//! Block: 16 bytes with a four-bit scale s (low half) and minimum m (high half) per 16 numbers, 64 bytes with
//! q, f16 d, f16 dmin. Number i lies in byte i / 128 · 32 + i % 32 at bit 2 · (i / 32 % 4).
//! Source: ggml `dequantize_row_q2_K`.

use super::search::{fit_affine, fit_multiples, nearest_in};
use super::{BlockFormat, FormatId, inverse, read_f16, write_f16};

/// 2-bit super-blocks with minima.
pub const Q2_K: FormatId = FormatId("Q2_K");

pub(super) struct Codec;

impl BlockFormat for Codec {
    fn id(&self) -> FormatId {
        Q2_K
    }
    fn block_elems(&self) -> usize {
        256
    }
    fn block_bytes(&self) -> usize {
        84
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(10)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        let (scales, low) = (&bytes[..16], &bytes[16..80]);
        let (d, dmin) = (read_f16(&bytes[80..]), read_f16(&bytes[82..]));
        for (j, out) in out.chunks_exact_mut(16).enumerate() {
            let (scale, min) = (d * f32::from(scales[j] & 15), dmin * f32::from(scales[j] >> 4));
            for (l, o) in out.iter_mut().enumerate() {
                let i = j * 16 + l;
                let q = low[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3;
                *o = scale * f32::from(q) - min;
            }
        }
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        let (mut scales, mut mins) = ([0.0; 16], [0.0; 16]);
        for (j, x) in x.chunks_exact(16).enumerate() {
            (scales[j], mins[j]) = fit_affine(x, 3.0);
        }
        let (d, s) = fit_multiples(scales, 0.0, 15.0);
        let (dmin, m) = fit_multiples(mins, 0.0, 15.0);
        let level = nearest_in(0.0, 3.0);
        out.fill(0);
        for (i, v) in x.iter().enumerate() {
            let q = level((v + dmin * m[i / 16]) * inverse(d * s[i / 16])) as u8;
            out[16 + i / 128 * 32 + i % 32] |= q << (2 * (i / 32 % 4));
        }
        for j in 0..16 {
            out[j] = s[j] as u8 | (m[j] as u8) << 4;
        }
        write_f16(&mut out[80..], d);
        write_f16(&mut out[82..], dmin);
        true
    }
}
