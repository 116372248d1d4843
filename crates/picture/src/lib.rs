//! Floor 1: pictures as files and as pixels.
//!
//! [`decode()`] reads PNG, JPEG and WebP within limits on bytes and pixels; [`resize()`] does what Pillow does, to the bit, because models
//! were trained on its output; [`encode_png`] writes a PNG with text beside the pixels.
//!
//! It must not know: models, tensors, terminals, HTTP. It never panics on anything from outside.

#![forbid(unsafe_code)]

mod data_url;
mod decode;
mod error;
mod png_file;
mod resize;

pub use data_url::{base64, from_base64, from_data_url, png_data_url};
pub use decode::{Limits, decode};
pub use error::{Error, Result};
pub use png_file::{encode_png, read_png_text};
pub use resize::{Filter, resize};

/// A picture in 8-bit RGB, row after row from the top.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// A picture of one colour.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Self {
        Picture { width, height, rgb: colour.repeat(width * height) }
    }

    /// The colour of a pixel.
    ///
    /// # Panics
    /// If the pixel lies outside.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        assert!(x < self.width && y < self.height, "invariant: a pixel lies in its picture");
        let at = (y * self.width + x) * 3;
        [self.rgb[at], self.rgb[at + 1], self.rgb[at + 2]]
    }

    /// The smallest square that holds the picture, which lies in its middle (half a pixel up or left where it must), on a ground
    /// of `colour`.
    pub fn square(&self, colour: [u8; 3]) -> Picture {
        let side = self.width.max(self.height);
        let (left, top) = ((side - self.width) / 2, (side - self.height) / 2);
        let mut all = Picture::filled(side, side, colour);
        let rows = all.rgb.chunks_exact_mut(side * 3).skip(top);
        for (to, from) in rows.zip(self.rgb.chunks_exact(self.width * 3)) {
            to[left * 3..(left + self.width) * 3].copy_from_slice(from);
        }
        all
    }
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({} × {})", self.width, self.height)
    }
}
