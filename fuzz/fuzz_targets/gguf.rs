#![no_main]
//! A GGUF file from anywhere: header, metadata, vocabulary, specification, every tensor's place.
use fathom_files::Archive;
use fathom_model::{Model, Options};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = fathom_fuzz::scratch(&[("model.gguf", data)]).join("model.gguf");
    let Ok(archive) = Archive::open(&path) else { return };
    for name in archive.names() {
        // Reading the last byte proves that the extent lies inside the file.
        if let Ok(Some(tensor)) = archive.tensor(name) {
            std::hint::black_box(tensor.bytes.as_slice().last());
        }
    }
    if let Ok(model) = Model::open(&path, &Options::default()) {
        std::hint::black_box((model.check().is_ok(), model.vocab().is_ok(), model.spec.parameters()));
    }
});
