//! Rearranges stored rows into a panel ([`crate::pack`] says how it lies).
//!
//! Sixteen rows' bytes are turned a few words at a time, so that what belongs into one vector lies in one; levels are taken apart and
//! put together there. Scales go one by one: there are few.

use fathom_core::{FormatId, Weight, format};

use crate::pack::{BLOCK, GROUP, Layout, ROWS, Scales};
use crate::simd::{Kernel, Simd};

/// Packs rows `first..first + 16` of a weight; rows past the end are zero.
pub(crate) struct PackPanel<'a> {
    pub(crate) layout: Layout,
    pub(crate) weight: &'a Weight,
    pub(crate) first: usize,
    /// [`Layout::panel_bytes`] of them.
    pub(crate) out: &'a mut [u8],
}

impl Kernel for PackPanel<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackPanel { layout, weight, first, out } = self;
        let mut stored: [&[u8]; ROWS] = [&[]; ROWS];
        for (l, row) in stored.iter_mut().enumerate().take(weight.rows - first) {
            *row = weight.row(first + l);
        }
        if layout == Layout::PAIRS {
            return pairs(s, &stored, out);
        }
        let f = weight.format.get();
        let (size, per_stored, blocks) = (f.block_bytes(), f.block_elems() / BLOCK, weight.cols / BLOCK);
        let mut rest = out;
        for from in (0..blocks).step_by(GROUP) {
            let n = GROUP.min(blocks - from);
            let (scales, after) = rest.split_at_mut(layout.scale_bytes(n));
            let (codes, after) = after.split_at_mut(n * layout.code_bytes());
            rest = after;
            scales.fill(0);
            for (l, row) in stored.iter().enumerate().filter(|(_, row)| !row.is_empty()) {
                pack_scales(layout.scales, weight.format, &row[from / per_stored * size..], n, l, scales);
            }
            for (j, codes) in codes.chunks_exact_mut(layout.code_bytes()).enumerate() {
                let b = from + j;
                let levels = levels(s, weight.format, &stored, b / per_stored * size, b % per_stored);
                merge(s, layout.bits, &levels, codes);
            }
        }
    }
}

/// BF16: two columns are a word.
#[inline(always)]
fn pairs<S: Simd>(s: S, stored: &[&[u8]; ROWS], out: &mut [u8]) {
    for (at, vectors) in out.as_chunks_mut::<64>().0.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
        let mut v = [s.splat_b(0); ROWS];
        for (v, row) in v.iter_mut().zip(stored).filter(|(_, row)| !row.is_empty()) {
            *v = s.load_b(row[at * 64..at * 64 + 64].as_array().expect("invariant: a slice of 64"));
        }
        for (v, out) in s.transpose(v).into_iter().zip(vectors) {
            s.store_b(v, out);
        }
    }
}

/// Sixteen or 32 bytes of every row from `at` on as vectors: four columns, row l's in lane l. Missing rows are zero.
#[inline(always)]
fn turned<S: Simd, const N: usize>(s: S, stored: &[&[u8]; ROWS], at: usize) -> [S::B; 8] {
    let mut rows = [[0; 32]; ROWS];
    for (out, row) in rows.iter_mut().zip(stored).filter(|(_, row)| !row.is_empty()) {
        let row: &[u8; N] = row[at..at + N].as_array().expect("invariant: a slice of N");
        out[..N].copy_from_slice(row);
    }
    s.turn(&rows)
}

/// Shifts every byte right by `n`, and keeps the bits of `mask`.
#[inline(always)]
fn bits<S: Simd>(s: S, v: S::B, n: usize, mask: u8) -> S::B {
    let v = match n {
        0 => v,
        1 => s.shr::<1>(v),
        2 => s.shr::<2>(v),
        3 => s.shr::<3>(v),
        4 => s.shr::<4>(v),
        5 => s.shr::<5>(v),
        6 => s.shr::<6>(v),
        _ => s.shr::<7>(v),
    };
    s.and(v, s.splat_b(mask))
}

/// Unsigned levels of block `j` of the stored blocks at byte `at` of every row: vector g has columns `4g..4g + 4`.
#[inline(always)]
fn levels<S: Simd>(s: S, format: FormatId, stored: &[&[u8]; ROWS], at: usize, j: usize) -> [S::B; 8] {
    let mut q = [s.splat_b(0); 8];
    match format {
        format::Q8_0 => {
            let x = turned::<S, 32>(s, stored, at + 2);
            for (q, x) in q.iter_mut().zip(x) {
                *q = s.xor(x, s.splat_b(0x80));
            }
        }
        format::Q4_0 | format::Q4_1 | format::Q5_0 | format::Q5_1 => {
            let fifth = matches!(format, format::Q5_0 | format::Q5_1);
            let head = 2 * (1 + usize::from(matches!(format, format::Q4_1 | format::Q5_1)));
            let x = turned::<S, 16>(s, stored, at + head + 4 * usize::from(fifth));
            for g in 0..4 {
                (q[g], q[g + 4]) = (bits(s, x[g], 0, 15), bits(s, x[g], 4, 15));
            }
            if fifth {
                let h = fifth_bits(s, stored, at + head);
                for (g, q) in q.iter_mut().enumerate() {
                    *q = s.or(*q, s.shl::<4>(bits(s, h, g, 1)));
                }
            }
        }
        format::Q4_K => {
            let x = turned::<S, 32>(s, stored, at + 16 + j / 2 * 32);
            for (q, x) in q.iter_mut().zip(x) {
                *q = bits(s, x, j % 2 * 4, 15);
            }
        }
        format::Q5_K => {
            let x = turned::<S, 32>(s, stored, at + 48 + j / 2 * 32);
            let h = turned::<S, 32>(s, stored, at + 16);
            for ((q, x), h) in q.iter_mut().zip(x).zip(h) {
                *q = s.or(bits(s, x, j % 2 * 4, 15), s.shl::<4>(bits(s, h, j, 1)));
            }
        }
        format::Q6_K => {
            let (half, run) = (j / 4, j % 4);
            let x = turned::<S, 32>(s, stored, at + half * 64 + run % 2 * 32);
            let h = turned::<S, 32>(s, stored, at + 128 + half * 32);
            for ((q, x), h) in q.iter_mut().zip(x).zip(h) {
                *q = s.or(bits(s, x, run / 2 * 4, 15), s.shl::<4>(bits(s, h, 2 * run, 3)));
            }
        }
        _ => unreachable!("invariant: Layout::of names the formats that have levels"),
    }
    q
}

/// The fifth bits of 32 columns, which every row has as a word at `at`, column i in bit i: bit g of a byte is that of group g.
#[inline(always)]
fn fifth_bits<S: Simd>(s: S, stored: &[&[u8]; ROWS], at: usize) -> S::B {
    let mut words = [0; ROWS];
    for (out, row) in words.iter_mut().zip(stored).filter(|(_, row)| !row.is_empty()) {
        let h: &[u8; 4] = row[at..at + 4].as_array().expect("invariant: a slice of four");
        let h = u32::from_le_bytes(*h);
        for i in 0..4 {
            // Every fourth bit, brought together.
            let x = h >> i & 0x1111_1111;
            let x = (x | x >> 3) & 0x0303_0303;
            let x = (x | x >> 6) & 0x000f_000f;
            *out |= ((x | x >> 12) & 0xff) << (8 * i);
        }
    }
    s.load_words(&words)
}

/// Merges eight vectors of levels into codes.
#[inline(always)]
fn merge<S: Simd>(s: S, bits: usize, levels: &[S::B; 8], codes: &mut [u8]) {
    let out = codes.as_chunks_mut::<64>().0;
    if bits == 8 {
        for (q, out) in levels.iter().zip(out) {
            s.store_b(*q, out);
        }
        return;
    }
    let (low, high) = out.split_at_mut(4);
    for (g, out) in low.iter_mut().enumerate() {
        let upper = s.and(levels[g + 4], s.splat_b(15));
        s.store_b(s.or(s.and(levels[g], s.splat_b(15)), s.shl::<4>(upper)), out);
    }
    match (bits, high) {
        (5, [out]) => {
            let mut h = s.splat_b(0);
            // From the last to the first: what came before moves up one place.
            for q in levels.iter().rev() {
                h = s.or(s.shl::<1>(h), s.and(s.shr::<4>(*q), s.splat_b(1)));
            }
            s.store_b(h, out);
        }
        (6, [a, b]) => {
            for (out, levels) in [(a, &levels[..4]), (b, &levels[4..])] {
                let mut h = s.splat_b(0);
                for q in levels.iter().rev() {
                    h = s.or(s.shl::<2>(h), s.and(s.shr::<4>(*q), s.splat_b(3)));
                }
                s.store_b(h, out);
            }
        }
        _ => {}
    }
}

/// Puts the scales of lane `l` of a group of `n` blocks in their place; `row` begins with the group's first stored block.
fn pack_scales(scales: Scales, format: FormatId, row: &[u8], n: usize, l: usize, out: &mut [u8]) {
    let size = format.get().block_bytes();
    match scales {
        Scales::F16 => {
            for (block, out) in row.chunks_exact(size).zip(out.chunks_exact_mut(32)).take(n) {
                out[2 * l..2 * l + 2].copy_from_slice(&block[..2]);
            }
        }
        Scales::Affine => {
            for (block, out) in row.chunks_exact(size).zip(out.chunks_exact_mut(64)).take(n) {
                out[2 * l..2 * l + 2].copy_from_slice(&block[..2]);
                out[32 + 2 * l..34 + 2 * l].copy_from_slice(&block[2..4]);
            }
        }
        Scales::K => {
            out[2 * l..2 * l + 2].copy_from_slice(&row[..2]);
            out[32 + 2 * l..34 + 2 * l].copy_from_slice(&row[2..4]);
            let (s, m) = k_pairs(row[4..16].as_array().expect("invariant: a slice of twelve"));
            for (j, out) in out[64..].chunks_exact_mut(32).enumerate() {
                (out[l], out[16 + l]) = (s[j], m[j]);
            }
        }
        Scales::K16 => {
            debug_assert_eq!(format, format::Q6_K);
            out[2 * l..2 * l + 2].copy_from_slice(&row[208..210]);
            // Stored halves of 128 columns hold eight scales each, in column order.
            let pairs = row[192..208].as_chunks::<2>().0;
            for (pair, out) in pairs.iter().zip(out[32..].chunks_exact_mut(32)) {
                (out[l], out[16 + l]) = (pair[0], pair[1]);
            }
        }
        Scales::None => {}
    }
}

/// Scales and minima of the eight sub-blocks of a K format with minima (see `core/format/q4_k.rs`), four bytes at a time.
fn k_pairs(x: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let [a, b, c] = [0, 4, 8].map(|i| u32::from_le_bytes([x[i], x[i + 1], x[i + 2], x[i + 3]]));
    let join = |low: u32, high: u32| (u64::from(high) << 32 | u64::from(low)).to_le_bytes();
    let top = |v: u32| (v >> 6 & 0x0303_0303) << 4;
    (join(a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | top(a)), join(b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | top(b)))
}
