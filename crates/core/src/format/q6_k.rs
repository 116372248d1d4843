//! Q6_K: 256 numbers in 210 bytes, 6.56 bits per weight: x = d · s · (q − 32).
//!
//! Block: 128 bytes with the low four bits of q, 64 bytes with the high two, 16 signed scales s (one per 16
//! numbers), f16 d. Each half of the block holds 128 numbers as four runs of 32: the low bits of runs 0 and 2 share
//! bytes, as do those of runs 1 and 3; the high bits of all four share a byte.
//! Source: ggml `dequantize_row_q6_K`.

use super::search::{fit_multiples, fit_scale, nearest_in};
use super::{BlockFormat, FormatId, inverse, read_f16, write_f16};

/// 6-bit super-blocks, symmetric.
pub const Q6_K: FormatId = FormatId("Q6_K");

pub(super) struct Codec;

impl BlockFormat for Codec {
    fn id(&self) -> FormatId {
        Q6_K
    }
    fn block_elems(&self) -> usize {
        256
    }
    fn block_bytes(&self) -> usize {
        210
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(14)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        let d = read_f16(&bytes[208..]);
        for (half, out) in out.chunks_exact_mut(128).enumerate() {
            let (low, high) = (&bytes[half * 64..], &bytes[128 + half * 32..]);
            let scale = |i: usize| d * f32::from(bytes[192 + half * 8 + i] as i8);
            for l in 0..32 {
                let q = |low: u8, run: usize| f32::from((low & 15 | (high[l] >> (2 * run) & 3) << 4) as i8 - 32);
                out[l] = scale(l / 16) * q(low[l], 0);
                out[l + 32] = scale(l / 16 + 2) * q(low[l + 32], 1);
                out[l + 64] = scale(l / 16 + 4) * q(low[l] >> 4, 2);
                out[l + 96] = scale(l / 16 + 6) * q(low[l + 32] >> 4, 3);
            }
        }
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        let mut scales = [0.0; 16];
        for (s, x) in scales.iter_mut().zip(x.chunks_exact(16)) {
            *s = fit_scale(x, -32.0, 1.0, nearest_in(-32.0, 31.0));
        }
        let (d, multiples) = fit_multiples(scales, -128.0, 127.0);
        out.fill(0);
        let level = nearest_in(-32.0, 31.0);
        for (i, v) in x.iter().enumerate() {
            let q = (level(v * inverse(d * multiples[i / 16])) + 32.0) as u8;
            let (half, run, l) = (i / 128, i / 32 % 4, i % 32);
            out[half * 64 + run % 2 * 32 + l] |= (q & 15) << (run / 2 * 4);
            out[128 + half * 32 + l] |= q >> 4 << (2 * run);
        }
        for (o, m) in out[192..208].iter_mut().zip(multiples) {
            *o = m as i8 as u8;
        }
        write_f16(&mut out[208..], d);
        true
    }
}
