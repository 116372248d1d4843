//! Conversations on disk: saved whole, replaced atomically, never trusted when read back.
//!
//! A session is a JSON file of messages with a version. The cache is not saved: a resumed conversation is
//! rendered and computed anew, so a file can be old, moved or made by hand and still mean the same.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use fathom_text::{ChatMessage, Role, ToolCall};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Format of the files that this program writes and the only one that it reads.
const VERSION: u32 = 1;
/// Longest file in bytes; a context of 128 K tokens is below 1 MB.
const MAX_BYTES: u64 = 64 << 20;

/// A conversation that can be resumed.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// The model that it was held with, as the user named it.
    pub model: String,
    /// All turns.
    pub messages: Vec<ChatMessage>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    model: String,
    messages: Vec<StoredMessage>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredMessage {
    role: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<StoredCall>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredCall {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    name: String,
    arguments: String,
}

/// Read first, so that another version's file is called that, whatever else it holds.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

const ROLES: [Role; 5] = [Role::System, Role::Developer, Role::User, Role::Assistant, Role::Tool];

impl Session {
    /// Reads a session.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Session`] naming the place that is not as it should be.
    pub fn load(path: &Path) -> Result<Self> {
        let io = |error: std::io::Error| Error::Io { path: path.to_owned(), why: error.to_string() };
        let mut bytes = Vec::new();
        File::open(path).map_err(io)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        Session::parse(&bytes, path)
    }

    /// Reads a session from memory; `path` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Session`].
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let fault = |place: String, expected, found| Error::Session { path: path.to_owned(), place, expected, found };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(fault("size".to_owned(), "at most 64 MiB", "more".to_owned()));
        }
        let json = |e: serde_json::Error| {
            fault(format!("line {}, column {}", e.line(), e.column()), "a session in JSON", e.to_string())
        };
        let Version { version } = serde_json::from_slice(bytes).map_err(json)?;
        if version != VERSION {
            return Err(fault("version".to_owned(), "1", version.to_string()));
        }
        let stored: Stored = serde_json::from_slice(bytes).map_err(json)?;
        let mut messages = Vec::with_capacity(stored.messages.len());
        for (i, message) in stored.messages.into_iter().enumerate() {
            let Some(&role) = ROLES.iter().find(|role| role.as_str() == message.role) else {
                let expected = "system, developer, user, assistant or tool";
                return Err(fault(format!("messages[{i}].role"), expected, message.role));
            };
            let call = |c: StoredCall| ToolCall { id: c.id, name: c.name, arguments: c.arguments };
            messages.push(ChatMessage {
                role,
                content: message.content,
                reasoning: message.reasoning,
                tool_calls: message.tool_calls.into_iter().map(call).collect(),
                tool_call_id: message.tool_call_id,
                name: message.name,
            });
        }
        Ok(Session { model: stored.model, messages })
    }

    /// Writes the session: the file under this name is at every moment either the old one or the new one, whole.
    ///
    /// # Errors
    /// [`Error::Io`]. The old file is then untouched.
    pub fn save(&self, path: &Path) -> Result<()> {
        replace(path, &self.to_json()).map_err(|e| Error::Io { path: path.to_owned(), why: e.to_string() })
    }

    fn to_json(&self) -> Vec<u8> {
        let stored_call =
            |c: &ToolCall| StoredCall { id: c.id.clone(), name: c.name.clone(), arguments: c.arguments.clone() };
        let messages = self.messages.iter().map(|m| StoredMessage {
            role: m.role.as_str().to_owned(),
            content: m.content.clone(),
            reasoning: m.reasoning.clone(),
            tool_calls: m.tool_calls.iter().map(stored_call).collect(),
            tool_call_id: m.tool_call_id.clone(),
            name: m.name.clone(),
        });
        let stored = Stored { version: VERSION, model: self.model.clone(), messages: messages.collect() };
        let mut bytes = serde_json::to_vec_pretty(&stored).expect("invariant: strings and lists are always JSON");
        bytes.push(b'\n');
        bytes
    }
}

/// Writes a file beside `path` and renames it into place.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_string_lossy();
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = dir.join(format!(".{name}.{}.new", std::process::id()));
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        // So that the new name survives a power cut too; not every file system lets a directory be synced.
        let _ = File::open(dir).and_then(|dir| dir.sync_all());
        Ok(())
    };
    let result = write();
    if result.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop, prop_assert, proptest};

    fn session() -> Session {
        let call = ToolCall { id: Some("c1".into()), name: "f".into(), arguments: "{\"a\":  1}".into() };
        let mut asked = ChatMessage::new(Role::Assistant, "");
        (asked.content, asked.reasoning, asked.tool_calls) = (None, Some("hm \u{0}\u{1F40B}".into()), vec![call]);
        let mut answered = ChatMessage::new(Role::Tool, "42");
        (answered.tool_call_id, answered.name) = (Some("c1".into()), Some("f".into()));
        let messages = vec![ChatMessage::new(Role::System, "s"), ChatMessage::new(Role::User, "u"), asked, answered];
        Session { model: "r1:1.5b".into(), messages }
    }

    #[test]
    fn what_was_saved_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        for _ in 0..2 {
            session().save(&path).unwrap();
        }
        assert_eq!(format!("{:?}", Session::load(&path).unwrap()), format!("{:?}", session()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_failed_save_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("x"), "old").unwrap();
        assert!(matches!(session().save(&path), Err(Error::Io { .. })));
        assert_eq!(std::fs::read_to_string(path.join("x")).unwrap(), "old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    proptest! {
        /// A sound file with bytes changed, lost or doubled: a session or an error.
        #[test]
        fn broken_files_never_panic(changes in prop::collection::vec((0usize..2000, any::<u8>(), 0..3u8), 1..8)) {
            let mut bytes = session().to_json();
            for (at, byte, how) in changes {
                let at = at % bytes.len();
                match how {
                    0 => bytes[at] = byte,
                    1 => drop(bytes.drain(at..(at + usize::from(byte)).min(bytes.len() - 1))),
                    _ => bytes.extend_from_within(at..),
                }
                bytes.truncate(100_000);
            }
            match Session::parse(&bytes, Path::new("a.json")) {
                Ok(session) => prop_assert!(Session::parse(&session.to_json(), Path::new("b.json")).is_ok()),
                Err(error) => prop_assert!(matches!(error, Error::Session { .. }), "another error"),
            }
        }
    }

    #[test]
    fn hostile_files_are_errors_that_name_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        let deep = format!("{{\"version\": 1, \"model\": \"\", \"messages\": {}", "[".repeat(100_000));
        for (text, word) in [
            ("", "line 1"),
            ("[]", "line 1"),
            ("{\"version\": 1", "line 1"),
            ("{\"version\": 2, \"anything\": []}", "version"),
            ("{\"version\": -1}", "line 1"),
            ("{\"version\": 1, \"model\": \"m\"}", "messages"),
            ("{\"version\": 1, \"model\": \"m\", \"messages\": [{\"role\": \"root\"}]}", "messages[0].role"),
            ("{\"version\": 1, \"model\": \"m\", \"messages\": [{\"role\": \"user\", \"cmd\": 1}]}", "cmd"),
            (
                "{\"version\": 1, \"model\": \"m\", \"messages\": [{\"role\": \"user\", \"content\": \"\\ud800\"}]}",
                "line",
            ),
            (&deep, "line 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Session::load(&path).unwrap_err();
            assert!(matches!(error, Error::Session { .. }), "{error}");
            assert!(error.to_string().contains(word), "{error} names {word}");
        }
        let huge = File::create(&path).unwrap();
        huge.set_len(MAX_BYTES + 1).unwrap();
        assert!(Session::load(&path).unwrap_err().to_string().contains("64 MiB"));
        assert!(matches!(Session::load(&dir.path().join("none")), Err(Error::Io { .. })));
    }
}
