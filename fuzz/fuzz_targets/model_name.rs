#![no_main]
//! A model's name from anywhere: what is accepted stays inside the cache and prints as it is read.
use fathom_hub::{Config, Hub, ModelName};
use libfuzzer_sys::fuzz_target;
use std::path::{Component, Path};

fuzz_target!(|text: &str| {
    let Ok(name) = ModelName::parse(text) else { return };
    for path in [&name.repo, &name.revision] {
        assert!(Path::new(path).components().all(|c| matches!(c, Component::Normal(_))), "{path}");
    }
    assert!(ModelName::parse(&name.to_string()).is_ok_and(|again| again == name));
    let hub = Hub::new(Config::new("/nonexistent")).expect("a sound configuration");
    assert!(matches!(hub.resolve(text), Ok(None)));
});
