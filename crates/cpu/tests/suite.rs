//! The behaviour suite of all backends, at every level of instructions present and in both precisions.

use fathom_core::Precision;
use fathom_cpu::{Cpu, CpuOptions, Level};
use fathom_testkit::backend_suite::{Tolerance, backend_suite};

#[test]
fn every_level_and_precision_passes_the_suite() {
    for isa in Level::present() {
        for precision in [Precision::Exact, Precision::Fast] {
            for repack in [false, true] {
                println!("{} {precision:?} repack {repack}", isa.name());
                let options = CpuOptions { threads: Some(2), isa: Some(isa), precision, repack };
                backend_suite(&|| Cpu::new(options).unwrap(), Tolerance::of(precision));
            }
        }
    }
}
