//! One file from the hub into a blob: resumed where it stopped, checked, and only then named.
//!
//! Bytes are appended to `CHECKSUM.incomplete` under a lock; a broken connection continues by a
//! range request, a server without ranges starts over. When the size is right the checksum is
//! computed from what the disk holds; if it is wrong, the file is fetched once more from zero (the
//! hub announces one checksum per file, so a bad part cannot be told from the good).

use crate::cache::Repo;
use crate::error::{Error, IoContext, Result};
use crate::http::{Client, Etag, Meta, Trouble, broken};
use crate::pull::{Stage, Watch};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

const CHUNK_BYTES: usize = 256 << 10;

/// A file to fetch.
pub(crate) struct Wanted<'a> {
    pub(crate) url: String,
    pub(crate) file: &'a str,
    pub(crate) meta: &'a Meta,
}

/// Makes sure that the blob of a file is in the cache.
pub(crate) fn fetch(client: &Client, repo: &Repo, wanted: &Wanted<'_>, watch: &mut Watch<'_>) -> Result<()> {
    let etag = &wanted.meta.etag;
    let (blob, unfinished) = (repo.blob(etag), repo.unfinished(etag));
    let _lock = repo.lock(etag, watch)?;
    if fs::metadata(&blob).is_ok_and(|m| m.len() == wanted.meta.size) {
        return watch.at(Stage::Fetching, wanted.meta.size);
    }
    let mut found = String::new();
    for _ in 0..2 {
        let mut best = 0;
        client.retry(watch, |watch| {
            download(client, wanted, &unfinished, watch).map_err(|trouble| {
                let length = fs::metadata(&unfinished).map_or(0, |m| m.len());
                let progressed = length > best;
                best = best.max(length);
                Trouble { progressed, ..trouble }
            })
        })?;
        found = checksum(&unfinished, etag, watch)?;
        if found == etag.as_str() {
            File::open(&unfinished).and_then(|f| f.sync_all()).on("write", &unfinished)?;
            return fs::rename(&unfinished, &blob).on("create", &blob);
        }
        fs::remove_file(&unfinished).on("delete", &unfinished)?;
    }
    let (repo, file, expected) = (repo.name.clone(), wanted.file.into(), etag.as_str().into());
    Err(Error::Checksum { repo, file, expected, found })
}

/// One request that brings the unfinished file to its full size, or as far as it gets.
fn download(
    client: &Client,
    wanted: &Wanted<'_>,
    unfinished: &Path,
    watch: &mut Watch<'_>,
) -> std::result::Result<(), Trouble> {
    let (url, size) = (&wanted.url, wanted.meta.size);
    let io = |result: io::Result<u64>| result.on("write", unfinished);
    let mut file = File::options().create(true).truncate(false).write(true).open(unfinished).on("open", unfinished)?;
    let mut have = io(file.seek(SeekFrom::End(0)))?;
    if have > size {
        have = restart(&mut file, unfinished)?;
    }
    watch.at(Stage::Fetching, have)?;
    if have == size {
        return Ok(());
    }
    let mut reply = client.get(url, have)?;
    let wrong = |what, expected: String, found: String| {
        Trouble::transient(Error::Protocol { url: url.clone(), what, expected, found })
    };
    match reply.status {
        206 => {
            let expected = format!("bytes {have}-{}/{size}", size - 1);
            let found = reply.header("content-range").unwrap_or("none");
            if found != expected {
                let trouble = wrong("Content-Range", expected, found.into());
                restart(&mut file, unfinished)?;
                return Err(trouble);
            }
        }
        416 => {
            restart(&mut file, unfinished)?;
            return Err(wrong("status", "206 for a range of the file".into(), "416".into()));
        }
        // The whole file, asked for or not.
        _ => have = restart(&mut file, unfinished)?,
    }
    if let Some(length) = reply.body.content_length().filter(|&length| length != size - have) {
        return Err(wrong("Content-Length", (size - have).to_string(), length.to_string()));
    }
    let mut body = reply.body.as_reader();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = match body.read(&mut chunk) {
            Ok(0) if have == size => return Ok(()),
            Ok(0) => {
                return Err(broken(url, io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended early")));
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(broken(url, error)),
        };
        if count as u64 > size - have {
            restart(&mut file, unfinished)?;
            return Err(wrong("body", format!("{size} bytes"), "more".into()));
        }
        file.write_all(&chunk[..count]).on("write", unfinished)?;
        have += count as u64;
        watch.received(count as u64);
        watch.at(Stage::Fetching, have)?;
    }
}

/// Empties the unfinished file; returns its new length, 0.
fn restart(file: &mut File, path: &Path) -> Result<u64> {
    file.set_len(0).on("write", path)?;
    file.rewind().on("write", path)?;
    Ok(0)
}

/// The checksum of a file's content, of the kind that the etag is.
fn checksum(path: &Path, etag: &Etag, watch: &mut Watch<'_>) -> Result<String> {
    match etag {
        Etag::Sha256(_) => hash::<Sha256>(path, watch, |_| String::new()),
        Etag::GitSha1(_) => hash::<Sha1>(path, watch, |size| format!("blob {size}\0")),
    }
}

fn hash<D: Digest>(path: &Path, watch: &mut Watch<'_>, prefix: impl Fn(u64) -> String) -> Result<String> {
    let mut file = File::open(path).on("read", path)?;
    let size = file.metadata().on("read", path)?.len();
    let mut digest = D::new();
    digest.update(prefix(size));
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut read = 0;
    loop {
        watch.at(Stage::Checking, read)?;
        let count = file.read(&mut chunk).on("read", path)?;
        if count == 0 {
            return Ok(digest.finalize().iter().map(|b| format!("{b:02x}")).collect());
        }
        digest.update(&chunk[..count]);
        read += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::ControlFlow;

    #[test]
    fn checksums_are_the_hubs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "hello\n").unwrap();
        let mut ignore = |_: &crate::Progress<'_>| ControlFlow::Continue(());
        let mut watch = Watch::new(&mut ignore);
        // `git hash-object` and `sha256sum` of the same file.
        let git = checksum(&path, &Etag::GitSha1(String::new()), &mut watch).unwrap();
        assert_eq!(git, "ce013625030ba8dba906f756967f9e9ca394464a");
        let sha256 = checksum(&path, &Etag::Sha256(String::new()), &mut watch).unwrap();
        assert_eq!(sha256, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
    }
}
