//! Pictures in text: base64 (RFC 4648, section 4) and `data:` URLs (RFC 2397).

use crate::{Error, Result};

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Bytes as base64, padded.
pub fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let word = three.iter().fold(0, |word, b| word << 8 | u32::from(*b)) << (8 * (3 - three.len()));
        for i in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * i)) as usize & 63] as char;
            text.push(if i <= three.len() { letter } else { '=' });
        }
    }
    text
}

/// The bytes of base64, with or without padding; none if it is no base64.
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for four in text.chunks(4) {
        let mut word = 0u32;
        for letter in four {
            let value = match letter {
                b'A'..=b'Z' => letter - b'A',
                b'a'..=b'z' => letter - b'a' + 26,
                b'0'..=b'9' => letter - b'0' + 52,
                b'+' | b'-' => 62,
                b'/' | b'_' => 63,
                _ => return None,
            };
            word = word << 6 | u32::from(value);
        }
        word <<= 6 * (4 - four.len());
        let count = four.len() * 6 / 8;
        if count == 0 {
            return None;
        }
        bytes.extend(&word.to_be_bytes()[1..=count]);
    }
    Some(bytes)
}

/// A PNG file as a `data:` URL.
pub fn png_data_url(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64(png))
}

/// The bytes of a base64 `data:` URL. What kind of picture they are its content says, not its label.
///
/// # Errors
/// If it is another kind of address: nothing is fetched from anywhere.
pub fn from_data_url(url: &str) -> Result<Vec<u8>> {
    let body = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,"));
    body.and_then(|(_, text)| from_base64(text)).ok_or(Error::Address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_has_the_vectors_of_its_standard() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes()), coded);
            assert_eq!(from_base64(coded).unwrap(), plain.as_bytes());
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(from_base64(&base64(&all)).unwrap(), all);
        for bad in ["Z", "Zg=a", "Zm9v Zm9v", "€", "Zm9vZ"] {
            assert_eq!(from_base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_data_urls_are_read() {
        assert_eq!(from_data_url("data:image/png;base64,Zm9v").unwrap(), b"foo");
        for bad in ["https://example.org/x.png", "file:///etc/passwd", "data:,x", "data:image/png;base64,!", ""] {
            assert_eq!(from_data_url(bad), Err(Error::Address), "{bad}");
        }
    }
}
