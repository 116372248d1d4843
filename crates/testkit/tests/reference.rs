//! The reference backend keeps the laws that it holds others to.

use std::sync::Arc;

use fathom_core::Backend;
use fathom_core::reference::Reference;
use fathom_testkit::backend_suite::{Tolerance, backend_suite};

#[test]
fn reference_passes_its_own_suite() {
    let exact = Tolerance { linear: 0.0, attend: 0.0, rows: 0.0 };
    let n = backend_suite(&|| -> Arc<dyn Backend> { Arc::new(Reference::new()) }, exact);
    println!("{n} cases");
}
