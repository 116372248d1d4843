//! PNG with text beside the pixels (PNG specification, section 11.3.3): international text chunks, so that prompts of every script
//! survive.

use std::io::Cursor;

use crate::{Error, Picture, Result};

/// Bytes of text chunks that are read at most.
const TEXT_LIMIT: usize = 1 << 20;

/// The picture as a PNG file, with `text` as pairs of keyword (1 to 79 Latin letters) and value.
///
/// # Errors
/// If the picture is empty or a keyword is none.
pub fn encode_png(picture: &Picture, text: &[(&str, &str)]) -> Result<Vec<u8>> {
    let (width, height) = (picture.width, picture.height);
    let (Ok(w), Ok(h)) = (u32::try_from(width), u32::try_from(height)) else {
        return Err(Error::Empty { width, height });
    };
    if w == 0 || h == 0 {
        return Err(Error::Empty { width, height });
    }
    let failed = |e: png::EncodingError| Error::Write(e.to_string());
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, w, h);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, value) in text {
        encoder.add_itxt_chunk((*keyword).to_owned(), (*value).to_owned()).map_err(failed)?;
    }
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(&picture.rgb).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes)
}

/// The international text chunks of a PNG file, in order.
///
/// # Errors
/// If it is no PNG, or its texts are broken or too long.
pub fn read_png_text(bytes: &[u8]) -> Result<Vec<(String, String)>> {
    let broken = |why: String| Error::Broken { kind: "PNG", why };
    let decoder = png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: TEXT_LIMIT });
    let reader = decoder.read_info().map_err(|e| broken(e.to_string()))?;
    let texts = reader.info().utf8_text.iter();
    texts.map(|t| Ok((t.keyword.clone(), t.get_text().map_err(|e| broken(e.to_string()))?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_and_words_come_back() {
        let rgb: Vec<u8> = (0..5 * 3 * 3).map(|i| (i * 37 % 256) as u8).collect();
        let picture = Picture { width: 5, height: 3, rgb };
        let bytes = encode_png(&picture, &[("prompt", "ein roter Fuchs, 红狐"), ("seed", "7")]).unwrap();
        assert_eq!(crate::decode(&bytes, &crate::Limits::default()).unwrap(), picture);
        let text = read_png_text(&bytes).unwrap();
        assert_eq!(text[0], ("prompt".into(), "ein roter Fuchs, 红狐".into()));
        assert_eq!(text[1], ("seed".into(), "7".into()));
    }

    #[test]
    fn an_empty_picture_is_refused() {
        let empty = Picture { width: 0, height: 3, rgb: vec![] };
        assert_eq!(encode_png(&empty, &[]), Err(Error::Empty { width: 0, height: 3 }));
    }
}
