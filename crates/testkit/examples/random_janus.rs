//! Writes a model of Janus-Pro's real shape: random weights for measurements, or holes for a rehearsal.
//!
//! ```text
//! cargo run --release -p fathom-testkit --example random_janus -- 1B DIR            4.2 GB of random numbers
//! cargo run --release -p fathom-testkit --example random_janus -- 7B DIR holes      no disk at all
//! cargo run --release -p fathom-testkit --example random_janus -- 1B DIR original   DeepSeek's own layout
//! ```
//! The test model's tokenizer goes with it, so that `fathom draw` and `fathom run --image` work on it. What comes out means nothing.

use std::path::Path;
use std::process::ExitCode;

use fathom_testkit::picture_models::{Layout, Size, published, write_random};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| args.iter().skip(2).any(|a| a == word);
    let size = match args.first().map(String::as_str) {
        Some("1B") => Size::Pro1B,
        Some("7B") => Size::Pro7B,
        _ => {
            eprintln!("say 1B or 7B, a directory, and perhaps `original` or `holes`");
            return ExitCode::from(2);
        }
    };
    let Some(dir) = args.get(1).map(Path::new) else {
        eprintln!("name a directory");
        return ExitCode::from(2);
    };
    let model = published(size, if has("original") { Layout::Original } else { Layout::HuggingFace });
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/janus");
    let made = std::fs::create_dir_all(dir).map_err(|e| e.to_string()).and_then(|()| match has("holes") {
        true => model.write_hf(dir, 5 << 30).map_err(|e| e.to_string()),
        false => write_random(&model, dir).map_err(|e| e.to_string()),
    });
    let made = made.and_then(|()| {
        ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"].iter().try_for_each(|name| {
            std::fs::copy(testdata.join(name), dir.join(name)).map(drop).map_err(|e| format!("{name}: {e}"))
        })
    });
    match made {
        Ok(()) => {
            println!("{} written", dir.display());
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
