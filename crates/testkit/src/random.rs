//! Random tensors and weights in every format, the same on every machine.

use fathom_core::rng::Rng;
use fathom_core::{BlockScales, Bytes, FormatId, Weight, format};

/// `n` standard normal numbers.
pub fn normals(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// A weight of `rows × cols` in `format`: encoded normal numbers if the format can be written, else random blocks whose
/// numbers are finite and of ordinary size. Large blocks are slow to encode, so they are dealt from a pool of 48.
///
/// # Panics
/// If `cols` is not a whole number of blocks.
pub fn weight(rng: &mut Rng, format: FormatId, rows: usize, cols: usize) -> Weight {
    let f = format.get();
    let (elems, blocks) = (f.block_elems(), rows * cols / f.block_elems());
    let pool = if elems == 1 { blocks } else { blocks.min(48) };
    let mut bytes = match Weight::encode(format, 1, pool * elems, &normals(rng, pool * elems)) {
        Ok(w) => w.bytes.as_slice().to_vec(),
        Err(_) => (0..pool).flat_map(|_| block(rng, format)).collect(),
    };
    for _ in pool..blocks {
        let from = rng.below(pool as u32) as usize * f.block_bytes();
        bytes.extend_from_within(from..from + f.block_bytes());
    }
    Weight::new(format, rows, cols, Bytes::from_vec(bytes), None)
        .expect("invariant: whole blocks of the format make up the shape")
}

/// A block of random bytes whose numbers are finite and of ordinary size.
fn block(rng: &mut Rng, format: FormatId) -> Vec<u8> {
    let f = format.get();
    let mut decoded = vec![0.0; f.block_elems()];
    loop {
        let bytes: Vec<u8> = (0..f.block_bytes()).map(|_| rng.next_u32() as u8).collect();
        f.decode_block(&bytes, &mut decoded);
        let largest = decoded.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        if decoded.iter().all(|v| v.is_finite()) && (0.05..8.0).contains(&largest) {
            return bytes;
        }
    }
}

/// The weight with a random scale, between ½ and 2 or a power of two, per block of 128 × 128.
///
/// # Panics
/// If `scales` cannot be written.
pub fn with_block_scales(rng: &mut Rng, w: Weight, scales: FormatId) -> Weight {
    let block = (128, 128);
    let n = w.rows.div_ceil(block.0) * w.cols.div_ceil(block.1);
    let values: Vec<f32> = (0..n).map(|_| 2f64.powf(rng.uniform() * 2.0 - 1.0) as f32).collect();
    let bytes = match Weight::encode(scales, 1, n, &values) {
        Ok(s) => s.bytes,
        Err(_) => Bytes::from_vec((0..n).map(|_| 126 + rng.below(3) as u8).collect()), // an exponent byte
    };
    let scales = BlockScales { bytes, format: scales, block, first_row: 0 };
    Weight::new(w.format, w.rows, w.cols, w.bytes, Some(scales)).expect("invariant: one scale per block")
}

/// A row vector in F32, near one (norm weights).
pub fn norm(rng: &mut Rng, n: usize) -> Weight {
    let values: Vec<f32> = normals(rng, n).iter().map(|v| 1.0 + 0.3 * v).collect();
    Weight::encode(format::F32, 1, n, &values).expect("invariant: F32 can be written")
}
