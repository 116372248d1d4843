//! FP8 E4M3 and UE8M0: one byte per number, as DeepSeek stores weights and power-of-two scales.
//!
//! E4M3: sign, four exponent bits (bias 7), three mantissa bits; no infinities, all ones is NaN, largest 448.
//! UE8M0: a byte u means 2^(u − 127), 255 is NaN. E4M3 weights come with a scale per 128 × 128 block
//! ([`crate::BlockScales`]).
//! Source: Micikevicius et al., "FP8 Formats for Deep Learning"; OCP Microscaling Formats v1.0, section 5.

use super::{BlockFormat, FormatId};

/// 8-bit float with four exponent bits.
pub const F8_E4M3: FormatId = FormatId("F8_E4M3");
/// Power of two in a byte.
pub const UE8M0: FormatId = FormatId("UE8M0");

pub(super) struct E4M3;
pub(super) struct Ue8M0;

/// The value of every E4M3 byte.
pub static E4M3_VALUES: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, mantissa) = (code >> 3 & 15, (code & 7) as f32);
        let magnitude = match (exponent, code & 7) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa / 512.0,
            // Two to the power exponent − 7, written as the bits of an f32.
            _ => (1.0 + mantissa / 8.0) * f32::from_bits((exponent + 120) << 23),
        };
        table[code as usize] = if code < 128 { magnitude } else { -magnitude };
        code += 1;
    }
    table
};

impl BlockFormat for E4M3 {
    fn id(&self) -> FormatId {
        F8_E4M3
    }
    fn block_elems(&self) -> usize {
        1
    }
    fn block_bytes(&self) -> usize {
        1
    }
    fn gguf_code(&self) -> Option<u32> {
        None
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        out[0] = E4M3_VALUES[bytes[0] as usize];
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        let (magnitude, sign) = (x[0].abs(), (x[0].is_sign_negative() as u8) << 7);
        out[0] = sign
            | if magnitude.is_nan() {
                0x7f
            } else if magnitude < 1.0 / 64.0 {
                // Below the smallest normal number the steps are 2^-9.
                (magnitude * 512.0).round_ties_even() as u8
            } else {
                // Round to three mantissa bits, ties to even, and move the exponent's bias from 127 to 7.
                let bits = magnitude.to_bits();
                let rounded = bits.saturating_add(0x7ffff + (bits >> 20 & 1)) >> 20;
                (rounded - (120 << 3)).min(0x7e) as u8
            };
        true
    }
}

impl BlockFormat for Ue8M0 {
    fn id(&self) -> FormatId {
        UE8M0
    }
    fn block_elems(&self) -> usize {
        1
    }
    fn block_bytes(&self) -> usize {
        1
    }
    fn gguf_code(&self) -> Option<u32> {
        None
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        out[0] = match bytes[0] {
            0 => f32::MIN_POSITIVE / 2.0,
            255 => f32::NAN,
            u => f32::from_bits(u32::from(u) << 23),
        };
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        let bits = x[0].max(0.0).to_bits();
        out[0] = match bits {
            _ if x[0].is_nan() => 255,
            // Below the smallest normal f32 there is no mantissa to round: 2^-127 up to one and a half of it.
            0..0x60_0000 => 0,
            // Half a mantissa more carries into the exponent exactly when the next power of two is nearer.
            _ => (bits.saturating_add(1 << 22) >> 23).min(254) as u8,
        };
        true
    }
}
