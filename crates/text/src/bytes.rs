//! The byte level: GPT-2's alphabet of printable characters for bytes, and decoding of a byte stream to text.
//!
//! Byte-level BPE stores a token as a string in which each character stands for one byte ("Ġ" for a space).
//! [`StreamDecoder`] goes the other way for generated text: a token may hold half a character, so it keeps back
//! the incomplete bytes until the rest arrives, and never shows a replacement character in their place.

/// Character of each byte. Printable bytes of Latin-1 stand for themselves, the others for U+0100, U+0101, ... in order
/// (github.com/openai/gpt-2, src/encoder.py, `bytes_to_unicode`).
const CHAR_OF_BYTE: [char; 256] = {
    let mut table = ['\0'; 256];
    let (mut byte, mut next) = (0, 0x100);
    while byte < 256 {
        table[byte] = if is_printable(byte as u32) {
            byte as u8 as char
        } else {
            next += 1;
            match char::from_u32(next - 1) {
                Some(c) => c,
                None => panic!("0x100..0x144 are characters"),
            }
        };
        byte += 1;
    }
    table
};

const fn is_printable(code: u32) -> bool {
    matches!(code, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The character that stands for `byte`.
pub(crate) fn char_of_byte(byte: u8) -> char {
    CHAR_OF_BYTE[usize::from(byte)]
}

/// Bytes in the alphabet of byte-level vocabularies: " the" is "Ġthe".
pub fn byte_level(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char_of_byte(*b)).collect()
}

/// The byte that `c` stands for, or `None` if it is outside the alphabet.
pub(crate) fn byte_of_char(c: char) -> Option<u8> {
    let code = c as u32;
    if is_printable(code) {
        return Some(code as u8);
    }
    let unprintable = code.checked_sub(0x100)? as usize;
    // The unprintable bytes in order: 0x00..=0x20, 0x7F..=0xA0, 0xAD.
    match unprintable {
        0..=32 => Some(unprintable as u8),
        33..=66 => Some((unprintable - 33) as u8 + 0x7F),
        67 => Some(0xAD),
        _ => None,
    }
}

/// Whether UTF-8 text can contain `byte`.
pub(crate) fn occurs_in_utf8(byte: u8) -> bool {
    !matches!(byte, 0xC0 | 0xC1 | 0xF5..=0xFF)
}

/// Turns the bytes of successive tokens into text, without ever emitting part of a character.
///
/// All emitted text, then [`finish`](Self::finish), equals `String::from_utf8_lossy` of all bytes. Bytes that no
/// continuation can make valid become U+FFFD at once; an incomplete character is held back (at most 3 bytes).
#[derive(Debug, Clone, Default)]
pub struct StreamDecoder {
    held: [u8; 4],
    len: usize,
}

impl StreamDecoder {
    /// Appends to `out` the text that `bytes` completes. Does not allocate beyond the growth of `out`.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut String) {
        while self.len > 0
            && let Some((&byte, tail)) = bytes.split_first()
        {
            self.held[self.len] = byte;
            match std::str::from_utf8(&self.held[..=self.len]) {
                Ok(text) => {
                    out.push_str(text);
                    self.len = 0;
                    bytes = tail;
                }
                Err(error) if error.error_len().is_none() => {
                    self.len += 1;
                    bytes = tail;
                }
                // What was held can never be completed; `byte` may start something new.
                Err(_) => self.finish(out),
            }
        }
        let mut rest = bytes.len();
        for chunk in bytes.utf8_chunks() {
            out.push_str(chunk.valid());
            rest -= chunk.valid().len() + chunk.invalid().len();
            let incomplete =
                rest == 0 && std::str::from_utf8(chunk.invalid()).is_err_and(|error| error.error_len().is_none());
            if incomplete {
                self.len = chunk.invalid().len();
                self.held[..self.len].copy_from_slice(chunk.invalid());
            } else if !chunk.invalid().is_empty() {
                out.push(char::REPLACEMENT_CHARACTER);
            }
        }
    }

    /// Ends the stream: an incomplete character becomes U+FFFD. The decoder is then as new.
    pub fn finish(&mut self, out: &mut String) {
        if self.len > 0 {
            out.push(char::REPLACEMENT_CHARACTER);
        }
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn alphabet_is_a_bijection() {
        for byte in 0..=255 {
            assert_eq!(byte_of_char(char_of_byte(byte)), Some(byte));
        }
        assert_eq!(char_of_byte(b' '), 'Ġ');
        assert_eq!(byte_of_char('\u{144}'), None);
        assert_eq!(byte_of_char('｜'), None);
    }

    #[test]
    fn utf8_uses_243_bytes() {
        assert_eq!((0..=255).filter(|&byte| occurs_in_utf8(byte)).count(), 243);
    }

    proptest! {
        #[test]
        fn any_split_of_any_bytes_equals_lossy_decoding(pieces: Vec<Vec<u8>>) {
            let (mut decoder, mut text) = (StreamDecoder::default(), String::new());
            for piece in &pieces {
                decoder.push(piece, &mut text);
            }
            decoder.finish(&mut text);
            let all = pieces.concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&all));
        }

        #[test]
        fn valid_text_in_single_bytes_never_shows_a_replacement(text: String) {
            let (mut decoder, mut out) = (StreamDecoder::default(), String::new());
            for byte in text.bytes() {
                decoder.push(&[byte], &mut out);
                prop_assert!(text.starts_with(&out));
            }
            prop_assert_eq!(&text, &out);
        }
    }
}
