//! Between pictures and the numbers that models read and write.
//!
//! As DeepSeek's code does it (`image_processing_vlm.py`): the longer side is scaled to the model's, the other one cut down to a whole
//! number, and the rest of the square filled up. Transformers rounds that number instead.

use fathom_picture::{Filter, Picture, resize};

use crate::picture::{PictureSpec, PixelSpec};

/// The picture scaled and laid on a square, as the model sees it.
pub fn prepare(picture: &Picture, spec: &PictureSpec) -> Picture {
    let longest = picture.width.max(picture.height) as f64;
    let scaled = |side: usize| ((side as f64 / longest * spec.side as f64) as usize).max(spec.pixels.least);
    let (width, height) = (scaled(picture.width), scaled(picture.height));
    resize(picture, width, height, Filter::Bicubic).square(spec.pixels.background)
}

/// The numbers of a picture, `[height, width, 3]`.
pub fn values(picture: &Picture, spec: &PixelSpec) -> Vec<f32> {
    let number = |(i, v): (usize, &u8)| {
        let v = f32::from(*v) / 255.0;
        if spec.normalise { (v - spec.mean[i % 3]) / spec.std[i % 3] } else { v }
    };
    picture.rgb.iter().enumerate().map(number).collect()
}

/// The picture of numbers `[height, width, 3]` from −1 to 1; what lies beyond is cut off.
///
/// # Panics
/// If there are not as many numbers.
pub fn picture(values: &[f32], width: usize, height: usize) -> Picture {
    assert_eq!(values.len(), width * height * 3, "invariant: a picture has three numbers a pixel");
    let byte = |v: &f32| ((v + 1.0) / 2.0 * 255.0).clamp(0.0, 255.0) as u8;
    Picture { width, height, rgb: values.iter().map(byte).collect() }
}
