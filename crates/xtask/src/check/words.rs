//! What may be said where: environment, printing, and the names that belong in one place only.
//!
//! All of it is product code with comments stripped; string literals count, because a name in a
//! string steers the program as much as one in an identifier does.

use super::floors::floor;
use super::{Fault, House};
use crate::source::{Line, Source};
use regex::Regex;
use std::collections::BTreeSet;

/// Families of models (and their makers, where a family bears the name).
const FAMILIES: &str = "(?i)qwen|llama|deepseek|janus|mistral|mixtral|gemma|kimi|chatglm";

/// Uses of a family's name that mean something else: a RoPE scaling, and the tool whose files we read.
const NOT_FAMILIES: &str = r"(?i)llama3|llama\.cpp|llama_cpp";

/// Instruction sets. A bare `sse` is one too, but above floor 3 it means server-sent events.
const ISAS: &str = r"(?i)avx|vnni|neon|sse[234]|(?-i)\bsse\b";

/// API dialects, named after whoever defined them.
const DIALECTS: &str = "(?i)openai|anthropic|ollama";

/// Law: no environment variables below floor 4.
pub(super) fn environment(house: &House) -> Vec<Fault> {
    let uses = regex(r"\benv::(\{[^}]*)?\b(vars?|vars?_os|set_var|remove_var|args)\b");
    let scope = |s: &Source| s.krate() != "hub" && below(s, 4);
    find(house, scope, |line| Some(uses.find(&line.bare)?.as_str().to_owned()))
}

/// Law: nothing below floor 4 prints.
pub(super) fn printing(house: &House) -> Vec<Fault> {
    let uses = regex(r"\b(e?println?|dbg)!|\bio::(stdout|stderr)\b");
    find(house, |s| below(s, 4), |line| Some(uses.find(&line.bare)?.as_str().to_owned()))
}

/// Law: family names in `families/` only.
pub(super) fn families(house: &House) -> Vec<Fault> {
    let (names, exempt) = (regex(FAMILIES), regex(NOT_FAMILIES));
    let scope =
        |s: &Source| ["core", "files", "cpu", "engine", "model"].contains(&s.krate()) && !s.path.contains("/families/");
    find(house, scope, |line| {
        let code = exempt.replace_all(&line.code, "");
        Some(names.find(&code)?.as_str().to_owned())
    })
}

/// Law: instruction sets are `cpu`'s business; `cli` has one option that caps them.
pub(super) fn isas(house: &House) -> Vec<Fault> {
    let names = regex(ISAS);
    let name = |source: &Source, line: &Line| {
        let found = names.find(&line.code)?.as_str().to_owned();
        (found != "sse" || below(source, 4)).then_some(found)
    };
    let foreign = |s: &&Source| on_a_floor(s) && !["cpu", "cuda"].contains(&s.krate());
    let mut faults = vec![];
    let mut cli_files = BTreeSet::new();
    for source in house.sources.iter().filter(foreign) {
        for (number, line) in source.product_lines() {
            let Some(found) = name(source, line) else { continue };
            if source.krate() == "cli" {
                cli_files.insert(&source.path);
                if cli_files.len() == 1 {
                    continue;
                }
            }
            faults.push(Fault::at(source, number, format!("names {found}")));
        }
    }
    faults
}

/// Law: dialect names in `server/src/dialects` only.
pub(super) fn dialects(house: &House) -> Vec<Fault> {
    let names = regex(DIALECTS);
    // The command line tells people which clients it serves.
    let told =
        |s: &Source| ["crates/server/src/dialects", "crates/cli/src/commands"].iter().any(|p| s.path.starts_with(p));
    find(house, |s| on_a_floor(s) && !told(s), |line| Some(names.find(&line.code)?.as_str().to_owned()))
}

/// Every product line of the sources in `scope` in which `what` finds a word.
fn find(house: &House, scope: impl Fn(&Source) -> bool, what: impl Fn(&Line) -> Option<String>) -> Vec<Fault> {
    let mut faults = vec![];
    for source in house.sources.iter().filter(|s| scope(s)) {
        for (number, line) in source.product_lines() {
            if let Some(found) = what(line) {
                faults.push(Fault::at(source, number, format!("says {found}")));
            }
        }
    }
    faults
}

fn on_a_floor(source: &Source) -> bool {
    floor(source.krate()).is_some()
}

fn below(source: &Source, limit: u8) -> bool {
    floor(source.krate()).is_some_and(|f| f < limit)
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is a constant")
}
