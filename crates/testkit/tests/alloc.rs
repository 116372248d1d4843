//! The counting allocator counts. Tests that promise not to allocate stand on this.

use fathom_testkit::alloc::{CountingAllocator, Usage, in_process, on_this_thread};

#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator;

/// One test, as `in_process` allows nothing beside it.
#[test]
fn every_call_and_the_peak() {
    let (_, none) = on_this_thread(|| std::hint::black_box([0u8; 100]));
    assert_eq!(none, Usage { calls: 0, peak_bytes: 0 });

    let (_, two) = on_this_thread(|| {
        drop(std::hint::black_box(vec![1u8; 1000]));
        std::hint::black_box(vec![1u8; 600])
    });
    assert_eq!(two, Usage { calls: 2, peak_bytes: 1000 });

    let mut grown = vec![0u8; 100];
    let (_, growth) = on_this_thread(|| grown.reserve_exact(900));
    assert_eq!(growth, Usage { calls: 1, peak_bytes: 900 });

    let elsewhere = || std::thread::spawn(|| drop(std::hint::black_box(vec![1u8; 1 << 20]))).join().unwrap();
    assert!(on_this_thread(elsewhere).1.peak_bytes < 1 << 16);
    assert!(in_process(elsewhere).1.peak_bytes >= 1 << 20);
}
