//! Codecs against ggml's own Python package, and properties that every format must have.

use std::path::PathBuf;

use fathom_core::rng::Rng;
use fathom_core::{FormatId, Weight, format};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

/// A golden file; none if there is no such file.
fn golden(name: &str) -> Option<Vec<u8>> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/formats");
    let data = std::fs::read(dir.join(name)).ok()?;
    let sums = std::fs::read_to_string(dir.join("SHA256SUMS")).unwrap();
    let hash: String = Sha256::digest(&data).iter().map(|b| format!("{b:02x}")).collect();
    assert!(sums.contains(&format!("{hash}  {name}\n")), "{name} is not the file that was recorded");
    Some(data)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// All formats but F32, whose codec is a copy.
fn coded() -> impl Iterator<Item = FormatId> {
    FormatId::all().filter(|f| *f != format::F32)
}

#[test]
fn decodes_as_the_reference_bit_for_bit() {
    for id in coded() {
        let f = id.get();
        let data = golden(&format!("{id}.decode.bin")).expect("testdata/scripts/format_blocks.py knows every format");
        let n = data.len() / (f.block_bytes() + 4 * f.block_elems());
        assert!(n >= 8, "{id}: {n} blocks");
        let (blocks, expected) = data.split_at(n * f.block_bytes());
        let mut out = vec![0.0; n * f.block_elems()];
        f.decode(blocks, &mut out);
        for (i, (o, e)) in out.iter().zip(floats(expected)).enumerate() {
            assert!(o.to_bits() == e.to_bits() || o.is_nan() && e.is_nan(), "{id}: number {i} is {o:e}, not {e:e}");
        }
    }
}

#[test]
fn encodes_as_the_reference_byte_for_byte_where_that_only_rounds() {
    let mut checked = 0;
    for id in coded() {
        let Some(data) = golden(&format!("{id}.encode.bin")) else { continue };
        let f = id.get();
        let n = data.len() * f.block_elems() / (f.block_bytes() + 4 * f.block_elems());
        let (x, expected) = data.split_at(4 * n);
        let weight = Weight::encode(id, 1, n, &floats(x)).unwrap();
        assert_eq!(weight.bytes.as_slice(), expected, "{id}");
        checked += 1;
    }
    assert!(checked >= 7, "BF16, FP8 and the five simple formats have recorded encodings");
}

/// Root mean square error over 2^18 normal numbers (`Rng::new(7, 0)`, times 0.02) of ggml 0.5's encoders without an
/// importance matrix, relative to that of the numbers. Ours may be at most 2 % worse.
const GGML_ERROR: &[(FormatId, f64)] = &[
    (format::Q2_K, 0.29578),
    (format::Q3_K, 0.15061),
    (format::Q4_K, 0.07134),
    (format::Q5_K, 0.03614),
    (format::Q6_K, 0.01772),
    (format::IQ4_NL, 0.07616),
    (format::IQ4_XS, 0.07676),
];

#[test]
fn searched_scales_are_as_good_as_ggml() {
    let mut rng = Rng::new(7, 0);
    let x: Vec<f32> = (0..1 << 18).map(|_| rng.normal() as f32 * 0.02).collect();
    let sum = |it: &mut dyn Iterator<Item = f32>| it.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let total = sum(&mut x.iter().copied());
    for (id, bound) in GGML_ERROR {
        let y = Weight::encode(*id, 1, x.len(), &x).unwrap().decode();
        let error = (sum(&mut x.iter().zip(&y).map(|(a, b)| a - b)) / total).sqrt();
        println!("{id}: {error:.5}, ggml {bound:.5}");
        assert!(error <= bound * 1.02, "{id}: {error:.5}, ggml has {bound:.5}");
    }
}

/// Largest error of a number, as a part of its block's largest magnitude.
fn worst_part(id: FormatId) -> f32 {
    match id {
        format::F16 | format::BF16 => 1.0 / 256.0,
        format::Q8_0 => 1.0 / 220.0,
        format::Q6_K => 1.0 / 16.0,
        format::Q5_0 | format::Q5_1 => 1.0 / 15.0,
        format::Q5_K => 1.0 / 8.0,
        format::Q4_0 | format::Q4_1 => 1.0 / 7.0,
        format::MXFP4 | format::Q4_K | format::IQ4_NL | format::IQ4_XS => 1.0 / 4.0,
        format::Q3_K => 0.5,
        _ => 1.0,
    }
}

/// Half the smallest step of an f16.
const HALF_STEP: f32 = 1.0 / (1 << 25) as f32;

fn any_block() -> impl Strategy<Value = Vec<f32>> {
    // Blocks of one magnitude between 2^-4 and 2^15 (much below, f16 scales lose their bits), zeros among them.
    (-4i32..15, 0u8..4, prop::collection::vec(-1f32..1.0, 256)).prop_map(|(exponent, sparsity, mut x)| {
        for (i, v) in x.iter_mut().enumerate() {
            *v = if i % 4 < usize::from(sparsity) { 0.0 } else { *v } * 2f32.powi(exponent);
        }
        x
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_number_comes_back_near(x in any_block()) {
        // The one-byte formats have no scale; their tables are tested below.
        for id in coded().filter(|f| f.get().block_bytes() > 1) {
            let y = Weight::encode(id, 1, 256, &x).unwrap().decode();
            for (xs, ys) in x.chunks(id.get().block_elems()).zip(y.chunks(id.get().block_elems())) {
                let peak = xs.iter().fold(0f32, |m, v| m.max(v.abs()));
                for (a, b) in xs.iter().zip(ys) {
                    prop_assert!((a - b).abs() <= worst_part(id) * peak + HALF_STEP, "{}: {} became {}", id, a, b);
                }
            }
        }
    }

    /// Any bits at all: encoders do not panic, and finite numbers come back finite (NaN is all FP8 can say of a
    /// number that is none).
    #[test]
    fn no_bits_make_an_encoder_panic(bits in prop::collection::vec(any::<u32>(), 256)) {
        let x: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let finite: Vec<f32> = x.iter().map(|v| if v.is_finite() { *v } else { f32::MAX }).collect();
        for id in coded() {
            Weight::encode(id, 1, 256, &x).unwrap().decode();
            let y = Weight::encode(id, 1, 256, &finite).unwrap().decode();
            let overflows = id == format::F16 || id == format::BF16;
            prop_assert!(overflows || y.iter().all(|v| v.is_finite()), "{}", id);
        }
    }

    #[test]
    fn any_bytes_decode(bytes in prop::collection::vec(any::<u8>(), 292)) {
        for id in coded() {
            let f = id.get();
            f.decode_block(&bytes[..f.block_bytes()], &mut vec![0.0; f.block_elems()]);
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for id in FormatId::all().filter(|f| *f != format::UE8M0) {
        let y = Weight::encode(id, 1, 256, &[0.0; 256]).unwrap().decode();
        assert!(y.iter().all(|v| *v == 0.0), "{id}");
    }
}

#[test]
fn every_byte_of_the_one_byte_formats_comes_back() {
    for (id, nan) in [(format::F8_E4M3, &[0x7f, 0xff][..]), (format::UE8M0, &[0xff])] {
        for byte in 0..=255u8 {
            let (mut value, mut again) = ([0.0], [0]);
            id.get().decode_block(&[byte], &mut value);
            assert_eq!(value[0].is_nan(), nan.contains(&byte), "{id} {byte:#x}");
            assert!(id.get().encode_block(&value, &mut again));
            assert!(
                value[0].is_nan() || again[0] == byte,
                "{id}: {byte:#x} is {} and becomes {:#x}",
                value[0],
                again[0]
            );
        }
    }
}

#[test]
fn fp8_takes_the_nearest_value_and_saturates() {
    let mut rng = Rng::new(3, 0);
    let encode =
        |v: f32| format::E4M3_VALUES[Weight::encode(format::F8_E4M3, 1, 1, &[v]).unwrap().bytes.as_slice()[0] as usize];
    for _ in 0..2000 {
        let v = (rng.normal() * 2f64.powi(rng.below(24) as i32 - 12)) as f32;
        let nearest = format::E4M3_VALUES.iter().map(|t| (t - v).abs()).fold(f32::INFINITY, f32::min);
        assert_eq!((encode(v) - v).abs(), nearest, "{v}");
    }
    assert_eq!([encode(449.0), encode(-1e9), encode(f32::INFINITY), encode(464.0)], [448.0, -448.0, 448.0, 448.0]);
    assert!(encode(f32::NAN).is_nan());
}

#[test]
fn names_and_numbers_are_told_apart() {
    let all: Vec<_> = FormatId::all().collect();
    for (i, id) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|other| other.name() != id.name()));
        if let Some(code) = id.get().gguf_code() {
            assert_eq!(FormatId::from_gguf(code), Some(*id), "two formats claim ggml type {code}");
        }
    }
    assert_eq!(FormatId::from_gguf(99), None);
}
