//! Codecs against ggml's own Python package, and properties that every format must have.

use std::path::PathBuf;

use fathom_core::rng::Rng;
use fathom_core::{FormatId, Weight, format};
use sha2::{Digest, Sha256};

fn golden(name: &str) -> Vec<u8> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/formats");
    let data = std::fs::read(dir.join(name)).unwrap();
    let sums = std::fs::read_to_string(dir.join("SHA256SUMS")).unwrap();
    let hash: String = Sha256::digest(&data).iter().map(|b| format!("{b:02x}")).collect();
    assert!(sums.contains(&format!("{hash}  {name}\n")), "{name} is not the file that was recorded");
    data
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn ggml_formats() -> impl Iterator<Item = FormatId> {
    FormatId::all().filter(|f| f.get().gguf_code().is_some() && *f != format::F32)
}

#[test]
fn decodes_as_ggml_bit_for_bit() {
    for id in ggml_formats() {
        let f = id.get();
        let data = golden(&format!("{id}.decode.bin"));
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
fn encodes_the_simple_formats_as_ggml_byte_for_byte() {
    for id in [format::BF16, format::Q4_0, format::Q4_1, format::Q5_0, format::Q5_1, format::Q8_0] {
        let f = id.get();
        let data = golden(&format!("{id}.encode.bin"));
        let n = data.len() * f.block_elems() / (f.block_bytes() + 4 * f.block_elems());
        let (x, expected) = data.split_at(4 * n);
        let weight = Weight::encode(id, 1, n, &floats(x)).unwrap();
        assert_eq!(weight.bytes.as_slice(), expected, "{id}");
    }
}

/// Root mean square error of encoding, relative to that of the numbers.
fn relative_error(id: FormatId, x: &[f32]) -> f64 {
    let y = Weight::encode(id, 1, x.len(), x).unwrap().decode();
    let square = |it: &mut dyn Iterator<Item = f32>| it.map(|v| f64::from(v).powi(2)).sum::<f64>();
    (square(&mut x.iter().zip(&y).map(|(a, b)| a - b)) / square(&mut x.iter().copied())).sqrt()
}

#[test]
fn error_on_normal_numbers() {
    let mut rng = Rng::new(7, 0);
    let x: Vec<f32> = (0..256 * 64).map(|_| rng.normal() as f32 * 0.02).collect();
    for id in FormatId::all() {
        println!("{id:8} {:.5}", relative_error(id, &x));
    }
}
