//! The behaviour suite of all backends, at every level of instructions present and in both precisions.

use fathom_core::Precision::{self, Exact, Fast};
use fathom_cpu::{Cpu, CpuOptions, Level, Pool, Products};
use fathom_testkit::backend_suite::{Tolerance, backend_suite};

fn passes(isa: Level, precision: Precision, repack: bool) {
    if !Level::present().any(|l| l == isa) {
        println!("skipped: this machine has no {}", isa.name());
        return;
    }
    let options = CpuOptions { threads: Some(2), isa: Some(isa), precision, repack };
    let cases = backend_suite(&|| Cpu::new(options).unwrap(), Tolerance::of(precision));
    assert!(cases > 1000, "only {cases} cases ran");
}

#[test]
fn portable_exact() {
    passes(Level::Portable, Exact, true);
}

#[test]
fn portable_fast() {
    passes(Level::Portable, Fast, true);
}

#[test]
fn avx2_exact() {
    passes(Level::Avx2, Exact, true);
}

#[test]
fn avx2_fast() {
    passes(Level::Avx2, Fast, true);
}

#[test]
fn avx512_exact() {
    passes(Level::Avx512, Exact, true);
}

#[test]
fn avx512_fast() {
    passes(Level::Avx512, Fast, true);
}

#[test]
fn fast_with_the_plain_mapping() {
    let best = Level::present().last().expect("invariant: the portable level is always present");
    passes(best, Fast, false);
}

/// The backend that is trained on, where its factors are exact.
#[test]
fn training() {
    for isa in Level::present() {
        let pool = Pool::new(2).unwrap();
        let make = || Cpu::training(pool.clone(), Some(isa), Products::F32).unwrap();
        let cases = backend_suite(&|| make(), Tolerance::of(Exact));
        assert!(cases > 1000, "only {cases} cases ran");
    }
}
