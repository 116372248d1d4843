//! Every parser against golden files, mutations of them, and all inputs that once crashed it.
//!
//! What `cargo xtask soak` finds lies in `testdata/fuzz/NAME/` and is replayed here for ever.

use fathom_core::rng::Rng;
use fathom_testkit::hostile::CHECKS;
use std::fs;
use std::path::{Path, PathBuf};

/// Mutations of each golden file.
const MUTATIONS: usize = 60;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
}

/// The files below `dir` whose path ends in `ending`.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path, ending)),
            false if path.to_string_lossy().ends_with(ending) => found.push(path),
            false => {}
        }
    }
    found.sort();
    found
}

#[test]
fn inputs_that_once_crashed_do_so_no_more() {
    for (name, _, check) in CHECKS {
        for path in files(&testdata().join("fuzz").join(name), "") {
            println!("{}", path.display());
            check(&fs::read(path).unwrap());
        }
    }
}

#[test]
fn golden_files_and_mutations_of_them_end_in_an_answer() {
    let mut rng = Rng::new(7, 0);
    let mut below = |n: usize| rng.below(n as u32) as usize;
    for (name, ending, check) in CHECKS {
        let golden = files(&testdata(), ending);
        assert!(!golden.is_empty(), "no golden file ends in {ending} for {name}");
        for path in golden.iter().filter(|p| !p.components().any(|c| c.as_os_str() == "fuzz")) {
            let sound = fs::read(path).unwrap();
            check(&sound);
            for _ in 0..MUTATIONS {
                let mut bytes = sound.clone();
                // Headers are where parsers go wrong, so most changes fall into the first kilobytes.
                let span = if below(4) > 0 { bytes.len().min(4096) } else { bytes.len() };
                let at = below(span);
                match below(5) {
                    0 => bytes.truncate(at),
                    1 => bytes[at] ^= 1 << below(8),
                    2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][below(5)],
                    3 => bytes[at..].iter_mut().take(8).for_each(|b| *b = 0xff),
                    _ => drop(bytes.drain(at..(at + 1 + below(16)).min(sound.len()))),
                }
                check(&bytes);
            }
        }
    }
}
