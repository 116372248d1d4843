//! `fathom draw`: a picture in a file, and what is said about it.

use std::path::Path;

use fathom_picture::{Limits, Picture, decode, read_png_text};

use super::fathom::{Ran, fathom, testdata};

fn draw(prompt: &str, args: &[&str]) -> Ran {
    let model = testdata("models/janus");
    fathom(&[&["draw", prompt, "-m", &model], args].concat())
}

fn read(path: &Path) -> (Picture, Vec<(String, String)>) {
    let bytes = std::fs::read(path).unwrap();
    (decode(&bytes, &Limits::default()).unwrap(), read_png_text(&bytes).unwrap())
}

#[test]
fn a_seed_repeats_a_picture_and_the_file_says_how() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let to = |name: &str, more: &[&str]| {
        let path = file(name).display().to_string();
        let ran = draw("a red fox", &[&["-o", &path, "--seed", "9"], more].concat());
        assert_eq!(ran.ok().lines().next(), Some(&*path));
        ran
    };
    let ran = to("a.png", &[]);
    assert!(ran.err.contains("seed 9") && ran.err.contains("36 steps"), "{ran:#?}");
    to("b.png", &[]);
    let ((a, text), (b, _)) = (read(&file("a.png")), read(&file("b.png")));
    assert_eq!((a.width, a.height), (24, 24));
    assert_eq!(a, b);
    for (keyword, value) in [("prompt", "a red fox"), ("seed", "9"), ("size", "24 × 24, as drawn")] {
        assert!(text.contains(&(keyword.into(), value.into())), "{text:?}");
    }
    assert!(text.iter().any(|(k, v)| k == "settings" && v.contains("guidance 5, temperature 1")), "{text:?}");

    to("c.png", &["--size", "48"]);
    let (c, text) = read(&file("c.png"));
    assert_eq!((c.width, c.height), (48, 48));
    assert!(text.iter().any(|(k, v)| k == "size" && v == "48 × 48, resampled (Lanczos) from 24 × 24"), "{text:?}");
    assert_eq!(read_pixel(&c, &a), 0, "what was drawn is the same");
}

/// How far the enlarged picture's overall colour lies from the drawn one's, in whole steps of eight.
fn read_pixel(large: &Picture, small: &Picture) -> u32 {
    let mean = |p: &Picture| p.rgb.iter().map(|v| u32::from(*v)).sum::<u32>() / p.rgb.len() as u32;
    mean(large).abs_diff(mean(small)) / 8
}

#[test]
fn several_pictures_are_several_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fox.png");
    let ran = draw("a red fox", &["-n", "3", "-o", path.to_str().unwrap(), "--seed", "9", "--show", "blocks"]);
    let names: Vec<&str> = ran.ok().lines().filter(|l| l.ends_with(".png")).collect();
    assert_eq!(names.len(), 3);
    assert!(ran.out.contains("▀"), "shown as asked");
    let pictures: Vec<Picture> = (1..=3).map(|i| read(&dir.path().join(format!("fox-{i}.png"))).0).collect();
    assert!(pictures[0] != pictures[1] && pictures[1] != pictures[2]);
    let one = dir.path().join("one.png");
    draw("a red fox", &["-o", one.to_str().unwrap(), "--seed", "9"]).ok();
    assert_eq!(read(&one).0, pictures[0], "the first of three is the one of one");
}

#[test]
fn what_cannot_be_drawn_is_said() {
    let text_only = testdata("models/qwen2");
    fathom(&["draw", "a fox", "-m", &text_only]).fails(1, &["does not draw"]);
    draw("a fox", &["--guidance", "-1"]).fails(1, &["guidance is -1"]);
    draw("a fox", &["--temperature", "nan"]).fails(1, &["temperature"]);
    draw("a fox", &["-n", "0"]).fails(2, &["0 is not in 1..=64"]);
    draw("a fox", &["-o", "/nowhere/at/all.png"]).fails(1, &["cannot write /nowhere/at/all.png"]);
    draw("a fox", &["--memory", "10K"]).fails(1, &["of cache", "--memory"]);
}
