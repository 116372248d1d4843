//! MXFP4: 32 numbers in 17 bytes, 4.25 bits per weight: x = 2^(e − 128) · `DOUBLED[q]`.
//!
//! Block: exponent byte e, then 16 bytes as in Q4_0. A q is a sign and three bits of an E2M1 float; the table holds
//! its value twice over, hence 128 where the scale's own bias is 127.
//! Source: OCP Microscaling Formats v1.0; ggml `dequantize_row_mxfp4`.

use super::{BlockFormat, FormatId, peak};

/// 4-bit floats with a power of two for scale.
pub const MXFP4: FormatId = FormatId("MXFP4");

pub(super) struct Codec;

const DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

fn scale(e: u8) -> f32 {
    match e {
        0 | 1 => f32::from_bits(0x20_0000 << e),
        e => f32::from_bits((u32::from(e) - 1) << 23),
    }
}

/// Index of the nearest value; of two equally near, the smaller.
fn nearest(v: f32) -> u8 {
    let middles = DOUBLED[..8].windows(2).map(|pair| f32::from(pair[0] + pair[1]) / 2.0);
    let magnitude = middles.filter(|middle| v.abs() > *middle).count() as u8;
    if magnitude > 0 && v < 0.0 { magnitude | 8 } else { magnitude }
}

impl BlockFormat for Codec {
    fn id(&self) -> FormatId {
        MXFP4
    }
    fn block_elems(&self) -> usize {
        32
    }
    fn block_bytes(&self) -> usize {
        17
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(39)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        let d = scale(bytes[0]);
        for (j, q) in bytes[1..].iter().enumerate() {
            out[j] = d * f32::from(DOUBLED[usize::from(q & 15)]);
            out[j + 16] = d * f32::from(DOUBLED[usize::from(q >> 4)]);
        }
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        // The largest number falls between the values 4 and 8 times the scale, of which the format has 4 and 6.
        let e = (peak(x).abs().to_bits() >> 23).saturating_sub(2) as u8;
        let inverse = 1.0 / scale(e);
        out[0] = e;
        for (j, o) in out[1..].iter_mut().enumerate() {
            *o = nearest(x[j] * inverse) | nearest(x[j + 16] * inverse) << 4;
        }
        true
    }
}
