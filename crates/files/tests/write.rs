//! What the writers write, the readers read: pairs of every type, tensors, holes, parts.

use std::path::Path;

use fathom_core::{Weight, format};
use fathom_files::safetensors::SafeTensors;
use fathom_files::{Archive, Array, Error, GgufWriter, SafeTensorsWriter, Value};

fn write(path: &Path, fill: impl FnOnce(&mut GgufWriter), data: &[Option<&[u8]>]) {
    let mut w = GgufWriter::new();
    fill(&mut w);
    let mut out = w.create(path).unwrap();
    for tensor in data {
        match tensor {
            Some(bytes) => out.write(bytes).unwrap(),
            None => out.hole().unwrap(),
        }
    }
    out.finish().unwrap();
}

#[test]
fn pairs_of_every_type_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("a.gguf"), dir.path().join("b.gguf"));
    let texts = ["", "tief", "\u{6df1}\u{5ea6}"];
    write(
        &first,
        |w| {
            w.pair("general.architecture", "x").pair("u8", 200u8).pair("i8", -3i8).pair("u16", 60_000u16);
            w.pair("i16", -9i16).pair("u32", 4_000_000_000u32).pair("i32", -4i32).pair("u64", u64::MAX);
            w.pair("i64", i64::MIN).pair("f32", 1.5f32).pair("f64", 1e300f64).pair("yes", true);
            w.pair("texts", &texts[..]).pair("ids", &[3i32, -4][..]).pair("none", &[] as &[f32]);
            w.pair("flags", &[true, false][..]);
        },
        &[],
    );
    let a = Archive::open(&first).unwrap();
    let m = a.metadata().unwrap();
    assert_eq!(m.value("u8"), Some(Value::U8(200)));
    assert_eq!(m.value("i8"), Some(Value::I8(-3)));
    assert_eq!(m.value("u16"), Some(Value::U16(60_000)));
    assert_eq!(m.value("i16"), Some(Value::I16(-9)));
    assert_eq!(m.need::<u32>("u32").unwrap(), 4_000_000_000);
    assert_eq!(m.need::<i64>("i32").unwrap(), -4);
    assert_eq!(m.need::<u64>("u64").unwrap(), u64::MAX);
    assert_eq!(m.value("i64"), Some(Value::I64(i64::MIN)));
    assert_eq!(m.need::<f32>("f32").unwrap(), 1.5);
    assert_eq!(m.value("f64"), Some(Value::F64(1e300)));
    assert!(m.need::<bool>("yes").unwrap());
    assert_eq!(m.need::<Vec<&str>>("texts").unwrap(), texts);
    assert_eq!(m.need::<Vec<i64>>("ids").unwrap(), [3, -4]);
    assert!(m.need::<Array>("none").unwrap().is_empty());
    assert_eq!(m.need::<Vec<bool>>("flags").unwrap(), [true, false]);
    assert_eq!(m.get::<u32>("absent").unwrap(), None);

    // Described by its length: what lies behind an array may be the rest of a large file.
    assert_eq!(format!("{:?}", m.need::<Array>("ids").unwrap()), "2 elements of I32");

    let wrong = m.need::<u32>("i32").unwrap_err().to_string();
    assert!(wrong.ends_with("a.gguf: key i32: expected an unsigned 32-bit integer, found i32 -4"), "{wrong}");
    let wrong = m.need::<Vec<u32>>("texts").unwrap_err().to_string();
    assert!(wrong.ends_with("expected an array of one type, found array of 3 string"), "{wrong}");
    let wrong = m.need::<bool>("absent").unwrap_err().to_string();
    assert!(wrong.ends_with("key absent: expected a boolean, found no such key"), "{wrong}");

    // Copied value by value, the file is the same.
    write(&second, |w| m.iter().for_each(|(k, v)| _ = w.pair(k, v)), &[]);
    assert_eq!(std::fs::read(first).unwrap(), std::fs::read(second).unwrap());
}

#[test]
fn tensors_come_back_and_holes_take_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let x: Vec<f32> = (0..3 * 64).map(|i| i as f32 / 8.0).collect();
    let weight = Weight::encode(format::Q8_0, 3, 64, &x).unwrap();
    let mut w = GgufWriter::new();
    w.pair("general.architecture", "x");
    w.tensor("a", format::Q8_0, &[3, 64]).unwrap();
    w.tensor("huge", format::Q4_K, &[256, 7168, 2048]).unwrap();
    w.tensor("vector", format::F32, &[3]).unwrap();
    w.tensor("hole_at_the_end", format::F16, &[1 << 30]).unwrap();
    let mut out = w.create(&path).unwrap();
    assert!(!path.exists());
    out.write(&weight.bytes.as_slice()[..100]).unwrap();
    out.write(&weight.bytes.as_slice()[100..]).unwrap();
    out.hole().unwrap();
    out.write(&[0, 0, 128, 63, 0, 0, 0, 64, 0, 0, 64, 64]).unwrap();
    out.hole().unwrap();
    out.finish().unwrap();

    let a = Archive::open(&path).unwrap();
    assert_eq!(a.names().collect::<Vec<_>>(), ["a", "hole_at_the_end", "huge", "vector"]);
    let t = a.tensor("a").unwrap().unwrap();
    assert_eq!((t.format, &t.shape[..], t.bytes.as_slice()), (format::Q8_0, &[3, 64][..], weight.bytes.as_slice()));
    let t = a.tensor("huge").unwrap().unwrap();
    assert_eq!((&t.shape[..], t.bytes.len()), (&[256, 7168, 2048][..], 256 * 7168 * 2048 / 256 * 144));
    assert!(t.bytes.as_slice()[1_000_000_000..][..1000].iter().all(|b| *b == 0));
    t.bytes.discard();
    let t = a.tensor("vector").unwrap().unwrap();
    assert_eq!(Weight::new(t.format, 1, 3, t.bytes, None).unwrap().decode(), [1.0, 2.0, 3.0]);
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::fs::MetadataExt;
        let on_disk = std::fs::metadata(&path).unwrap().st_blocks() * 512;
        assert!(on_disk < 1 << 20, "4 GB of holes take {on_disk} bytes");
    }
}

#[test]
fn an_abandoned_file_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut w = GgufWriter::new();
    w.tensor("a", format::F32, &[4]).unwrap();
    drop(w.create(&dir.path().join("m.gguf")).unwrap());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let error = GgufWriter::new().tensor("s", format::UE8M0, &[1]).err().unwrap();
    assert!(matches!(error, Error::Faults(_)), "{error}");
}

#[test]
fn parts_are_one_model_whichever_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let name = |no: usize| dir.path().join(format!("m-0000{no}-of-00003.gguf"));
    for no in 0..3u16 {
        write(
            &name(no as usize + 1),
            |w| {
                if no == 0 {
                    w.pair("general.architecture", "x");
                }
                w.pair("split.no", no).pair("split.count", 3u16).pair("split.tensors.count", 3i32);
                w.tensor(&format!("t{no}"), format::F32, &[1]).unwrap();
            },
            &[Some(&[no as u8; 4])],
        );
    }
    for path in [name(1), name(3), dir.path().to_owned()] {
        let a = Archive::open(&path).unwrap();
        assert_eq!(a.metadata().unwrap().need::<&str>("general.architecture").unwrap(), "x");
        assert_eq!(a.names().collect::<Vec<_>>(), ["t0", "t1", "t2"]);
        assert_eq!(a.file_of("t1"), Some(&*name(2)));
        assert_eq!(a.tensor("t2").unwrap().unwrap().bytes.as_slice(), [2; 4]);
    }
}

/// Our reader and the format's own crate find every tensor as it was written.
#[test]
fn safetensors_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let declared: [(&str, _, &[usize]); 4] = [
        ("z", format::F32, &[2, 3]),
        ("layers.10.\u{fc}\"", format::BF16, &[5]),
        ("layers.2", format::F16, &[1, 0, 4]),
        ("a", format::F8_E4M3, &[3, 1, 1, 3]),
    ];
    let content = |name: &str, n: usize| (0..n).map(|i| (i * 7 + name.len()) as u8).collect::<Vec<u8>>();
    let mut w = SafeTensorsWriter::new();
    w.metadata("format", "pt").metadata("step", "12");
    for (name, f, shape) in declared {
        w.tensor(name, f, shape).unwrap();
    }
    let sizes = [("z", 24), ("layers.10.\u{fc}\"", 10), ("layers.2", 0), ("a", 9)];
    let mut asked = Vec::new();
    w.write(&path, |name, out| {
        asked.push(name.to_owned());
        let bytes = content(name, sizes.iter().find(|s| s.0 == name).unwrap().1);
        bytes.chunks(7).try_for_each(|piece| out.write(piece))
    })
    .unwrap();
    assert!(asked.is_sorted());

    let ours = SafeTensors::open(&path).unwrap();
    let file = std::fs::read(&path).unwrap();
    assert_eq!(u64::from_le_bytes(file[..8].try_into().unwrap()) % 8, 0);
    let (_, header) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["step"], "12");
    let oracle = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(oracle.names().len(), 4);
    for ((name, f, shape), (_, n)) in declared.into_iter().zip(sizes) {
        let t = ours.tensor(name).unwrap().unwrap();
        assert_eq!((t.format, &t.shape[..], t.bytes.as_slice()), (f, shape, &content(name, n)[..]), "{name}");
        let t = oracle.tensor(name).unwrap();
        assert_eq!((t.shape(), t.data()), (shape, &content(name, n)[..]), "{name}");
    }
}

/// A write that fails in the middle leaves the old file and nothing else.
#[test]
fn a_failed_write_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let write = |value: u8, fail: bool| {
        let mut w = SafeTensorsWriter::new();
        w.tensor("a", format::F32, &[1])?.tensor("b", format::F32, &[1])?;
        w.write(&path, |name, out| {
            if fail && name == "b" {
                return Err(GgufWriter::new().tensor("s", format::UE8M0, &[1]).err().unwrap());
            }
            out.write(&[value; 4])
        })
    };
    write(1, false).unwrap();
    write(2, true).unwrap_err();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let t = SafeTensors::open(&path).unwrap().tensor("b").unwrap().unwrap();
    assert_eq!(t.bytes.as_slice(), [1; 4]);

    let mut w = SafeTensorsWriter::new();
    for (name, f, shape) in [("q", format::Q4_0, &[32usize][..]), ("deep", format::F32, &[1; 5])] {
        let error = w.tensor(name, f, shape).err().unwrap().to_string();
        assert!(error.contains(name), "{error}");
    }
    assert!(w.tensor("a", format::F32, &[1]).unwrap().tensor("a", format::F32, &[1]).is_err());
}
