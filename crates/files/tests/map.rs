//! Pages of a mapped file can be given back, and read again. Alone in its process, to measure memory.
#![cfg(target_os = "linux")]

use fathom_core::ByteSource;
use fathom_files::Map;

/// Pages of files that this process holds, in bytes.
fn resident_file_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("RssFile:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[test]
fn discarded_pages_go_and_their_bytes_stay() {
    const LEN: usize = 32 << 20;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..LEN).map(|i| (i / 4096 % 251) as u8).collect();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    let map = Map::open(file.path()).unwrap();
    assert!(map.bytes() == bytes);
    let before = resident_file_bytes();
    // Not whole pages: only those inside the range may go.
    map.discard(1..LEN - 1);
    let gone = before - resident_file_bytes();
    assert!(gone > LEN * 9 / 10, "{gone} bytes were given back of {LEN}");
    assert!(map.bytes() == bytes);
    map.discard(LEN - 10..LEN);
    map.discard(5..5);
}

#[test]
fn only_regular_files_are_mapped() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Map::open(dir.path()).err().unwrap().to_string().ends_with("expected a file, found a directory"));
    assert!(
        Map::open("/dev/zero".as_ref()).err().unwrap().to_string().ends_with("expected a file, found something else")
    );
    let empty = dir.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    assert!(Map::open(&empty).unwrap().bytes().is_empty());
}
