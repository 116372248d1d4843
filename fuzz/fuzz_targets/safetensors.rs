#![no_main]
//! A safetensors file from anywhere, beside a sound configuration.
use fathom_files::Archive;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let dir = fathom_fuzz::scratch(&[("config.json", b"{}"), ("model.safetensors", data)]);
    let Ok(archive) = Archive::open(&dir) else { return };
    for name in archive.names() {
        if let Ok(Some(tensor)) = archive.tensor(name) {
            std::hint::black_box(tensor.bytes.as_slice().last());
        }
    }
});
