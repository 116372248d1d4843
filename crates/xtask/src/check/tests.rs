//! Each law broken by a small example, and kept by a near neighbour of it.
//!
//! `every_law_can_fail` walks the table of laws, so a law without an example does not pass.

use super::floors::Package;
use super::*;

fn code(path: &str, text: &str) -> House {
    House { sources: vec![Source::new(path, text)], ..House::default() }
}

fn package(name: &str, deps: &[&str], dev_deps: &[&str]) -> House {
    let set = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
    let package = Package { name: name.into(), deps: set(deps), dev_deps: set(dev_deps), reach: set(deps) };
    House { packages: vec![package], ..House::default() }
}

fn budget(house: House, name: &str, count: usize) -> House {
    House { unsafe_budget: [(name.to_owned(), count)].into(), ..house }
}

/// Examples of a law: (breaks it, keeps it).
fn examples(law: &str) -> Vec<(House, House)> {
    let soundly = "// SAFETY: the block is 32 bytes\nunsafe { load(p) }";
    match law {
        "floors" => vec![
            (package("core", &["files"], &[]), package("files", &["core"], &[])),
            (package("files", &["text"], &[]), package("model", &["files", "text"], &[])),
            (package("text", &[], &["files"]), package("text", &[], &["testkit", "core"])),
            (package("model", &["testkit"], &[]), package("model", &[], &["testkit"])),
            (package("xtask", &["core"], &[]), package("xtask", &["regex"], &[])),
            (package("attic", &[], &[]), package("tasks", &["core"], &[])),
        ],
        "no-async-no-http" => vec![
            (package("engine", &["tokio"], &[]), package("server", &["tokio"], &[])),
            (package("files", &["ureq"], &[]), package("hub", &["ureq"], &[])),
            (package("cpu", &["rayon"], &[]), package("cpu", &["core"], &[])),
        ],
        "no-environment" => vec![
            (
                code("crates/cpu/src/a.rs", "let n = std::env::var(\"N\");"),
                code("crates/hub/src/a.rs", "std::env::var(\"N\");"),
            ),
            (
                code("crates/core/src/a.rs", "use std::env::{self, var};"),
                code("crates/core/src/a.rs", "use std::env::consts;"),
            ),
        ],
        "no-printing" => vec![
            (code("crates/model/src/a.rs", "println!(\"x\");"), code("crates/model/tests/a.rs", "println!(\"x\");")),
            (code("crates/text/src/a.rs", "dbg!(x);"), code("crates/cli/src/a.rs", "println!(\"x\");")),
            (code("crates/core/src/a.rs", "std::io::stderr();"), code("crates/core/src/a.rs", "// println!")),
        ],
        "no-family-names" => vec![
            (code("crates/core/src/a.rs", "match \"qwen2\" {}"), code("crates/model/src/families/a.rs", "\"qwen2\"")),
            (
                code("crates/model/src/a.rs", "enum A { DeepSeek }"),
                code("crates/model/src/a.rs", "/// DeepSeek-V2, section 2.1\nA"),
            ),
            (
                code("crates/model/src/a.rs", "fn llama() {}"),
                code("crates/model/src/a.rs", "Scaling::Llama3 { factor }"),
            ),
        ],
        "isa-names" => vec![
            (code("crates/core/src/a.rs", "fn dot_avx2() {}"), code("crates/cpu/src/a.rs", "fn dot_avx2() {}")),
            (code("crates/engine/src/a.rs", "let sse = 1;"), code("crates/server/src/a.rs", "mod sse;")),
            (
                House {
                    sources: ["a", "b"].map(|f| Source::new(&format!("crates/cli/src/{f}.rs"), "\"avx512\"")).into(),
                    ..House::default()
                },
                code("crates/cli/src/a.rs", "\"avx512\"\n\"avx2\""),
            ),
        ],
        "dialect-names" => vec![(
            code("crates/server/src/a.rs", "route(\"/openai\")"),
            code("crates/server/src/dialects/a.rs", "route(\"/openai\")"),
        )],
        "file-length" => vec![
            (code("crates/core/src/a.rs", &"a\n".repeat(1001)), code("crates/core/src/a.rs", &"a\n".repeat(1000))),
            (
                code("crates/core/src/a.rs", &format!("//! tables\n{}", "a\n".repeat(1000))),
                code("crates/core/src/a.rs", &format!("//! what\n//! table\n{}", "a\n".repeat(2000))),
            ),
            (
                code("crates/core/src/a.rs", &format!("{}#[cfg(test)]\nmod t {{\n}}\n", "a\n".repeat(1001))),
                code("crates/core/src/a.rs", &format!("a\n#[cfg(test)]\nmod t {{\n{}}}\n", "a\n".repeat(1001))),
            ),
        ],
        "header" => vec![
            (code("crates/core/src/a.rs", "// what\nfn a() {}"), code("crates/core/src/a.rs", "//! What.\nfn a() {}")),
            (
                code("crates/core/src/a.rs", "fn a() {}\n//! late"),
                code("crates/core/src/a.rs", "#![no_std]\n\n//! What."),
            ),
        ],
        "unsafe-places" => vec![
            (code("crates/core/src/a.rs", soundly), code("crates/cpu/src/simd/avx2.rs", soundly)),
            (
                code("crates/cpu/src/kernels/gemv.rs", soundly),
                code("crates/cpu/src/kernels/gemv.rs", "\"unsafe\" // unsafe"),
            ),
        ],
        "unsafe-forbidden" => vec![
            (
                code("crates/core/src/lib.rs", "#![deny(unsafe_code)]"),
                code("crates/core/src/lib.rs", "#![forbid(unsafe_code)]"),
            ),
            (code("crates/cpu/src/lib.rs", "mod a;"), code("crates/cpu/src/lib.rs", "#![deny(unsafe_code)]")),
        ],
        "unsafe-explained" => vec![
            (code("crates/cpu/src/pool.rs", "unsafe { f() }"), code("crates/cpu/src/pool.rs", soundly)),
            (
                code("crates/cpu/src/pool.rs", "// safe\nunsafe impl Send for A {}"),
                code("crates/cpu/src/pool.rs", "unsafe_code"),
            ),
        ],
        "unsafe-budget" => vec![
            (code("crates/cpu/src/pool.rs", soundly), budget(code("crates/cpu/src/pool.rs", soundly), "cpu", 1)),
            (budget(code("crates/cpu/src/pool.rs", soundly), "cpu", 2), House::default()),
        ],
        _ => vec![],
    }
}

#[test]
fn every_law_can_fail() {
    for law in LAWS {
        let examples = examples(law.name);
        assert!(!examples.is_empty(), "{} has no example", law.name);
        for (k, (breaks, keeps)) in examples.iter().enumerate() {
            assert!(!(law.faults)(breaks).is_empty(), "{} does not see its example {k}", law.name);
            assert_eq!((law.faults)(keeps), [], "{} sees a fault where none is, example {k}", law.name);
        }
    }
}

#[test]
fn faults_name_the_line() {
    let house = code("crates/core/src/a.rs", "//! A.\nfn a() {}\nprintln!();\n");
    assert_eq!(words::printing(&house), [Fault::on("crates/core/src/a.rs:3", "says println!")]);
}

#[test]
fn sizes_add_up() {
    let text = "a\n#[cfg(test)]\nmod t {\n}\n";
    let house = code("crates/core/src/a.rs", text);
    let sizes = shape::sizes(&house, &[("core".to_owned(), (3, 1))].into());
    assert!(sizes.contains("core           1        1       3   +3 -1\n"), "{sizes}");
    assert!(sizes.contains("total          1        1       3   +3 -1\n"), "{sizes}");
}
