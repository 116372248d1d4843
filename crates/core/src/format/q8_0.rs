//! Q8_0: 32 numbers in 34 bytes, 8.5 bits per weight: x = d · q.
//!
//! Block: f16 scale d, then 32 signed bytes.
//! Source: ggml `dequantize_row_q8_0`, `quantize_row_q8_0_ref`.

use half::f16;

use super::{BlockFormat, FormatId, inverse, peak, read_f16, write_f16};

/// 8-bit, symmetric.
pub const Q8_0: FormatId = FormatId("Q8_0");

pub(super) struct Codec;

impl BlockFormat for Codec {
    fn id(&self) -> FormatId {
        Q8_0
    }
    fn block_elems(&self) -> usize {
        32
    }
    fn block_bytes(&self) -> usize {
        34
    }
    fn gguf_code(&self) -> Option<u32> {
        Some(8)
    }
    fn decode_block(&self, bytes: &[u8], out: &mut [f32]) {
        let d = read_f16(bytes);
        for (o, q) in out.iter_mut().zip(&bytes[2..]) {
            *o = f32::from(*q as i8) * d;
        }
    }
    fn encode_block(&self, x: &[f32], out: &mut [u8]) -> bool {
        let d = peak(x).abs() / 127.0;
        write_f16(out, d);
        quantise(x, d, &mut out[2..]);
        true
    }
}

#[inline(always)]
fn quantise(x: &[f32], d: f32, out: &mut [u8]) {
    let inverse = inverse(d);
    for (o, v) in out.iter_mut().zip(x) {
        *o = (v * inverse).round() as i8 as u8;
    }
}

/// At most 32 numbers of a row as a KV cache keeps them (llama.cpp's `--cache-type-k q8_0`): `q` gets the bytes, and what is returned is the scale, that the codec
/// gives a block of them with zeros behind. There are as many bytes as numbers.
///
/// Unlike a block's, the scale of a run in which something is infinite or no number is so itself: what a model broke must not
/// look sound when it is read again. It is infinite, too, where a number is beyond 127 × 65,504.
#[inline(always)]
pub fn q8_0_run(x: &[f32], q: &mut [u8]) -> f16 {
    // Magnitudes are in the order of their bits, and what is not finite above all that is.
    let most = x.iter().fold(0, |most, v| most.max(v.abs().to_bits()));
    let d = f32::from_bits(most) / 127.0;
    quantise(x, d, q);
    f16::from_f32(d)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_what_the_codec_gives_and_broken_numbers_stay_broken() {
        let mut block = [0.0; 32];
        for factor in [1.0, -3.7, 1e-7, 1e-41, 6e4, 0.0] {
            for n in [1, 31, 32] {
                block = std::array::from_fn(|i| if i < n { (i as f32 - 15.5) * factor } else { 0.0 });
                let (mut bytes, mut q) = ([0; 34], [0; 32]);
                Codec.encode_block(&block, &mut bytes);
                let d = q8_0_run(&block[..n], &mut q[..n]);
                assert_eq!((&d.to_le_bytes()[..], &q[..]), (&bytes[..2], &bytes[2..]), "{n} × {factor}");
            }
        }
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e7] {
            block[5] = x;
            assert!(!q8_0_run(&block, &mut [0; 32]).is_finite(), "{x}");
        }
    }
}
