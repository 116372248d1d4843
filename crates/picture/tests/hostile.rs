//! Pictures that somebody sends to break something: each gives an error that says why, and costs little memory and time.

use std::io::Cursor;

use fathom_picture::{Error, Limits, Picture, decode, encode_png, read_png_text};
use image::{DynamicImage, ImageFormat, RgbaImage};

fn noise(width: usize, height: usize) -> Picture {
    let mut state = 7u32;
    let rgb = (0..width * height * 3)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    Picture { width, height, rgb }
}

fn dynamic(p: &Picture) -> DynamicImage {
    let buffer = image::RgbImage::from_raw(p.width as u32, p.height as u32, p.rgb.clone()).unwrap();
    DynamicImage::ImageRgb8(buffer)
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let p = dynamic(&noise(61, 47));
    vec![
        ("png", encoded(&p, ImageFormat::Png)),
        ("jpeg", encoded(&p, ImageFormat::Jpeg)),
        ("webp", encoded(&p, ImageFormat::WebP)),
    ]
}

fn error(bytes: &[u8]) -> String {
    decode(bytes, &Limits::default()).unwrap_err().to_string()
}

#[test]
fn the_three_kinds_are_read() {
    let p = noise(61, 47);
    for (kind, bytes) in samples() {
        let read = decode(&bytes, &Limits::default()).unwrap();
        assert_eq!((read.width, read.height), (61, 47), "{kind}");
        assert!(kind == "jpeg" || read == p, "{kind} keeps every pixel");
    }
    // Sixteen bits, grey, palettes and transparency come out as eight-bit colour.
    for image in
        [dynamic(&p).into_rgb16().into(), dynamic(&p).into_luma8().into(), dynamic(&p).into_luma_alpha16().into()]
    {
        let image: DynamicImage = image;
        assert_eq!(decode(&encoded(&image, ImageFormat::Png), &Limits::default()).unwrap().rgb.len(), 61 * 47 * 3);
    }
}

#[test]
fn transparency_shows_the_ground() {
    let image = RgbaImage::from_fn(3, 1, |x, _| image::Rgba([200, 100, 0, [0, 128, 255][x as usize]]));
    let bytes = encoded(&DynamicImage::ImageRgba8(image), ImageFormat::Png);
    let p = decode(&bytes, &Limits { ground: [127; 3], ..Limits::default() }).unwrap();
    assert_eq!([p.pixel(0, 0), p.pixel(1, 0), p.pixel(2, 0)], [[127; 3], [164, 113, 63], [200, 100, 0]]);
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    for (kind, bytes) in samples() {
        for cut in (0..bytes.len()).step_by(bytes.len() / 120 + 1) {
            assert!(decode(&bytes[..cut], &Limits::default()).is_err(), "{kind} cut at {cut}");
        }
    }
}

#[test]
fn flipped_bits_never_panic() {
    let mut state = 99u64;
    for (_, bytes) in samples() {
        for _ in 0..400 {
            let mut broken = bytes.clone();
            for _ in 0..4 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (state >> 33) as usize % broken.len();
                broken[at] ^= 1 << (state >> 29 & 7);
            }
            let small = Limits { pixels: 1 << 20, ..Limits::default() };
            if let Ok(p) = decode(&broken, &small) {
                assert_eq!(p.rgb.len(), p.width * p.height * 3);
            }
        }
    }
}

/// A PNG of nothing but a header and an empty body.
fn header(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = encode_png(&noise(1, 1), &[]).unwrap();
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = crc(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// The checksum of a PNG chunk (PNG specification, annex D).
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, b| {
        (0..8).fold(crc ^ u32::from(*b), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
    })
}

#[test]
fn a_picture_larger_than_allowed_is_refused_before_it_unfolds() {
    for (width, height) in [(60_000, 60_000), (1 << 30, 1), (16_385, 2), (10_000, 7_000)] {
        let said = error(&header(width, height));
        assert!(said.contains(&format!("{width} × {height}")) && said.contains("scale it down"), "{said}");
    }
    // Within the limits but without the pixels that it promises.
    assert!(error(&header(8000, 8000)).contains("PNG is broken"));
    let limits = Limits { bytes: 100, ..Limits::default() };
    assert_eq!(decode(&samples()[0].1, &limits), Err(Error::Bytes { found: samples()[0].1.len() as u64, most: 100 }));
}

#[test]
fn a_picture_without_pixels_is_refused() {
    for (width, height) in [(0, 5), (5, 0), (0, 0)] {
        assert!(decode(&header(width, height), &Limits::default()).is_err());
    }
}

#[test]
fn other_kinds_are_named() {
    for (bytes, name) in [
        (&b"GIF89a\x01\x00\x01\x00"[..], "a GIF"),
        (b"BM6\x00\x00\x00", "a BMP"),
        (b"%PDF-1.7", "a PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
        (b"<?xml version='1.0'?><svg/>", "an XML file"),
        (b"\x00\x00\x00\x20ftypavif", "an AVIF"),
        (b"\x00\x00\x00\x20ftypheic", "a HEIF"),
        (b"", "an empty file"),
        (b"hello", "unknown kind"),
    ] {
        let said = error(bytes);
        assert!(said.contains(name) && said.contains("PNG, JPEG or WebP"), "{said}");
    }
}

#[test]
fn moving_pictures_are_refused() {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 2, 2);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_animated(2, 0).unwrap();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[1; 12]).unwrap();
    writer.write_image_data(&[9; 12]).unwrap();
    writer.finish().unwrap();
    assert_eq!(error(&bytes), "the PNG is animated; expected one still picture");

    // A WebP of two frames, each a whole still picture's data.
    let still = samples()[2].1.clone();
    let frame = &still[12..];
    let mut body = b"WEBPVP8X".to_vec();
    body.extend(10u32.to_le_bytes());
    body.extend([2, 0, 0, 0, 60, 0, 0, 46, 0, 0]);
    body.extend(b"ANIM");
    body.extend(6u32.to_le_bytes());
    body.extend([0; 6]);
    for _ in 0..2 {
        body.extend(b"ANMF");
        body.extend((16 + frame.len() as u32).to_le_bytes());
        body.extend([0, 0, 0, 0, 0, 0, 60, 0, 0, 46, 0, 0, 100, 0, 0, 0]);
        body.extend(frame);
    }
    let mut moving = b"RIFF".to_vec();
    moving.extend((body.len() as u32).to_le_bytes());
    moving.extend(body);
    assert_eq!(error(&moving), "the WebP is animated; expected one still picture");
}

#[test]
fn texts_that_unfold_are_bounded() {
    // A compressed text of 64 MB in a small chunk.
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    encoder.add_ztxt_chunk("prompt".into(), "a".repeat(64 << 20)).unwrap();
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[1, 2, 3]).unwrap();
    writer.finish().unwrap();
    assert!(bytes.len() < 4_000_000);
    assert_eq!(decode(&bytes, &Limits::default()).unwrap().pixel(0, 0), [1, 2, 3]);
    assert!(read_png_text(&bytes).is_ok_and(|texts| texts.is_empty()), "only international text is read");
}
