//! Who may see whom: the floors of the house, read from `cargo metadata`.
//!
//! A crate sees only crates on lower floors, also in its tests, so crates on one floor never see
//! each other. `testkit` stands beside the floors and is a dev-dependency only; `xtask` sees none.

use super::{Fault, House};
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The floor of each crate, by directory name.
const FLOORS: &[(&str, u8)] = &[
    ("core", 0),
    ("files", 1),
    ("text", 1),
    ("hub", 1),
    ("picture", 1),
    ("cpu", 1),
    ("cuda", 1),
    ("model", 2),
    ("tasks", 2),
    ("engine", 3),
    ("server", 4),
    ("train", 4),
    ("cli", 5),
];

/// Crates that stand beside the floors.
const BESIDE: &[&str] = &["testkit", "xtask"];

/// Crates that no floor below 4 may reach, even through others.
const RUNTIMES: &[&str] = &["tokio", "async-std", "smol", "hyper", "axum", "reqwest", "actix-web"];

/// Crates that no floor below 4 may ask for itself (a tokenizer library may bring rayon along, unused).
const OWN_RUNTIMES: &[&str] = &["rayon", "crossbeam", "threadpool"];

/// HTTP clients, which only `hub` may have below floor 4.
const HTTP: &[&str] = &["ureq", "curl", "attohttpc", "minreq"];

/// A workspace member and what it depends on.
#[derive(Default, Clone, Debug)]
pub(crate) struct Package {
    /// Directory name below `crates/`: `core` for `fathom-core`.
    pub(super) name: String,
    /// Direct dependencies (also for builds); ours by directory name.
    pub(super) deps: BTreeSet<String>,
    /// Direct dev-dependencies.
    pub(super) dev_deps: BTreeSet<String>,
    /// All crates reached by normal and build dependencies.
    pub(super) reach: BTreeSet<String>,
}

/// The floor of a crate, `None` for those beside and for foreign crates.
pub(super) fn floor(name: &str) -> Option<u8> {
    FLOORS.iter().find(|(n, _)| *n == name).map(|f| f.1)
}

/// Law: dependencies go downward.
pub(super) fn floors(house: &House) -> Vec<Fault> {
    let ours = |n: &&String| floor(n).is_some() || BESIDE.contains(&n.as_str());
    let mut faults = vec![];
    for p in &house.packages {
        let own = floor(&p.name);
        if own.is_none() && !BESIDE.contains(&p.name.as_str()) {
            faults.push(Fault::on(&p.name, "has no floor: name it in FLOORS and in ARCHITECTURE.md"));
        }
        for dep in p.deps.iter().filter(ours) {
            let down = match (own, floor(dep)) {
                (Some(own), Some(below)) => below < own,
                (None, Some(_)) => p.name == "testkit",
                (_, None) => false,
            };
            if !down {
                faults.push(Fault::on(&p.name, format!("depends on {dep}, which is not on a lower floor")));
            }
        }
        for dep in p.dev_deps.iter().filter(ours) {
            let down = match (own, floor(dep)) {
                (Some(own), Some(below)) => below < own,
                _ => dep == "testkit" && p.name != "xtask",
            };
            if !down {
                faults.push(Fault::on(&p.name, format!("tests with {dep}, which is not on a lower floor")));
            }
        }
    }
    faults
}

/// Law: no runtimes below floor 4.
pub(super) fn runtimes(house: &House) -> Vec<Fault> {
    let mut faults = vec![];
    for p in house.packages.iter().filter(|p| floor(&p.name).is_some_and(|f| f < 4)) {
        let reached = p.reach.iter().filter(|d| RUNTIMES.contains(&d.as_str()));
        let direct = p.deps.iter().filter(|d| OWN_RUNTIMES.contains(&d.as_str()));
        let http = p.reach.iter().filter(|d| HTTP.contains(&d.as_str()) && p.name != "hub");
        for dep in reached.chain(direct).chain(http) {
            faults.push(Fault::on(&p.name, format!("reaches {dep}")));
        }
    }
    faults
}

/// The workspace members as `cargo metadata` tells them.
pub(super) fn packages(root: &Path) -> Result<Vec<Package>> {
    let text = crate::output(root, &crate::cargo(), &["metadata", "--format-version", "1"])?;
    let meta: Value = serde_json::from_str(&text).context("cargo metadata")?;
    let str_of = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();

    let mut names = BTreeMap::new();
    for p in list(&meta["packages"]) {
        names.insert(str_of(&p["id"]), str_of(&p["name"]));
    }
    // What each package id pulls into a build of it: (id, only for tests).
    let mut edges: BTreeMap<String, Vec<(String, bool)>> = BTreeMap::new();
    for node in list(&meta["resolve"]["nodes"]) {
        let deps = list(&node["deps"]).into_iter().map(|d| {
            let test_only = list(&d["dep_kinds"]).iter().all(|k| k["kind"] == "dev");
            (str_of(&d["pkg"]), test_only)
        });
        edges.insert(str_of(&node["id"]), deps.collect());
    }
    let short = |id: &String| {
        let name = names.get(id).map_or("", String::as_str);
        name.strip_prefix("fathom-").unwrap_or(name).to_owned()
    };
    let none = vec![];
    let package = |id: &String| {
        let direct = edges.get(id).unwrap_or(&none);
        let kind = |test: bool| direct.iter().filter(move |d| d.1 == test).map(|d| short(&d.0)).collect();
        let mut seen = BTreeSet::new();
        let mut todo = vec![id];
        while let Some(next) = todo.pop() {
            for (dep, test_only) in edges.get(next).unwrap_or(&none) {
                if !test_only && seen.insert(dep) {
                    todo.push(dep);
                }
            }
        }
        Package {
            name: short(id),
            deps: kind(false),
            dev_deps: kind(true),
            reach: seen.into_iter().map(short).collect(),
        }
    };
    let members: Vec<String> = list(&meta["workspace_members"]).iter().map(str_of).collect();
    Ok(members.iter().map(package).collect())
}
