//! Stop strings: generation ends when one of them is complete, and no part of it is ever shown.
//!
//! Text arrives in pieces, so whatever may be the beginning of a stop string is held back until it is decided.

use crate::hold::held_suffix;

/// Watches a stream of text for stop strings.
///
/// The stop string that is complete first wins (of several complete at the same place, the longest), so the
/// result does not depend on how the text is cut into pieces.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// A matcher for `stops`; empty strings are dropped, since they would match before any text.
    pub fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, held: String::new() }
    }

    /// Takes a piece and appends to `out` what is safe to show. Returns the index of a stop string in the list kept
    /// (see [`stops`](Self::stops)) as soon as one is complete; text from its first byte on is dropped.
    pub fn push(&mut self, piece: &str, out: &mut String) -> Option<usize> {
        self.held.push_str(piece);
        let hits = self.stops.iter().enumerate();
        let first = hits
            .filter_map(|(index, stop)| {
                let start = self.held.find(stop.as_str())?;
                Some((start + stop.len(), start, index))
            })
            .min();
        if let Some((_, start, index)) = first {
            out.push_str(&self.held[..start]);
            self.held.clear();
            return Some(index);
        }
        let keep = self.stops.iter().map(|stop| held_suffix(&self.held, stop)).max();
        let safe = self.held.len() - keep.unwrap_or(0);
        out.push_str(&self.held[..safe]);
        self.held.drain(..safe);
        None
    }

    /// Ends the stream: what was held back turned out to be ordinary text.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// The stop strings watched for.
    pub fn stops(&self) -> &[String] {
        &self.stops
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops.iter().map(|s| s.to_string()).collect());
        let mut out = String::new();
        for piece in pieces {
            if let Some(index) = matcher.push(piece, &mut out) {
                return (out, Some(index));
            }
        }
        matcher.finish(&mut out);
        (out, None)
    }

    #[test]
    fn stops_across_pieces_and_shows_nothing_of_them() {
        assert_eq!(run(&["\nUser:"], &["hi", "\nUs", "er", ": no"]), ("hi".into(), Some(0)));
        assert_eq!(run(&["\nUser:"], &["hi\nUs", "ual"]), ("hi\nUsual".into(), None));
        assert_eq!(run(&["END"], &["an EN"]), ("an EN".into(), None));
        assert_eq!(run(&["終わり"], &["もう終", "わり。"]), ("もう".into(), Some(0)));
        assert_eq!(run(&["", "x"], &["axb"]), ("a".into(), Some(0)));
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), None));
    }

    #[test]
    fn the_stop_completed_first_wins_and_then_the_longest() {
        assert_eq!(run(&["abcd", "bc"], &["xabcd"]), ("xa".into(), Some(1)));
        assert_eq!(run(&["bc", "abc"], &["xabc"]), ("x".into(), Some(1)));
    }

    proptest! {
        #[test]
        fn cutting_does_not_matter(
            stops in proptest::collection::vec("[ab]{1,3}", 0..3),
            text in "[abc]{0,12}",
            cuts in proptest::collection::vec(0usize..12, 0..4),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&c| c < text.len()).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            prop_assert_eq!(run(&stops, &pieces), run(&stops, &[&text]));
        }
    }
}
