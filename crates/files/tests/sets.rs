//! Models of several files that do not fit together: split GGUF, safetensors with an index, directories.

use std::fs;
use std::path::Path;

use fathom_core::format;
use fathom_files::{Archive, GgufWriter, Kind, Sidecar};

/// What opening says, with the directory's name taken out, line by line.
fn verdict(dir: &Path, path: &Path) -> Vec<String> {
    let text = Archive::open(path).map_or_else(|e| e.to_string(), |_| "no error".into());
    text.replace(&format!("{}", dir.display()), "DIR").lines().map(str::to_owned).collect()
}

fn part(path: &Path, tensor: &str, pairs: &[(&str, u32)]) {
    let mut w = GgufWriter::new();
    for (key, value) in pairs {
        w.pair(key, *value);
    }
    w.tensor(tensor, format::F32, &[1]).unwrap();
    let mut out = w.create(path).unwrap();
    out.write(&[0; 4]).unwrap();
    out.finish().unwrap();
}

#[test]
fn split_gguf() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("m-00001-of-00002.gguf"), dir.path().join("m-00002-of-00002.gguf"));
    let said = || verdict(dir.path(), &one);
    let good = |no: u32| [("split.no", no), ("split.count", 2), ("split.tensors.count", 2)];
    part(&one, "a", &good(0));
    part(&two, "b", &good(1));
    assert_eq!(said(), ["no error"]);

    part(&two, "a", &good(1));
    assert_eq!(
        said(),
        [
            "DIR/m-00002-of-00002.gguf: tensor a: expected each name once, found it again, first in DIR/m-00001-of-00002.gguf"
        ]
    );
    part(&two, "b", &good(0));
    assert_eq!(said(), ["DIR/m-00002-of-00002.gguf: key split.no: expected part 1 of 2, found part 0 of 2"]);
    part(&two, "b", &[]);
    assert_eq!(said(), ["DIR/m-00002-of-00002.gguf: key split.no: expected part 1 of 2, found no part"]);
    fs::write(&two, b"GGUF").unwrap();
    assert_eq!(
        said(),
        ["DIR/m-00002-of-00002.gguf: at byte 4: expected the version (4 bytes), found 0 bytes to the end"]
    );
    fs::remove_file(&two).unwrap();
    assert_eq!(
        said(),
        ["DIR/m-00002-of-00002.gguf: expected to open it, found No such file or directory (os error 2)"]
    );

    part(&one, "a", &[("split.no", 0), ("split.count", 2), ("split.tensors.count", 3)]);
    part(&two, "b", &good(1));
    assert_eq!(
        said(),
        ["DIR/m-00001-of-00002.gguf: key split.tensors.count: expected the number of tensors, 2, found 3"]
    );
    part(&one, "a", &[("split.no", 2), ("split.count", 2)]);
    assert_eq!(said(), ["DIR/m-00001-of-00002.gguf: key split.no: expected less than split.count = 2, found 2"]);
    part(&one, "a", &[("split.no", 0), ("split.count", 70_000)]);
    assert_eq!(said(), ["DIR/m-00001-of-00002.gguf: key split.count: expected at most 4096, found 70000"]);
    part(&one, "a", &[("split.count", 2)]);
    assert_eq!(
        said(),
        ["DIR/m-00001-of-00002.gguf: key split.no: expected an unsigned 32-bit integer, found no such key"]
    );
    part(&one, "a", &[("split.no", 0), ("split.count", 3)]);
    assert_eq!(
        said(),
        [
            "DIR/m-00001-of-00002.gguf: expected a name that ends in -00001-of-00003.gguf, found \"m-00001-of-00002.gguf\""
        ]
    );
}

fn safetensors(path: &Path, names: &[&str]) {
    let entries: Vec<_> = (names.iter().enumerate())
        .map(|(i, n)| format!(r#""{n}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}"#, i * 4, i * 4 + 4))
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; names.len() * 4]].concat())
        .unwrap();
}

#[test]
fn safetensors_with_an_index() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let said = || verdict(dir, dir);
    let index = |map: &str| {
        fs::write(
            dir.join("model.safetensors.index.json"),
            format!(r#"{{"metadata":{{"total_size":12}},"weight_map":{{{map}}}}}"#),
        )
        .unwrap()
    };
    let (one, two) = (dir.join("model-00001-of-00002.safetensors"), dir.join("model-00002-of-00002.safetensors"));
    let good = r#""a":"model-00001-of-00002.safetensors","b":"model-00001-of-00002.safetensors","c":"model-00002-of-00002.safetensors""#;
    safetensors(&one, &["a", "b"]);
    safetensors(&two, &["c"]);
    index(good);
    assert_eq!(said(), ["DIR/config.json: expected to open it, found No such file or directory (os error 2)"]);
    fs::write(dir.join("config.json"), "[]").unwrap();
    assert_eq!(said(), ["DIR/config.json: expected a JSON object, found another JSON value"]);
    fs::write(dir.join("config.json"), r#"{"model_type":"x"}"#).unwrap();
    assert_eq!(said(), ["no error"]);

    // Both ways at once: in the index and not in its file, in a file and not in the index, a file not named.
    index(&good.replace("\"b\"", "\"d\""));
    safetensors(&dir.join("model-00003.safetensors"), &["e"]);
    assert_eq!(
        said(),
        [
            "DIR/model.safetensors.index.json: expected every model*.safetensors named, found none of \"model-00003.safetensors\"",
            "DIR/model-00001-of-00002.safetensors: tensor d: expected to be here, as the index says, found nothing of that name",
            "DIR/model.safetensors.index.json: tensor b: expected every tensor of its files, found no such name",
        ]
    );
    fs::remove_file(dir.join("model-00003.safetensors")).unwrap();

    index(&format!(r#"{good},"a":"model-00002-of-00002.safetensors""#));
    assert_eq!(
        said(),
        [
            "DIR/model.safetensors.index.json: tensor a: expected each name once, found it again, first in \"model-00001-of-00002.safetensors\"",
            "DIR/model-00002-of-00002.safetensors: tensor a: expected to be here, as the index says, found nothing of that name"
        ]
    );
    for outside in ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "", ".."] {
        index(&format!(r#"{good},"z":"{outside}""#));
        assert_eq!(
            said(),
            [format!(
                "DIR/model.safetensors.index.json: tensor z: expected the name of a file beside the index, found \"{outside}\""
            )]
        );
    }
    index(&good.replace("model-00002", "model-00009"));
    fs::remove_file(&two).unwrap();
    assert_eq!(
        said(),
        ["DIR/model-00009-of-00002.safetensors: expected to open it, found No such file or directory (os error 2)"]
    );
    safetensors(&two, &["a", "c"]);
    index(good);
    assert_eq!(
        said(),
        [
            "DIR/model-00002-of-00002.safetensors: tensor a: expected each name once, found it again, first in DIR/model-00001-of-00002.safetensors"
        ]
    );
    fs::write(dir.join("model.safetensors.index.json"), "{}").unwrap();
    assert_eq!(
        said(),
        [
            "DIR/model.safetensors.index.json: at byte 1: expected an index with a weight_map, found missing field `weight_map`"
        ]
    );
}

#[test]
fn directories_and_single_files() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let said = || verdict(dir, dir);
    assert_eq!(said(), ["DIR: expected config.json with model*.safetensors, or one .gguf file, found neither"]);
    assert_eq!(
        verdict(dir, &dir.join("absent.gguf")),
        ["cannot open DIR/absent.gguf: No such file or directory (os error 2)"]
    );
    fs::create_dir(dir.join("d.gguf")).unwrap();
    assert_eq!(
        verdict(dir, &dir.join("d.gguf")),
        ["DIR/d.gguf: expected config.json with model*.safetensors, or one .gguf file, found neither"]
    );
    fs::remove_dir(dir.join("d.gguf")).unwrap();

    fs::write(dir.join("pytorch_model.bin"), "").unwrap();
    fs::write(dir.join("config.json"), r#"{"model_type":"x"}"#).unwrap();
    assert_eq!(
        said(),
        [
            "DIR: expected safetensors or GGUF files, found DIR/pytorch_model.bin: a pickle, which can run code and is not read here; `fathom convert` makes a GGUF of it"
        ]
    );
    fs::remove_file(dir.join("pytorch_model.bin")).unwrap();

    for path in [dir.to_owned(), dir.join("config.json")] {
        let bare = Archive::open(&path).unwrap();
        assert_eq!((bare.kind(), bare.names().count(), bare.metadata().is_none()), (Kind::Config, 0, true));
        assert_eq!(bare.config().unwrap()["model_type"], "x");
        assert!(bare.sidecar(Sidecar::Tokenizer).unwrap().is_none());
    }
    fs::write(dir.join("config.json"), vec![b' '; (4 << 20) + 1]).unwrap();
    assert_eq!(
        verdict(dir, &dir.join("config.json")),
        ["DIR/config.json: expected at most 4194304 bytes, found 4194305 bytes"]
    );

    part(&dir.join("m.gguf"), "a", &[]);
    assert_eq!(said(), ["no error"]);
    part(&dir.join("n.gguf"), "a", &[]);
    assert_eq!(said(), ["DIR: expected one GGUF model, found DIR/m.gguf and DIR/n.gguf: name one"]);
    safetensors(&dir.join("x.safetensors"), &["a"]);
    assert_eq!(
        verdict(dir, &dir.join("x.safetensors")),
        ["DIR/x.safetensors: expected the directory that holds this file, found one file of it"]
    );
}
