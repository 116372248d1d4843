//! Weights rearranged for vectors whose lanes are output rows.
//!
//! Sixteen rows make a panel. Columns go in groups of four: the levels of 16 rows × 4 columns fill one 64-byte vector, row l in lane l, as the
//! byte dot product of VNNI wants them, against the same four activations broadcast to all lanes. Nothing is summed
//! across lanes, so one token or many, every sum is built in the same order. Levels keep their bits (4, 5, 6 or 8), unsigned;
//! scales keep theirs, sixteen rows side by side:
//!
//! ```text
//! panel   = groups of eight blocks of 32 columns, the last one shorter: one stream from end to end
//! group   = scales of its blocks, padded to 64 bytes | codes of its blocks
//! codes   = 4 bit: four vectors; in each the low nibbles are group g, the high ones group g + 4
//!           5 bit: the same, then a vector whose bit g is the fifth bit of group g
//!           6 bit: the same four, then two vectors with the upper bit pairs of groups 0–3 and 4–7
//!           8 bit: eight vectors
//!           BF16:  sixteen vectors, each the numbers of two columns: row l in word l, no scales
//! scales  = F16:  per block d (16 × f16), and for the affine formats m (16 × f16)
//!           K:    d, dmin (16 × f16), then per block 16 scales and 16 minima, a byte each
//!           K16:  d (16 × f16), then per 16 columns 16 signed scales, a byte each
//! ```

use std::ops::Range;

use fathom_core::{FormatId, Result, Weight, format};
use half::{bf16, f16};

use crate::Pool;
use crate::kernels::pack::PackPanel;
use crate::memory::{Memory, Piece};
use crate::simd::Isa;

/// Rows of a panel.
pub(crate) const ROWS: usize = 16;
/// Columns of a block.
pub(crate) const BLOCK: usize = 32;
/// Blocks whose scales lie together: a super-block of the K formats.
pub(crate) const GROUP: usize = 8;

/// How scales lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scales {
    /// `d` per block.
    F16,
    /// `d` and `m` per block: `x = d·q + m`.
    Affine,
    /// Super-blocks with scales and minima: `x = d·s·q − dmin·m`.
    K,
    /// Super-blocks with a signed scale per 16 columns.
    K16,
    /// None.
    None,
}

/// A format that can be packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    /// Bits of a level.
    pub(crate) bits: usize,
    /// Level that means zero.
    pub(crate) offset: i32,
    /// Scales.
    pub(crate) scales: Scales,
}

impl Layout {
    /// BF16 for processors that multiply it.
    pub(crate) const PAIRS: Layout = Layout { bits: 16, offset: 0, scales: Scales::None };

    /// The layout of `format` for rounding to integers, if it has one.
    pub(crate) fn of(format: FormatId) -> Option<Layout> {
        let (bits, offset, scales) = match format {
            format::Q8_0 => (8, 128, Scales::F16),
            format::Q4_0 => (4, 8, Scales::F16),
            format::Q5_0 => (5, 16, Scales::F16),
            format::Q4_1 => (4, 0, Scales::Affine),
            format::Q5_1 => (5, 0, Scales::Affine),
            format::Q4_K => (4, 0, Scales::K),
            format::Q5_K => (5, 0, Scales::K),
            format::Q6_K => (6, 32, Scales::K16),
            _ => return None,
        };
        Some(Layout { bits, offset, scales })
    }

    /// Whether this is a K format: super-blocks of 256 columns.
    pub(crate) fn is_k(self) -> bool {
        matches!(self.scales, Scales::K | Scales::K16)
    }

    /// Bytes of the codes of one block.
    pub(crate) fn code_bytes(self) -> usize {
        64 * self.bits
    }

    /// Bytes of the scales of a group of `blocks` blocks.
    pub(crate) fn scale_bytes(self, blocks: usize) -> usize {
        let n = match self.scales {
            Scales::F16 => blocks * 32,
            Scales::Affine => blocks * 64,
            Scales::K => 64 + GROUP * 32,
            Scales::K16 => 32 + GROUP * 32,
            Scales::None => 0,
        };
        n.next_multiple_of(64)
    }

    fn group_bytes(self, blocks: usize) -> usize {
        self.scale_bytes(blocks) + blocks * self.code_bytes()
    }

    /// Bytes of a panel.
    pub(crate) fn panel_bytes(self, cols: usize) -> usize {
        let (groups, rest) = (cols / BLOCK / GROUP, cols / BLOCK % GROUP);
        groups * self.group_bytes(GROUP) + if rest > 0 { self.group_bytes(rest) } else { 0 }
    }

    /// Where in a panel the scales of block `b`'s group begin, and where its codes.
    fn place(self, cols: usize, b: usize) -> (usize, usize) {
        let blocks = GROUP.min(cols / BLOCK - b / GROUP * GROUP);
        let at = b / GROUP * self.group_bytes(GROUP);
        (at, at + self.scale_bytes(blocks) + b % GROUP * self.code_bytes())
    }
}

/// Packed panels of one matrix.
#[derive(Clone)]
pub(crate) struct Packed {
    pub(crate) layout: Layout,
    cols: usize,
    memory: Piece,
}

impl Packed {
    /// Packs matrices of one format and shape into one piece of memory, and gives the pages of their sources back as
    /// it goes.
    pub(crate) fn all(
        pool: &Pool,
        isa: Isa,
        memory: &Memory,
        layout: Layout,
        weights: &[Weight],
    ) -> Result<Vec<Packed>> {
        let (rows, cols) = (weights[0].rows, weights[0].cols);
        let panel = layout.panel_bytes(cols);
        let bytes = rows.div_ceil(ROWS) * panel;
        // In slices, so that source and copy are never in memory together.
        let slice = (64usize << 20).div_ceil(panel).max(1);
        let memory = memory.written(bytes * weights.len(), &mut |all| {
            for (w, out) in weights.iter().zip(all.chunks_exact_mut(bytes.max(1))) {
                for (i, out) in out.chunks_mut(slice * panel).enumerate() {
                    pool.chunks_mut(out, panel, |at, out| {
                        isa.run(PackPanel { layout, weight: w, first: (i * slice + at / panel) * ROWS, out });
                    });
                    let (from, to) = (i * slice * ROWS, rows.min((i + 1) * slice * ROWS));
                    w.bytes.slice(from * w.row_bytes()..to * w.row_bytes()).discard();
                }
            }
        })?;
        let matrix = |i: usize| Packed { layout, cols, memory: memory.part(i * bytes..(i + 1) * bytes) };
        Ok((0..weights.len()).map(matrix).collect())
    }

    /// Columns.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of a panel.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.layout.panel_bytes(self.cols)
    }

    /// Panels `range`; panel p is rows `16p..16p + 16`.
    pub(crate) fn panels(&self, range: Range<usize>) -> &[u8] {
        let n = self.panel_bytes();
        &self.memory[range.start * n..range.end * n]
    }

    /// Decodes row `row`, to the same values as the format's codec.
    pub(crate) fn decode_row(&self, row: usize, out: &mut [f32]) {
        let (p, lane) = (row / ROWS, row % ROWS);
        let panel = self.panels(p..p + 1);
        if self.layout == Layout::PAIRS {
            for (out, vector) in out.as_chunks_mut::<2>().0.iter_mut().zip(panel.as_chunks::<64>().0) {
                *out = [0, 2].map(|i| bf16::from_le_bytes([vector[4 * lane + i], vector[4 * lane + i + 1]]).to_f32());
            }
            return;
        }
        for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let (scales, codes) = self.layout.place(self.cols, b);
            let (scales, codes) = (&panel[scales..], &panel[codes..]);
            let scale = scales_at(self.layout.scales, scales, b % GROUP, lane);
            for (i, o) in out.iter_mut().enumerate() {
                let q = (level(self.layout.bits, codes, lane, i) - self.layout.offset) as f32;
                *o = match scale[i / 16] {
                    (d, None) => d * q,
                    (d, Some(m)) => d * q + m,
                };
            }
        }
    }
}

/// Level of column `i` of a block.
fn level(bits: usize, codes: &[u8], lane: usize, i: usize) -> i32 {
    let (g, byte) = (i / 4, lane * 4 + i % 4);
    if bits == 8 {
        return i32::from(codes[g * 64 + byte]);
    }
    let low = codes[g % 4 * 64 + byte] >> (g / 4 * 4) & 15;
    let high = match bits {
        5 => (codes[256 + byte] >> g & 1) << 4,
        6 => (codes[256 + g / 4 * 64 + byte] >> (g % 4 * 2) & 3) << 4,
        _ => 0,
    };
    i32::from(low | high)
}

/// Factor and, if the format has one, addend of the first and second half of block `j` of a group.
fn scales_at(scales: Scales, bytes: &[u8], j: usize, lane: usize) -> [(f32, Option<f32>); 2] {
    let f = |at: usize| f16::from_le_bytes([bytes[at + 2 * lane], bytes[at + 2 * lane + 1]]).to_f32();
    match scales {
        Scales::F16 => [(f(j * 32), None); 2],
        Scales::Affine => [(f(j * 64), Some(f(j * 64 + 32))); 2],
        Scales::K => {
            let pair = 64 + j * 32;
            let (s, m) = (f32::from(bytes[pair + lane]), f32::from(bytes[pair + 16 + lane]));
            [(f(0) * s, Some(-(f(32) * m))); 2]
        }
        Scales::K16 => {
            let pair = 32 + j * 32;
            [pair, pair + 16].map(|p| (f(0) * f32::from(bytes[p + lane] as i8), None))
        }
        Scales::None => [(1.0, None); 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Level;
    use fathom_core::rng::Rng;
    use fathom_testkit::random;

    #[test]
    fn packed_rows_decode_to_the_codec_s_values() {
        let pool = Pool::new(2).unwrap();
        let mut rng = Rng::new(11, 0);
        let (mut packed, memory) = (0, Memory::default());
        for f in FormatId::all() {
            let pairs = (f == format::BF16).then_some(Layout::PAIRS);
            let Some(layout) = Layout::of(f).or(pairs) else { continue };
            packed += 1;
            for (rows, blocks) in [(1, 1), (16, 2), (37, 3)] {
                let cols = blocks * f.get().block_elems().max(BLOCK);
                let weights = [random::weight(&mut rng, f, rows, cols), random::weight(&mut rng, f, rows, cols)];
                let isas = Level::present().filter_map(Level::isa);
                let all: Vec<_> =
                    isas.flat_map(|isa| Packed::all(&pool, isa, &memory, layout, &weights).unwrap()).collect();
                assert!(all.len() >= weights.len());
                for (w, p) in weights.iter().cycle().zip(&all) {
                    let (mut a, mut b) = (vec![0.0; cols], vec![0.0; cols]);
                    for r in 0..rows {
                        w.decode_row(r, &mut a);
                        p.decode_row(r, &mut b);
                        assert_eq!(a, b, "{f} row {r} of {rows}");
                    }
                }
                // Whole panels cost at most a tenth more than the file.
                let stored = f.get().block_bytes() * cols / f.get().block_elems() * ROWS;
                let spare = 64; // the padding between scales and codes of a lone block
                assert!(layout.panel_bytes(cols) * 10 <= stored * 11 + spare * 10, "{f}: {}", layout.panel_bytes(cols));
            }
        }
        assert_eq!(packed, 9);
    }
}
