//! Energy: what the machine's own counters say, or an estimate that says so, or nothing. Never an invented figure.
//!
//! Linux exposes running energy counters of the processor packages under `/sys/class/powercap` (`energy_uj`, microjoules,
//! wrapping at `max_energy_range_uj`). They are readable by root only (CVE-2020-8694) and missing in most virtual
//! machines. The engine reads the meter once a step and shares a step's energy among its sequences by rows.

use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where a figure comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Counters of the processor packages: gross, all processes, without the rest of the machine.
    PackageCounter,
    /// Declared power × time: an estimate.
    DeclaredPower,
}

impl Source {
    /// Whether the figure is measured.
    pub fn measured(self) -> bool {
        self == Source::PackageCounter
    }
}

/// An amount of energy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Energy {
    /// Joules.
    pub joules: f64,
    /// Where the figure comes from.
    pub source: Source,
}

#[derive(Debug)]
struct Counter {
    file: PathBuf,
    range_uj: u64,
    last_uj: u64,
}

/// Tells how much energy went by since it was last asked.
#[derive(Debug)]
pub struct Meter(Kind);

#[derive(Debug)]
enum Kind {
    Counters(Vec<Counter>),
    Declared { watts: f64, last: Instant },
    Nothing,
}

fn read_number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

impl Meter {
    /// The best meter of this machine: its counters if readable, else the declared power if given, else none.
    pub fn detect(declared_watts: Option<f64>) -> Self {
        match Meter::counters(Path::new("/sys/class/powercap")) {
            Some(meter) => meter,
            None => match declared_watts {
                Some(watts) => Meter(Kind::Declared { watts, last: Instant::now() }),
                None => Meter::none(),
            },
        }
    }

    /// Measures nothing.
    pub fn none() -> Self {
        Meter(Kind::Nothing)
    }

    /// The package counters below `root`, if there are any and all can be read: half the packages would be a wrong figure.
    pub fn counters(root: &Path) -> Option<Self> {
        let mut counters = Vec::new();
        for entry in std::fs::read_dir(root).ok()?.flatten() {
            let name = entry.file_name();
            // A package is `intel-rapl:N` (on AMD too); `intel-rapl:N:M` is a part of one, `intel-rapl-mmio:N` the same again.
            let package = name.to_str().and_then(|name| name.strip_prefix("intel-rapl:"));
            if !package.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
                continue;
            }
            // `psys` covers the packages once more.
            let label = std::fs::read_to_string(entry.path().join("name")).ok()?;
            if label.trim().starts_with("package") {
                let file = entry.path().join("energy_uj");
                let range_uj = read_number(&entry.path().join("max_energy_range_uj"))?;
                counters.push(Counter { last_uj: read_number(&file)?, file, range_uj });
            }
        }
        (!counters.is_empty()).then_some(Meter(Kind::Counters(counters)))
    }

    /// Energy since the last call (or since the meter was made). None if there is no meter, or if a counter failed.
    pub fn lap(&mut self) -> Option<Energy> {
        match &mut self.0 {
            Kind::Counters(counters) => {
                let mut joules = Some(0.0);
                for counter in counters {
                    let Some(now_uj) = read_number(&counter.file) else {
                        joules = None;
                        continue;
                    };
                    let gone_uj = now_uj
                        .checked_sub(counter.last_uj)
                        .unwrap_or_else(|| counter.range_uj.saturating_sub(counter.last_uj).saturating_add(now_uj));
                    counter.last_uj = now_uj;
                    joules = joules.map(|sum| sum + gone_uj as f64 * 1e-6);
                }
                Some(Energy { joules: joules?, source: Source::PackageCounter })
            }
            Kind::Declared { watts, last } => {
                let now = Instant::now();
                let joules = *watts * (now - std::mem::replace(last, now)).as_secs_f64();
                Some(Energy { joules, source: Source::DeclaredPower })
            }
            Kind::Nothing => None,
        }
    }
}

/// A sequence's energy account. One step without a figure voids it: a sum with a gap is no figure any more.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    begun: bool,
    sum: Option<Energy>,
}

impl Account {
    /// Adds the share of a step.
    pub fn add(&mut self, share: Option<Energy>) {
        self.sum = match (self.sum, share) {
            (None, share) if !self.begun => share,
            (Some(sum), Some(share)) if sum.source == share.source => {
                Some(Energy { joules: sum.joules + share.joules, ..sum })
            }
            _ => None,
        };
        self.begun = true;
    }

    /// The sum of all shares, if every step had a figure.
    pub fn sum(&self) -> Option<Energy> {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(root: &Path, dir: &str, name: &str, energy_uj: &str) {
        let dir = root.join(dir);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("name"), format!("{name}\n")).unwrap();
        std::fs::write(dir.join("energy_uj"), energy_uj).unwrap();
        std::fs::write(dir.join("max_energy_range_uj"), "10000000\n").unwrap();
    }

    #[test]
    fn sums_packages_only_and_unwraps() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        package(root, "intel-rapl:0", "package-0", "1000000\n");
        package(root, "intel-rapl:0:0", "core", "7\n");
        package(root, "intel-rapl:1", "package-1", "9500000\n");
        package(root, "intel-rapl:2", "psys", "5\n");
        package(root, "intel-rapl-mmio:0", "package-0", "5\n");
        let mut meter = Meter::counters(root).unwrap();
        package(root, "intel-rapl:0", "package-0", "3000000\n");
        package(root, "intel-rapl:0:0", "core", "999999\n");
        package(root, "intel-rapl:1", "package-1", "500000\n");
        let lap = meter.lap().unwrap();
        assert!((lap.joules - 3.0).abs() < 1e-9, "2 J of one package, 1 J over the wrap of the other: {lap:?}");
        assert!(lap.source.measured());
        assert_eq!(meter.lap().unwrap().joules, 0.0);
        std::fs::remove_file(root.join("intel-rapl:1/energy_uj")).unwrap();
        assert_eq!(meter.lap(), None, "a counter that fails gives no figure");
    }

    #[test]
    fn without_counters_only_a_declared_estimate() {
        let root = tempfile::tempdir().unwrap();
        assert!(Meter::counters(root.path()).is_none());
        package(root.path(), "intel-rapl:0", "package-0", "not a number");
        assert!(Meter::counters(root.path()).is_none());
        assert_eq!(Meter::none().lap(), None);
        let mut meter = Meter(Kind::Declared { watts: 50.0, last: Instant::now() });
        std::thread::sleep(std::time::Duration::from_millis(20));
        let lap = meter.lap().unwrap();
        assert!(lap.joules >= 1.0 && !lap.source.measured());
    }

    #[test]
    fn an_account_with_a_gap_is_void() {
        let one = Some(Energy { joules: 1.0, source: Source::PackageCounter });
        let mut account = Account::default();
        account.add(one);
        account.add(one);
        assert_eq!(account.sum().unwrap().joules, 2.0);
        account.add(None);
        account.add(one);
        assert_eq!(account.sum(), None);
    }
}
