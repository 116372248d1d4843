//! Broken and hostile files: each gives one clear error, exactly the one written here; nothing panics; nothing
//! allocates beyond the file's own size.

use std::path::Path;

use fathom_files::gguf::Gguf;
use fathom_files::safetensors::SafeTensors;
use fathom_files::{Archive, Error, Place};
use fathom_testkit::alloc::{CountingAllocator, on_this_thread};

#[global_allocator]
static ALLOC: CountingAllocator = CountingAllocator;

/// Room for error texts and the tables of a small file.
const SLACK_BYTES: usize = 16 << 10;

/// What a reader says of `bytes`, without the file's name; the memory that it takes is checked on the way.
fn verdict<T>(bytes: &[u8], read: impl FnOnce(Vec<u8>) -> Result<T, Error>) -> String {
    let owned = bytes.to_vec();
    let (result, usage) = on_this_thread(|| read(owned));
    let limit = bytes.len() + SLACK_BYTES;
    assert!(usage.peak_bytes <= limit, "{} bytes allocated for a file of {}", usage.peak_bytes, bytes.len());
    match result {
        Ok(_) => "no error".into(),
        Err(Error::Faults(faults)) => {
            assert!(faults.list().iter().all(|f| f.file == Path::new("(memory)")));
            faults.to_string().replace("(memory): ", "")
        }
        Err(e) => panic!("memory gave {e}"),
    }
}

/// A GGUF file with every part open to change.
#[derive(Clone)]
struct Raw {
    start: Vec<u8>,
    tensor_count: u64,
    pair_count: u64,
    pairs: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

fn pair(key: &str, ty: u32, value: &[u8]) -> Vec<u8> {
    [string(key.as_bytes()), ty.to_le_bytes().to_vec(), value.to_vec()].concat()
}

fn array(key: &str, elem: u32, len: u64, value: &[u8]) -> Vec<u8> {
    pair(key, ARRAY, &[&elem.to_le_bytes()[..], &len.to_le_bytes(), value].concat())
}

fn tensor(name: &[u8], dims: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let mut out = string(name);
    out.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
    out.extend(ty.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

impl Raw {
    /// Two pairs; `a` is F32 [2, 4] and `b` Q8_0 [1, 32].
    fn new() -> Raw {
        Raw {
            start: [&b"GGUF"[..], &3u32.to_le_bytes()].concat(),
            tensor_count: 2,
            pair_count: 2,
            pairs: vec![
                pair("general.architecture", STRING, &string(b"x")),
                array("tokens", STRING, 2, &[string(b"one"), string(b"two")].concat()),
            ],
            tensors: vec![tensor(b"a", &[4, 2], 0, 0), tensor(b"b", &[32], 8, 32)],
            data: vec![0; 32 + 34],
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.start.clone();
        out.extend(self.tensor_count.to_le_bytes());
        out.extend(self.pair_count.to_le_bytes());
        out.extend(self.pairs.concat());
        out.extend(self.tensors.concat());
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }

    fn pair(mut self, pair: Vec<u8>) -> Raw {
        self.pairs.push(pair);
        self.pair_count += 1;
        self
    }

    fn tensor(mut self, i: usize, tensor: Vec<u8>) -> Raw {
        self.tensors[i] = tensor;
        self
    }
}

#[test]
fn gguf_faults_are_named() {
    let raw = Raw::new;
    let whole = raw().bytes();
    let cut = |n: usize| whole[..n].to_vec();
    let start = |magic: &[u8], version: u32| Raw { start: [magic, &version.to_le_bytes()].concat(), ..raw() }.bytes();
    let with = |p: Vec<u8>| raw().pair(p).bytes();
    let a = |t: Vec<u8>| raw().tensor(0, t).bytes();
    assert_eq!(verdict(&whole, Gguf::from_bytes), "no error");

    let big = (1u64 << 62).to_le_bytes();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "at byte 0: expected the magic \"GGUF\" (4 bytes), found 0 bytes to the end"),
        ("half a magic", cut(2), "at byte 0: expected the magic \"GGUF\" (4 bytes), found 2 bytes to the end"),
        ("other magic", start(b"GGML", 3), "at byte 0: expected the magic \"GGUF\", found \"GGML\""),
        ("no version", cut(6), "at byte 4: expected the version (4 bytes), found 2 bytes to the end"),
        ("version 0", start(b"GGUF", 0), "at byte 4: expected version 2 or 3, little endian, found 0"),
        ("version 1", start(b"GGUF", 1), "at byte 4: expected version 2 or 3, little endian, found 1"),
        ("version 4", start(b"GGUF", 4), "at byte 4: expected version 2 or 3, little endian, found 4"),
        (
            "big endian",
            start(b"GGUF", 3u32.swap_bytes()),
            "at byte 4: expected version 2 or 3, little endian, found a big-endian file",
        ),
        ("counts cut", cut(12), "at byte 8: expected a number of tensors (8 bytes), found 4 bytes to the end"),
        (
            "tensor count over the cap",
            Raw { tensor_count: 1 << 63, ..raw() }.bytes(),
            "at byte 8: expected a number of tensors of at most 131072, found 9223372036854775808",
        ),
        (
            "pair count over the cap",
            Raw { pair_count: u64::MAX, ..raw() }.bytes(),
            "at byte 16: expected a number of key-value pairs of at most 65536, found 18446744073709551615",
        ),
        (
            "more tensors than there are",
            Raw { tensor_count: 100_000, ..raw() }.bytes(),
            "at byte 191: expected a tensor name, found an empty one",
        ),
        (
            "more pairs than there are",
            Raw { pair_count: 3, ..raw() }.bytes(),
            "at byte 132: expected a tensor name of at most 256 bytes, found 562949953421312",
        ),
        (
            "key length over the cap",
            with(big.to_vec()),
            "at byte 117: expected a key of at most 65535 bytes, found 4611686018427387904",
        ),
        (
            "key past the end",
            Raw { data: vec![], tensors: vec![], ..raw() }.pair(60_000u64.to_le_bytes().to_vec()).bytes(),
            "at byte 125: expected a key (60000 bytes), found 3 bytes to the end",
        ),
        (
            "key not UTF-8",
            with([string(b"k\xff"), vec![0; 8]].concat()),
            "at byte 125: expected a key in UTF-8, found \"k�\"",
        ),
        ("key twice", with(pair("tokens", 0, &[1])), "key tokens: expected each key once, found it again at byte 125"),
        (
            "key with control characters twice",
            raw().pair(pair("\x1b[2J", 0, &[1])).pair(pair("\x1b[2J", 0, &[1])).bytes(),
            "key \\u{1b}[2J: expected each key once, found it again at byte 142",
        ),
        ("unknown value type", with(pair("k", 13, &[0; 8])), "at byte 126: expected a value type, 0 to 12, found 13"),
        (
            "string over the cap",
            with(pair("k", STRING, &big)),
            "at byte 130: expected a string of at most 33554432 bytes, found 4611686018427387904",
        ),
        (
            "string past the end",
            with(pair("k", STRING, &1_000_000u64.to_le_bytes())),
            "at byte 138: expected a string (1000000 bytes), found 152 bytes to the end",
        ),
        (
            "string not UTF-8",
            with(pair("k", STRING, &string(b"\xc3("))),
            "at byte 138: expected a string in UTF-8, found \"�(\"",
        ),
        ("boolean 2", with(pair("k", 7, &[2])), "at byte 130: expected a boolean, 0 or 1, found 2"),
        (
            "unknown element type",
            with(array("k", 77, 1, &[0; 8])),
            "at byte 130: expected a value type, 0 to 12, found 77",
        ),
        (
            "array of arrays",
            with(array("k", ARRAY, 1, &[0; 16])),
            "at byte 130: expected an array of numbers, booleans or strings, found an array of arrays",
        ),
        (
            "array length over the cap",
            with(array("k", 10, 1 << 61, &[])),
            "at byte 134: expected the length of an array of at most 16777216, found 2305843009213693952",
        ),
        (
            "array past the end",
            with(array("k", 10, 1 << 24, &[])),
            "at byte 142: expected the elements of an array (134217728 bytes), found 148 bytes to the end",
        ),
        (
            "strings of an array past the end",
            with(array("k", STRING, 1 << 20, &string(b"x"))),
            "at byte 160: expected a string of at most 33554432 bytes, found 17179869186",
        ),
        (
            "string of an array over the cap",
            with(array("k", STRING, 1, &u64::MAX.to_le_bytes())),
            "at byte 142: expected a string of at most 33554432 bytes, found 18446744073709551615",
        ),
        (
            "boolean 7 in an array",
            with(array("k", 7, 3, &[0, 1, 7])),
            "at byte 144: expected a boolean, 0 or 1, found 7",
        ),
        (
            "alignment 0",
            with(pair("general.alignment", 4, &0u32.to_le_bytes())),
            "key general.alignment: expected a power of two, at most 1048576, found 0",
        ),
        (
            "alignment 48",
            with(pair("general.alignment", 4, &48u32.to_le_bytes())),
            "key general.alignment: expected a power of two, at most 1048576, found 48",
        ),
        (
            "alignment over the cap",
            with(pair("general.alignment", 4, &(1u32 << 31).to_le_bytes())),
            "key general.alignment: expected a power of two, at most 1048576, found 2147483648",
        ),
        (
            "alignment a string",
            with(pair("general.alignment", STRING, &string(b"32"))),
            "key general.alignment: expected an unsigned 32-bit integer, found string \"32\"",
        ),
        (
            "alignment negative",
            with(pair("general.alignment", 5, &(-32i32).to_le_bytes())),
            "key general.alignment: expected an unsigned 32-bit integer, found i32 -32",
        ),
        (
            "name over the cap",
            a(tensor(&[b'n'; 300], &[4, 2], 0, 0)),
            "at byte 117: expected a tensor name of at most 256 bytes, found 300",
        ),
        (
            "name not UTF-8",
            a(tensor(b"\x80", &[4, 2], 0, 0)),
            "at byte 125: expected a tensor name in UTF-8, found \"�\"",
        ),
        (
            "name twice",
            a(tensor(b"b", &[4, 2], 0, 0)),
            "tensor b: expected each name once, found it again, first in (memory)",
        ),
        ("no dimensions", a(tensor(b"a", &[], 0, 0)), "tensor a: expected 1 to 4 dimensions, found 0"),
        ("five dimensions", a(tensor(b"a", &[4, 2, 1, 1, 1], 0, 0)), "tensor a: expected 1 to 4 dimensions, found 5"),
        (
            "4 billion dimensions",
            a([string(b"a"), vec![255; 4]].concat()),
            "tensor a: expected 1 to 4 dimensions, found 4294967295",
        ),
        (
            "a dimension of 0",
            a(tensor(b"a", &[4, 0], 0, 0)),
            "tensor a: expected dimensions of at least 1, found [4, 0]",
        ),
        (
            "elements overflow",
            a(tensor(b"a", &[1 << 40, 1 << 40], 0, 0)),
            "tensor a: expected a size below 2^64 bytes, found dimensions [1099511627776, 1099511627776]",
        ),
        (
            "elements wrap to few",
            a(tensor(b"a", &[1 << 32, 1 << 32, 4], 0, 0)),
            "tensor a: expected a size below 2^64 bytes, found dimensions [4294967296, 4294967296, 4]",
        ),
        (
            "bytes overflow",
            a(tensor(b"a", &[1 << 63], 0, 0)),
            "tensor a: expected a size below 2^64 bytes, found dimensions [9223372036854775808]",
        ),
        (
            "part of a block",
            a(tensor(b"a", &[33], 8, 0)),
            "tensor a: expected rows of whole blocks of 32, found rows of 33",
        ),
        ("unknown type", a(tensor(b"a", &[4, 2], 99, 0)), "tensor a: expected a known ggml type, found type 99"),
        ("removed type", a(tensor(b"a", &[32], 4, 0)), "tensor a: expected a known ggml type, found type 4"),
        (
            "offset not aligned",
            a(tensor(b"a", &[4, 1], 0, 16)),
            "tensor a: expected an offset that is a multiple of 32, found 16",
        ),
        (
            "offset past the end",
            a(tensor(b"a", &[4, 2], 0, 1 << 20)),
            "tensor a: expected 32 bytes from offset 1048576 of the data, found 66 bytes of data",
        ),
        (
            "offset overflows",
            a(tensor(b"a", &[4, 2], 0, u64::MAX - 31)),
            "tensor a: expected 32 bytes from offset 18446744073709551584 of the data, found 66 bytes of data",
        ),
        (
            "data cut",
            cut(whole.len() - 1),
            "tensor b: expected 34 bytes from offset 32 of the data, found 65 bytes of data",
        ),
        (
            "no data",
            Raw { data: vec![], ..raw() }.bytes(),
            "tensor a: expected 32 bytes from offset 0 of the data, found 0 bytes of data\ntensor b: expected 34 bytes from offset 32 of the data, found 0 bytes of data",
        ),
        (
            "larger than the file",
            a(tensor(b"a", &[4, 1 << 40], 0, 0)),
            "tensor a: expected 17592186044416 bytes from offset 0 of the data, found 66 bytes of data",
        ),
        (
            "overlap",
            raw().tensor(1, tensor(b"b", &[32], 8, 0)).bytes(),
            "tensor b: expected to start at byte 224 or later, behind tensor a, found byte 192",
        ),
        (
            "overlap inside",
            a(tensor(b"a", &[16], 0, 0)),
            "tensor b: expected to start at byte 256 or later, behind tensor a, found byte 224",
        ),
        (
            "cut in a record",
            cut(whole.len() - 66 - 32),
            "at byte 158: expected the length of a string (8 bytes), found 2 bytes to the end",
        ),
    ];
    check(&cases, Gguf::from_bytes);
}

fn check<T>(cases: &[(&str, Vec<u8>, &str)], read: impl Fn(Vec<u8>) -> Result<T, Error>) {
    for (name, bytes, expected) in cases {
        assert_eq!(verdict(bytes, &read), *expected, "{name}");
    }
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

const ENTRY: &str = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;

#[test]
fn safetensors_faults_are_named() {
    let good = safetensors(&format!(r#"{{"__metadata__":{{"format":"pt"}},{ENTRY}}}"#), 8);
    assert_eq!(verdict(&good, SafeTensors::from_bytes), "no error");
    let one = |entry: &str| safetensors(&format!("{{\"a\":{entry}}}"), 8);
    let two = |entry: &str, data| safetensors(&format!("{{{ENTRY},{entry}}}"), data);
    let length = |n: u64| [&n.to_le_bytes()[..], &good[8..]].concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "at byte 0: expected a header length (8 bytes), found 0 bytes to the end"),
        (
            "half a length",
            good[..5].to_vec(),
            "at byte 0: expected a header length (8 bytes), found 5 bytes to the end",
        ),
        (
            "length over the cap",
            length(u64::MAX),
            "at byte 0: expected a header length of at most 104857600, found 18446744073709551615",
        ),
        ("length past the end", length(5000), "at byte 8: expected the header (5000 bytes), found 93 bytes to the end"),
        ("length 0", length(0), "at byte 8: expected a header of tensors by name, found EOF while parsing a value"),
        (
            "length cuts the header",
            length(40),
            "at byte 47: expected a header of tensors by name, found EOF while parsing a string",
        ),
        (
            "length reaches into the data",
            length((good.len() - 8) as u64),
            "at byte 93: expected a header of tensors by name, found trailing characters",
        ),
        ("not JSON", safetensors("header", 8), "at byte 8: expected a header of tensors by name, found expected value"),
        (
            "not UTF-8",
            [&5u64.to_le_bytes()[..], b"{\"\xff\":"].concat(),
            "at byte 10: expected a header of tensors by name, found invalid unicode code point",
        ),
        (
            "not an object",
            safetensors("[]", 0),
            "at byte 8: expected a header of tensors by name, found invalid type: sequence, expected an object by tensor name",
        ),
        (
            "deep nesting",
            safetensors(&"[".repeat(100_000), 0),
            "at byte 8: expected a header of tensors by name, found invalid type: sequence, expected an object by tensor name",
        ),
        (
            "deep nesting in an entry",
            one(&format!("{}1", "{\"dtype\":".repeat(1000))),
            "at byte 21: expected a header of tensors by name, found invalid type: map, expected a string",
        ),
        (
            "entry not an object",
            one("7"),
            "at byte 13: expected a header of tensors by name, found invalid type: integer `7`, expected an object with dtype, shape and data_offsets",
        ),
        (
            "no offsets",
            one(r#"{"dtype":"F32","shape":[2]}"#),
            "at byte 39: expected a header of tensors by name, found missing field `data_offsets`",
        ),
        (
            "a field too many",
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8],"crc":1}"#),
            "at byte 65: expected a header of tensors by name, found unknown field `crc`, expected one of `dtype`, `shape`, `data_offsets`",
        ),
        (
            "a field twice",
            one(r#"{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}"#),
            "at byte 34: expected a header of tensors by name, found duplicate field `dtype`",
        ),
        (
            "type not a string",
            one(r#"{"dtype":1,"shape":[2],"data_offsets":[0,8]}"#),
            "at byte 22: expected a header of tensors by name, found invalid type: integer `1`, expected a string",
        ),
        (
            "unknown type",
            one(r#"{"dtype":"Q9","shape":[2],"data_offsets":[0,8]}"#),
            "tensor a: expected a type of the safetensors format, found \"Q9\"",
        ),
        (
            "negative dimension",
            one(r#"{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#),
            "at byte 38: expected a header of tensors by name, found invalid value: integer `-2`, expected u64",
        ),
        (
            "half a dimension",
            one(r#"{"dtype":"F32","shape":[0.5],"data_offsets":[0,8]}"#),
            "at byte 39: expected a header of tensors by name, found invalid type: floating point `0.5`, expected u64",
        ),
        (
            "five dimensions",
            one(r#"{"dtype":"F32","shape":[1,1,1,1,2],"data_offsets":[0,8]}"#),
            "at byte 46: expected a header of tensors by name, found invalid length 5, expected an array with no more than 4 items",
        ),
        (
            "elements overflow",
            one(r#"{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}"#),
            "tensor a: expected a size below 2^61 bytes, found dimensions [4294967296, 4294967296, 4]",
        ),
        (
            "half a byte",
            one(r#"{"dtype":"F4","shape":[3],"data_offsets":[0,2]}"#),
            "tensor a: expected whole bytes, found 12 bits in F4 [3]",
        ),
        (
            "three offsets",
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}"#),
            "at byte 60: expected a header of tensors by name, found trailing characters",
        ),
        (
            "offsets the wrong way round",
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#),
            "tensor a: expected offsets 8 bytes apart for F32 [2], found 8 to 0",
        ),
        (
            "offsets against the shape",
            one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#),
            "tensor a: expected offsets 12 bytes apart for F32 [3], found 0 to 8",
        ),
        (
            "offset overflows",
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[18446744073709551612,4]}"#),
            "tensor a: expected offsets 8 bytes apart for F32 [2], found 18446744073709551612 to 4",
        ),
        (
            "offset past 64 bits",
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551616]}"#),
            "at byte 77: expected a header of tensors by name, found invalid type: floating point `1.8446744073709552e+19`, expected u64",
        ),
        (
            "data past the end",
            one(r#"{"dtype":"F32","shape":[4],"data_offsets":[0,16]}"#),
            "tensor a: expected data to end at offset 8 at most, found 16",
        ),
        ("data cut", good[..good.len() - 1].to_vec(), "tensor a: expected data to end at offset 7 at most, found 8"),
        (
            "bytes after the data",
            [&good[..], b"x"].concat(),
            "at byte 93: expected 8 bytes of data, as the header lists, found 9",
        ),
        (
            "a gap in the data",
            two(r#""b":{"dtype":"U8","shape":[1],"data_offsets":[9,10]}"#, 10),
            "at byte 115: expected 9 bytes of data, as the header lists, found 10",
        ),
        (
            "overlap",
            two(r#""b":{"dtype":"U8","shape":[2],"data_offsets":[7,9]}"#, 9),
            "tensor b: expected to start at byte 122 or later, behind tensor a, found byte 121",
        ),
        (
            "the same bytes twice",
            two(r#""b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, 8),
            "tensor b: expected to start at byte 123 or later, behind tensor a, found byte 115",
        ),
        (
            "name twice",
            two(r#""a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}"#, 16),
            "tensor a: expected each name once, found it again, first in (memory)",
        ),
        (
            "name twice, escaped",
            two(r#""\u0061":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}"#, 16),
            "tensor a: expected each name once, found it again, first in (memory)",
        ),
        (
            "name over the cap",
            safetensors(&ENTRY.replace("\"a\"", &format!("{{\"{}\"", "n".repeat(2000))).replace("8]}", "8]}}"), 8),
            "tensor nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn…: expected a name of at most 1024 bytes, found 2000",
        ),
        (
            "metadata not strings",
            two(r#""__metadata__":{"a":1}"#, 8),
            "at byte 82: expected a header of tensors by name, found invalid type: integer `1`, expected a string",
        ),
    ];
    check(&cases, SafeTensors::from_bytes);
}

#[test]
fn every_fault_of_a_file_is_reported_at_once() {
    let raw = Raw::new()
        .tensor(0, tensor(b"a", &[4, 0], 0, 0))
        .tensor(1, tensor(b"b", &[31], 8, 7))
        .pair(pair("tokens", 0, &[1]))
        .pair(pair("general.alignment", 4, &5u32.to_le_bytes()));
    let all = verdict(&raw.bytes(), Gguf::from_bytes);
    assert_eq!(
        all.lines().map(|l| l.split(':').next().unwrap()).collect::<Vec<_>>(),
        ["key tokens", "key general.alignment", "tensor a", "tensor b"]
    );

    let entry = |i: usize| format!(r#""t{i}":{{"dtype":"Q","shape":[1],"data_offsets":[0,4]}}"#);
    let header = format!("{{{}}}", (0..300).map(entry).collect::<Vec<_>>().join(","));
    let Err(Error::Faults(faults)) = SafeTensors::from_bytes(safetensors(&header, 4)) else { panic!() };
    assert_eq!((faults.total(), faults.list().len()), (300, 100));
    assert!(faults.to_string().ends_with("and 200 faults more"));
}

#[test]
fn no_cut_and_no_changed_byte_panics() {
    let gguf = Raw::new().pair(array("ids", 4, 2, &[7; 8])).pair(pair("on", 7, &[1])).bytes();
    let json = format!(
        r#"{{"__metadata__":{{"format":"pt"}},{ENTRY},"b":{{"dtype":"U8","shape":[2,1],"data_offsets":[8,10]}}}}"#
    );
    let safetensors = safetensors(&json, 10);
    let read_all = |bytes: Vec<u8>| {
        // What was accepted must also be readable.
        Gguf::from_bytes(bytes).map(|g| g.metadata.iter().map(|(k, v)| format!("{k}{v:?}").len()).sum::<usize>())
    };
    let each = |whole: &[u8], read: &dyn Fn(Vec<u8>) -> String| {
        for n in 0..whole.len() {
            assert_ne!(read(whole[..n].to_vec()), "no error", "cut to {n} bytes");
            for value in [0, 1, 0x7f, 0x80, 0xff, whole[n] ^ 1, whole[n] ^ 0x20] {
                let mut changed = whole.to_vec();
                changed[n] = value;
                read(changed);
            }
        }
    };
    each(&gguf, &|bytes| verdict(&bytes, read_all));
    each(&safetensors, &|bytes| verdict(&bytes, SafeTensors::from_bytes));
}

#[cfg(unix)]
#[test]
fn metadata_of_any_size_is_refused_unread() {
    let (dir, mut raw) = (tempfile::tempdir().unwrap(), Raw::new());
    let path = dir.path().join("m.gguf");
    let mut file = std::fs::File::create(&path).unwrap();
    // Each pair an array of 2^24 bytes, which are a hole in the file.
    raw.pair_count = 60_000;
    std::io::Write::write_all(&mut file, &raw.bytes()[..24]).unwrap();
    let mut at = 24;
    for i in 0..17 {
        let pair = array(&format!("k{i}"), 0, 1 << 24, &[]);
        std::os::unix::fs::FileExt::write_all_at(&file, &pair, at).unwrap();
        at += pair.len() as u64 + (1 << 24);
    }
    file.set_len(at).unwrap();
    let (error, usage) = on_this_thread(|| Gguf::open(&path).err().unwrap());
    assert!(error.to_string().ends_with("expected key-value pairs of at most 268435456 bytes, found more"), "{error}");
    assert!(usage.peak_bytes < SLACK_BYTES, "{usage:?}");
}

#[test]
fn a_type_without_a_codec_is_named_when_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let raw = Raw { data: vec![0; 32 + 292], ..Raw::new().tensor(1, tensor(b"b", &[256], 15, 32)) };
    std::fs::write(&path, raw.bytes()).unwrap();
    let archive = Archive::open(&path).unwrap();
    assert!(archive.tensor("a").unwrap().is_some());
    assert!(archive.tensor("c").unwrap().is_none());
    let fault = archive.tensor("b").err().unwrap();
    assert_eq!((fault.place, &*fault.found), (Place::Tensor("b".into()), "Q8_K"));
    assert!(fault.expected.contains("Q8_0") && fault.expected.contains("IQ4_XS"), "{}", fault.expected);
}

/// Whatever we accept, the format's own library accepts, and sees the same tensors.
#[test]
fn safetensors_agrees_with_the_reference_library() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures/qwen2/model.safetensors");
    let json = format!(
        r#"{{{ENTRY},"b":{{"dtype":"BF16","shape":[3,1],"data_offsets":[8,14]}},"e":{{"dtype":"I64","shape":[0],"data_offsets":[14,14]}},"f":{{"dtype":"F4","shape":[2,2],"data_offsets":[14,16]}}}}"#
    );
    for bytes in [Some(safetensors(&json, 16)), std::fs::read(shared).ok()].into_iter().flatten() {
        let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let ours = SafeTensors::from_bytes(bytes.clone()).unwrap();
        let mut names = theirs.names();
        names.sort_unstable();
        assert_eq!(ours.names().collect::<Vec<_>>(), names);
        for name in names {
            let view = theirs.tensor(name).unwrap();
            match ours.tensor(name) {
                Ok(t) => {
                    let t = t.unwrap();
                    assert_eq!((t.bytes.as_slice(), &t.shape[..]), (view.data(), view.shape()));
                    assert_eq!(t.format.name(), view.dtype().to_string());
                }
                Err(fault) => assert_eq!(fault.found, view.dtype().to_string()),
            }
        }
    }
}

/// Inputs that once made a fuzzer stop.
#[test]
fn old_fuzz_findings_stay_fixed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/fuzz");
    for (target, read) in [
        ("gguf", (|bytes| verdict(&bytes, Gguf::from_bytes)) as fn(Vec<u8>) -> String),
        ("safetensors", |bytes| verdict(&bytes, SafeTensors::from_bytes)),
    ] {
        for entry in std::fs::read_dir(root.join(target)).into_iter().flatten() {
            read(std::fs::read(entry.unwrap().path()).unwrap());
        }
    }
}
