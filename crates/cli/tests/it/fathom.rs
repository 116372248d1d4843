//! Running the binary.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// What a run left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// That it succeeded; gives its output.
    #[track_caller]
    pub(crate) fn ok(&self) -> &str {
        assert_eq!(self.code, 0, "{self:#?}");
        &self.out
    }

    /// That it succeeded with JSON; gives that.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(self.ok()).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }

    /// That it failed with this status, said all of this on standard error, and gave no answer.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, said: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        for words in said {
            assert!(self.err.contains(words), "not said: {words}: {self:#?}");
        }
        assert!(!self.err.contains("panicked"), "{self:#?}");
        assert_eq!(self.out, "", "a failure answers nothing");
    }
}

/// Runs `fathom` with these arguments and this standard input, with an empty home.
pub(crate) fn fathom_in(home: &Path, args: &[&str], stdin: &[u8]) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fathom"))
        .args(args)
        .env_clear()
        .env("HOME", home)
        .env("HF_HOME", home.join("hf"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // It may well end without reading what it was given.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin);
    let output = child.wait_with_output().expect("it ends");
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).expect("standard output is UTF-8"),
        err: String::from_utf8(output.stderr).expect("standard error is UTF-8"),
    }
}

/// Runs `fathom` with these arguments and no input.
pub(crate) fn fathom(args: &[&str]) -> Ran {
    fathom_in(tempfile::tempdir().unwrap().path(), args, b"")
}

/// A file of the repository's golden data.
pub(crate) fn testdata(path: &str) -> String {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata"));
    let path = root.join(path);
    assert!(path.exists(), "{} is part of the repository", path.display());
    path.display().to_string()
}
