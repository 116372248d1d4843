//! Writes a dress-rehearsal model: the names, shapes and metadata of a published model over holes, which cost no disk.
//!
//! ```text
//! cargo run --release -p fathom-testkit --example rehearse -- r1.gguf            R1 as GGUF, Q4_K_M
//! cargo run --release -p fathom-testkit --example rehearse -- r1                 R1 as FP8 safetensors
//! cargo run --release -p fathom-testkit --example rehearse -- R1-Distill-Qwen-7B a distil as BF16 safetensors
//! ```
//! Weights of zeros: it shows that names fit and memory suffices, neither speed nor quality.

use std::path::Path;
use std::process::ExitCode;

use fathom_testkit::rehearsal::{self, KvB};

const CONFIG: &str = include_str!("../../../testdata/configs/deepseek-v3-r1.config.json");
const SHARD_BYTES: u64 = 5 << 30;

fn main() -> ExitCode {
    let Some(name) = std::env::args().nth(1) else {
        eprintln!("name a model: r1.gguf, r1, or one of {:?}", rehearsal::DENSE.map(|(name, _)| name));
        return ExitCode::from(2);
    };
    let out = Path::new(&name);
    let result = match name.as_str() {
        "r1.gguf" => rehearsal::write_r1_gguf(out, KvB::Split, false).map_err(|e| e.to_string()),
        "r1" => {
            let config = serde_json::from_str(CONFIG).expect("invariant: the committed configuration is JSON");
            rehearsal::r1(config).write_hf(out, SHARD_BYTES).map_err(|e| e.to_string())
        }
        _ => match rehearsal::DENSE.iter().find(|(known, _)| *known == name) {
            Some((_, dense)) => dense.published().write_hf(out, SHARD_BYTES).map_err(|e| e.to_string()),
            None => Err(format!("no published model is called {name}")),
        },
    };
    match result {
        Ok(()) => {
            println!("{} written; its weights are holes", out.display());
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
