//! Finding markers in text that arrives in pieces: what must be held back because a marker may be starting in it.

/// Length in bytes of the longest suffix of `text` that is a proper prefix of `marker`.
pub(crate) fn held_suffix(text: &str, marker: &str) -> usize {
    let most = marker.len().saturating_sub(1).min(text.len());
    (1..=most).rev().find(|&n| text.as_bytes().ends_with(&marker.as_bytes()[..n])).unwrap_or(0)
}

/// The earliest of `markers` in `text`: byte position and index into `markers`.
pub(crate) fn find_first(text: &str, markers: &[&str]) -> Option<(usize, usize)> {
    let hits = markers.iter().enumerate();
    hits.filter_map(|(index, marker)| Some((text.find(marker)?, index))).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_proper_prefix_is_held() {
        assert_eq!(held_suffix("a </th", "</think>"), 4);
        assert_eq!(held_suffix("</think>", "</think>"), 0);
        assert_eq!(held_suffix("aab", "aabaac"), 3);
        assert_eq!(held_suffix("日", "日本"), 3);
        assert_eq!(held_suffix("", "x"), 0);
        assert_eq!(held_suffix("x", ""), 0);
    }

    #[test]
    fn earliest_marker_wins() {
        assert_eq!(find_first("..b.a", &["a", "b"]), Some((2, 1)));
        assert_eq!(find_first("...", &["a", "b"]), None);
    }
}
