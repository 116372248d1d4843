//! Reading a picture that somebody sent.
//!
//! Size is checked against the limits before any pixel is decoded, and the decoders' own memory is bounded; so a small file that
//! unfolds into a huge picture costs nothing. Transparency is laid on the ground that the caller names; moving pictures are refused
//! rather than cut to their first frame.

use std::io::Cursor;

use image::{AnimationDecoder as _, ImageDecoder as _, ImageFormat, ImageReader};

use crate::{Error, Picture, Result};

/// What is read at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file.
    pub bytes: usize,
    /// Pixels of the picture.
    pub pixels: u64,
    /// Pixels of a side.
    pub side: u32,
    /// Colour behind transparent pixels.
    pub ground: [u8; 3],
}

impl Default for Limits {
    fn default() -> Self {
        Limits { bytes: 32 << 20, pixels: 64 << 20, side: 16384, ground: [255; 3] }
    }
}

/// What other kinds of files begin with.
const OTHERS: &[(&[u8], &str)] = &[
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"%PDF", "a PDF"),
    (b"<svg", "an SVG"),
    (b"<?xml", "an XML file"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"qoif", "a QOI"),
    (b"\x76\x2f\x31\x01", "an OpenEXR"),
];

/// Reads a PNG, JPEG or WebP. The kind is told by the content.
///
/// # Errors
/// If it is of another kind, broken, moving, or beyond a limit.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture> {
    if bytes.len() > limits.bytes {
        return Err(Error::Bytes { found: bytes.len() as u64, most: limits.bytes as u64 });
    }
    let format = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => format,
        _ => return Err(Error::Kind { found: name_of(bytes) }),
    };
    let kind = match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        _ => "WebP",
    };
    let broken = |e: image::ImageError| Error::Broken { kind, why: e.to_string() };
    let too_large = |(width, height)| Error::Pixels { width, height, most: limits.pixels, most_side: limits.side };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.no_limits();
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > limits.pixels || width.max(height) > limits.side {
        return Err(too_large((width, height)));
    }
    if width == 0 || height == 0 {
        return Err(Error::Empty { width: width as usize, height: height as usize });
    }
    if moves(bytes, format).map_err(broken)? {
        return Err(Error::Animated { kind });
    }
    if format == ImageFormat::Jpeg && !ends(bytes) {
        return Err(Error::Broken { kind, why: "the file ends before the picture does".to_owned() });
    }
    // Sixteen bits and four channels of every pixel, and as much again to work in.
    let mut own = image::Limits::default();
    own.max_alloc = Some(limits.pixels.saturating_mul(16).saturating_add(16 << 20));
    decoder.set_limits(own).map_err(broken)?;
    let turned = decoder.orientation().map_err(broken)?;
    let mut picture = image::DynamicImage::from_decoder(decoder).map_err(broken)?;
    picture.apply_orientation(turned);
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let rgb = if picture.color().has_alpha() {
        let ground = limits.ground;
        picture.into_rgba8().pixels().flat_map(|p| over(p.0, ground)).collect()
    } else {
        picture.into_rgb8().into_raw()
    };
    Ok(Picture { width, height, rgb })
}

/// Whether a JPEG's last scan is followed by the mark of its end: the decoder fills up with grey what is missing.
fn ends(bytes: &[u8]) -> bool {
    let last = |mark: u8| bytes.windows(2).rposition(|w| w == [0xff, mark]);
    last(0xd9).is_some_and(|end| last(0xda).is_some_and(|scan| scan < end))
}

/// A pixel over an opaque ground.
fn over([r, g, b, a]: [u8; 4], ground: [u8; 3]) -> [u8; 3] {
    let a = u32::from(a);
    let mix = |v: u8, g: u8| ((u32::from(v) * a + u32::from(g) * (255 - a) + 127) / 255) as u8;
    [mix(r, ground[0]), mix(g, ground[1]), mix(b, ground[2])]
}

fn moves(bytes: &[u8], format: ImageFormat) -> image::ImageResult<bool> {
    match format {
        ImageFormat::Png => image::codecs::png::PngDecoder::new(Cursor::new(bytes))?.is_apng(),
        ImageFormat::WebP => {
            let decoder = image::codecs::webp::WebPDecoder::new(Cursor::new(bytes))?;
            Ok(decoder.has_animation() && decoder.into_frames().take(2).count() > 1)
        }
        _ => Ok(false),
    }
}

fn name_of(bytes: &[u8]) -> &'static str {
    match OTHERS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        Some((_, name)) => name,
        None if bytes.get(4..12).is_some_and(|b| &b[..4] == b"ftyp" && b[4..].starts_with(b"avif")) => "an AVIF",
        None if bytes.get(4..8) == Some(b"ftyp") => "a HEIF or MP4 file",
        None if bytes.is_empty() => "an empty file",
        None => "a file of unknown kind",
    }
}
