#![no_main]
//! A `config.json` from anywhere: what is accepted must give finite sizes without overflow.
use fathom_core::DType;
use fathom_model::{Model, Options};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = fathom_fuzz::scratch(&[("config.json", data)]).join("config.json");
    if let Ok(model) = Model::open(&path, &Options::default()) {
        std::hint::black_box((model.spec.parameters(), model.spec.kv_bytes_per_token(DType::F16)));
    }
});
