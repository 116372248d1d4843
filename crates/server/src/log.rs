//! The log: one JSON object per line. It names requests, models, counts and times, and never what was said.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// Where log lines go.
pub struct Log(Option<Mutex<Box<dyn Write + Send>>>);

impl Log {
    /// No log.
    pub fn off() -> Self {
        Log(None)
    }

    /// Lines into a writer.
    pub fn to(writer: impl Write + Send + 'static) -> Self {
        Log(Some(Mutex::new(Box::new(writer))))
    }

    /// Writes an object, with the time put first.
    pub(crate) fn line(&self, fields: &Value) {
        let Some(writer) = &self.0 else { return };
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let text = fields.to_string();
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        // A log that cannot be written is no reason to stop serving.
        let _ = writeln!(writer, "{{\"time\":{time:.3},{}", &text[1..]);
    }
}
