//! PyTorch checkpoints: honest ones are read, hostile ones are refused with what they wanted, and nothing they say is carried out.

use std::io::{Cursor, Write as _};
use std::path::Path;

use fathom_files::Archive;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// Writes a program as Python's pickler would.
#[derive(Clone, Default)]
struct Program(Vec<u8>);

impl Program {
    fn new() -> Self {
        Program(vec![0x80, 2])
    }
    fn op(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend(bytes.as_ref());
        self
    }
    fn text(self, text: &str) -> Self {
        self.op([b'X']).op((text.len() as u32).to_le_bytes()).op(text)
    }
    fn int(self, n: i32) -> Self {
        self.op([b'J']).op(n.to_le_bytes())
    }
    fn global(self, module: &str, name: &str) -> Self {
        self.op(format!("c{module}\n{name}\n"))
    }
    fn ints(self, all: &[i32]) -> Self {
        all.iter().fold(self.op("("), |p, n| p.int(*n)).op("t")
    }
    /// A reference to file `key`, which holds so many numbers.
    fn storage(self, class: &str, key: &str, numbers: i32) -> Self {
        let p = self.op("(").text("storage").global("torch", class).text(key).text("cpu");
        p.int(numbers).op("tQ")
    }
    /// A tensor that is the whole or a part of a storage.
    fn tensor(self, class: &str, key: &str, numbers: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Self {
        let p = self.global("torch._utils", "_rebuild_tensor_v2").op("(").storage(class, key, numbers);
        let p = p.int(offset).ints(shape).ints(strides).op([0x89]);
        p.global("collections", "OrderedDict").op(")R").op("tR")
    }
    /// A table of one tensor `a` of six numbers, in file 0.
    fn honest() -> Self {
        Program::new().op("}(").text("a").tensor("FloatStorage", "0", 6, 0, &[2, 3], &[3, 1]).op("u.")
    }
}

fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in files {
        zip.start_file(*name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn six() -> Vec<u8> {
    (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

fn checkpoint(program: &Program) -> Vec<u8> {
    zip(&[("m/data.pkl", &program.0), ("m/byteorder", b"little"), ("m/data/0", &six())])
}

/// Opens a directory with this checkpoint.
fn open(bytes: &[u8]) -> Result<Archive, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    std::fs::write(dir.path().join("pytorch_model.bin"), bytes).unwrap();
    Archive::open_unsafe_kinds(dir.path()).map_err(|e| e.to_string())
}

#[track_caller]
fn refused(bytes: &[u8], words: &str) {
    match open(bytes) {
        Ok(_) => panic!("accepted, expected `{words}`"),
        Err(said) => assert!(said.contains(words) && said.contains("pytorch_model.bin"), "`{words}`: {said}"),
    }
}

#[track_caller]
fn program_refused(program: Program, words: &str) {
    refused(&checkpoint(&program), words);
}

#[test]
fn an_honest_checkpoint_is_read() {
    let archive = open(&checkpoint(&Program::honest())).unwrap();
    let a = archive.tensor("a").unwrap().unwrap();
    assert_eq!((a.shape, a.bytes.as_slice().to_vec()), (vec![2, 3], six()));
    // A part of a storage; a parameter around a tensor; the attributes of a module's table; tables inside other operations.
    let program = Program::new()
        .global("collections", "OrderedDict")
        .op(")Rq\x00(")
        .text("b")
        .tensor("FloatStorage", "0", 6, 2, &[2, 1, 2], &[2, 9, 1])
        .text("c")
        .global("torch._utils", "_rebuild_parameter")
        .op("(")
        .tensor("FloatStorage", "0", 6, 5, &[], &[])
        .op([0x88])
        .global("collections", "OrderedDict")
        .op(")RtR")
        .op("u}")
        .op("(")
        .text("_metadata")
        .op("}ub.");
    let archive = open(&checkpoint(&program)).unwrap();
    assert_eq!(archive.tensor("b").unwrap().unwrap().bytes.as_slice(), &six()[8..24]);
    assert_eq!(archive.tensor("c").unwrap().unwrap().bytes.as_slice(), &six()[20..]);
}

/// `testdata/pickles/pytorch_model.bin` is what `torch.save` (2.13) wrote.
#[test]
fn what_torch_saves_is_read() {
    let bytes =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/pickles/pytorch_model.bin")).unwrap();
    let archive = open(&bytes).unwrap();
    assert_eq!(archive.names().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    let tensor = |name: &str| archive.tensor(name).unwrap().unwrap();
    assert_eq!((tensor("a").shape, tensor("a").bytes.as_slice().to_vec()), (vec![2, 3], six()));
    assert_eq!(tensor("b").bytes.as_slice(), [0x80, 0x3f].repeat(4));
    // 4, 5, 6, 7 in binary16, out of the middle of twelve.
    assert_eq!(tensor("d").bytes.as_slice(), [0x00, 0x44, 0x00, 0x45, 0x00, 0x46, 0x00, 0x47]);
    let said = archive.tensor("c").err().unwrap().to_string();
    assert!(said.contains("LongStorage"), "{said}");
}

#[test]
fn the_usual_door_does_not_open_for_pickles() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    std::fs::write(dir.path().join("pytorch_model.bin"), checkpoint(&Program::honest())).unwrap();
    let said = Archive::open(dir.path()).err().unwrap().to_string();
    assert!(said.contains("a pickle") && said.contains("fathom convert"), "{said}");
}

#[test]
fn nothing_is_called() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "__import__"),
        ("builtins", "getattr"),
        ("__builtin__", "eval"),
        ("runpy", "_run_code"),
        ("torch", "load"),
        ("torch.serialization", "load"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"),
        ("torch._utils", "_rebuild_wrapper_subclass"),
        ("torch.storage", "_load_from_bytes"),
        ("collections", "OrderedDict.__reduce__"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("pickle", "loads"),
        ("torch", "FloatStorage.from_file"),
        ("", ""),
        ("torch\u{430}", "FloatStorage"),
    ] {
        let call = |p: Program| p.op("(").text("touch /tmp/broken").op("tR.");
        program_refused(call(Program::new().global(module, name)), "only the names that tensors are built with");
        let stacked = Program::new().text(module).text(name).op([0x93]);
        program_refused(call(stacked), "only the names that tensors are built with");
    }
}

#[test]
fn operations_that_make_objects_are_not_carried_out() {
    for (op, what) in [
        (&b"(ios\nsystem\n"[..], "INST"),
        (b"(o", "OBJ"),
        (b"\x81", "NEWOBJ"),
        (b"\x92", "NEWOBJ_EX"),
        (b"\x82\x01", "EXT1"),
        (b"\x83\x01\x00", "EXT2"),
        (b"\x84\x01\x00\x00\x00", "EXT4"),
        (b"P1\n", "PERSID"),
        (b"]", "EMPTY_LIST"),
        (b"G\x00\x00\x00\x00\x00\x00\x00\x00", "BINFLOAT"),
        (b"\x97", "NEXT_BUFFER"),
        (b"\xff", "nothing known"),
    ] {
        let said = open(&checkpoint(&Program::new().op(op))).err().unwrap();
        assert!(said.contains("not carried out") || said.contains("tuple"), "{what}: {said}");
    }
    // Known names in ways that build nothing.
    let ordered = Program::new().global("collections", "OrderedDict");
    program_refused(ordered.clone().op("(").text("x").op("tR."), "a call that builds");
    program_refused(ordered.op("."), "a table of tensors");
    program_refused(Program::new().global("torch", "FloatStorage").op(")R."), "a call that builds");
}

#[test]
fn tensors_lie_where_they_say() {
    let one = |p: fn(Program) -> Program| p(Program::new().op("}(").text("a")).op("u.");
    for (program, words) in [
        (one(|p| p.tensor("FloatStorage", "0", 6, 0, &[7], &[1])), "inside its storage"),
        (one(|p| p.tensor("FloatStorage", "0", 6, 1, &[2, 3], &[3, 1])), "inside its storage"),
        (one(|p| p.tensor("FloatStorage", "0", 6, -1, &[2], &[1])), "negative offset"),
        (one(|p| p.tensor("FloatStorage", "0", 6, 0, &[3, 2], &[1, 3])), "row after row"),
        (one(|p| p.tensor("FloatStorage", "0", 6, 0, &[2, 3], &[0, 1])), "row after row"),
        (one(|p| p.tensor("FloatStorage", "0", 6, 0, &[-2, -3], &[3, 1])), "another shape"),
        (one(|p| p.tensor("FloatStorage", "0", 6, 0, &[2, 3], &[3])), "row after row"),
        (one(|p| p.tensor("FloatStorage", "0", 6, 0, &[1, 1, 1, 1, 6], &[6, 6, 6, 6, 1])), "another shape"),
        (one(|p| p.tensor("FloatStorage", "0", 6, 0, &[i32::MAX; 4], &[1; 4])), "row after row"),
        (one(|p| p.tensor("FloatStorage", "0", 7, 0, &[6], &[1])), "7 numbers of 4 bytes"),
        (one(|p| p.tensor("FloatStorage", "9", 6, 0, &[6], &[1])), "nothing"),
        (one(|p| p.tensor("FloatStorage", "0", -6, 0, &[6], &[1])), "a storage"),
        (one(|p| p.tensor("HalfStorage", "0", 6, 0, &[6], &[1])), "6 numbers of 2 bytes"),
        (one(|p| p.int(5)), "a tensor"),
    ] {
        program_refused(program, words);
    }
    let twice = Program::new().op("}(").text("a").tensor("FloatStorage", "0", 6, 0, &[6], &[1]);
    let twice = twice.text("a").tensor("FloatStorage", "0", 6, 0, &[6], &[1]).op("u.");
    program_refused(twice, "each name once");
}

#[test]
fn programs_that_grow_are_stopped() {
    // A billion tuples by doubling: ((x, x), (x, x)), …
    let mut program = Program::new().int(1).op("q\x00");
    for _ in 0..40 {
        program = program.op("h\x00h\x00").op([0x86]).op("q\x00");
    }
    program_refused(program.op("."), "16 deep");
    program_refused(Program::new().op("(".repeat(2 << 20)), "values at once");
    program_refused(Program::new().op(")".repeat(2 << 20)), "values at once");
    let dicts = Program::new().op("}s".repeat(3));
    assert!(open(&checkpoint(&dicts)).is_err());
    let mut remembered = Program::new().int(1);
    for n in 0..(1u32 << 20) + 2 {
        remembered = remembered.op("r").op(n.to_le_bytes());
    }
    program_refused(remembered.op("."), "remembered values");
    program_refused(Program::new().op("X").op(u32::MAX.to_le_bytes()), "texts of at most");
    program_refused(Program::new().op("X").op(900u32.to_le_bytes()), "ends with `.`");
    program_refused(Program::new().op([0x8a, 200]), "64 bits");
    program_refused(Program::new().global(&"x".repeat(5000), "y"), "ordinary length");
    program_refused(Program::new(), "ends with `.`");
    program_refused(Program::new().op("."), "a value on the stack");
    program_refused(Program::new().op("h\x07."), "remembered before");
    program_refused(Program::new().op("t."), "a mark");
    program_refused(Program::new().op([0x95, 255, 255, 255, 255, 255, 255, 255, 255, b'.']), "a value on the stack");
}

#[test]
fn zips_are_what_pytorch_writes() {
    refused(b"", "a zip file");
    refused(b"\x80\x02}q\x00.", "a zip file");
    refused(&zip(&[("m/data/0", &six())]), "without data.pkl");
    let program = Program::honest().0;
    refused(&zip(&[("m/data.pkl", &program), ("n/data.pkl", &program)]), "a second one");
    refused(&zip(&[("m/data.pkl", &program), ("m/byteorder", b"big"), ("m/data/0", &six())]), "low byte first");
    // The method changed to deflate, in both places that say it.
    let mut deflated = checkpoint(&Program::honest());
    let at: Vec<usize> = (0..deflated.len() - 30)
        .filter(|&i| deflated[i..].starts_with(b"PK\x03\x04") || deflated[i..].starts_with(b"PK\x01\x02"))
        .collect();
    for i in at {
        let method = i + if deflated[i + 2] == 3 { 8 } else { 10 };
        deflated[method] = 8;
    }
    refused(&deflated, "stored as they are");
    let whole = checkpoint(&Program::honest());
    for cut in (1..whole.len()).step_by(7) {
        assert!(open(&whole[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn broken_bytes_never_panic() {
    let whole = checkpoint(&Program::honest());
    let mut state = 5u64;
    for _ in 0..1500 {
        let mut broken = whole.clone();
        for _ in 0..3 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 33) as usize % broken.len();
            broken[at] = (state >> 20) as u8;
        }
        if let Ok(archive) = open(&broken) {
            for name in archive.names().map(str::to_owned).collect::<Vec<_>>() {
                if let Ok(Some(t)) = archive.tensor(&name) {
                    assert!(t.bytes.len() <= six().len());
                }
            }
        }
    }
}

#[test]
fn the_recorded_checkpoint_holds_what_its_twin_holds() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures");
    if !shared.exists() {
        println!("skipped: {} is not here", shared.display());
        return;
    }
    let pickle = Archive::open_unsafe_kinds(&shared.join("janus_original")).unwrap();
    let twin = Archive::open(&shared.join("janus")).unwrap();
    for (original, hf) in [
        ("language_model.lm_head.weight", "lm_head.weight"),
        (
            "gen_vision_model.decoder.conv_blocks.1.upsample.conv.weight",
            "model.vqmodel.decoder.up.1.upsample.conv.weight",
        ),
        ("vision_model.vision_tower.norm.bias", "model.vision_model.post_layernorm.bias"),
    ] {
        let (a, b) = (pickle.tensor(original).unwrap().unwrap(), twin.tensor(hf).unwrap().unwrap());
        assert_eq!((a.shape, a.bytes.as_slice()), (b.shape, b.bytes.as_slice()), "{original}");
    }
}
