//! Merge rules from a rank list (`.tiktoken`): tokens in the order in which training made them.
//!
//! Such a list holds no merges, but they follow from it: a token was made from the two parts into which
//! byte-pair encoding with only the earlier tokens cuts it.

use crate::bytes::byte_of_char;
use crate::error::{Result, TextError};
use std::collections::HashMap;

/// The merge rules "left right" of `tokens`, byte-level strings in rank order, for [`VocabLists::merges`](crate::VocabLists::merges).
/// Strings outside the byte alphabet (special tokens in the list) have none.
///
/// # Errors
/// [`TextError::TokenId`] for a token that earlier ones cannot make.
pub fn merges_from_ranks(file: &str, tokens: &[String]) -> Result<Vec<String>> {
    let ranks: HashMap<&str, usize> = tokens.iter().map(String::as_str).zip(0..).collect();
    let mut merges = Vec::with_capacity(tokens.len());
    for (rank, token) in tokens.iter().enumerate() {
        if token.chars().count() < 2 || token.chars().any(|c| byte_of_char(c).is_none()) {
            continue;
        }
        let at = last_cut(token, rank, &ranks).ok_or_else(|| TextError::TokenId {
            file: file.to_owned(),
            id: rank as u32,
            token: token.clone(),
            fault: "cannot be made from two earlier tokens",
        })?;
        merges.push(format!("{} {}", &token[..at], &token[at..]));
    }
    Ok(merges)
}

/// Encodes `token` with the tokens of rank below `limit`; where the two remaining parts meet, if there are two.
fn last_cut(token: &str, limit: usize, ranks: &HashMap<&str, usize>) -> Option<usize> {
    // Starts of the parts, and the end.
    let mut cuts: Vec<usize> = token.char_indices().map(|(at, _)| at).chain([token.len()]).collect();
    while cuts.len() > 3 {
        let pairs = cuts.windows(3).enumerate();
        let (_, at) = pairs
            .filter_map(|(i, w)| {
                let rank = *ranks.get(&token[w[0]..w[2]])?;
                (rank < limit).then_some((rank, i))
            })
            .min()?;
        cuts.remove(at + 1);
    }
    (cuts.len() == 3).then(|| cuts[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_follow_from_ranks() {
        let tokens: Vec<String> = ["a", "b", "c", "ab", "<｜x｜>", "bc", "abc", "abcab"].map(String::from).into();
        // "abc" is "ab c", not "a bc": "ab" has the better rank.
        assert_eq!(merges_from_ranks("t", &tokens).unwrap(), ["a b", "b c", "ab c", "abc ab"]);
    }

    #[test]
    fn a_token_from_nowhere_is_named() {
        let tokens: Vec<String> = ["a", "b", "abb"].map(String::from).into();
        let error = merges_from_ranks("r.tiktoken", &tokens).unwrap_err().to_string();
        assert!(error.contains("r.tiktoken") && error.contains("abb"), "{error}");
    }
}
