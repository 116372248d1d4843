//! What this process may use and has used of the machine. Linux tells; elsewhere the answers are `None`.

use std::fs;

/// The value of a `Name:   123 kB` line, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Memory that could be used without swapping: what the kernel estimates, or the container's limit if that is lower.
pub(crate) fn available_bytes() -> Option<u64> {
    let machine = kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")?;
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|t| t.trim().parse().ok());
    Some(limit.map_or(machine, |limit: u64| limit.min(machine)))
}

/// The most memory that this process has held at once, mapped files included.
pub(crate) fn peak_bytes() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let text = "MemTotal:       32871368 kB\nMemAvailable:   28012340 kB\nVmHWM:\t    1 kB\nOdd: 3\n";
        assert_eq!(kilobytes(text, "MemAvailable"), Some(28_012_340 << 10));
        assert_eq!(kilobytes(text, "VmHWM"), Some(1024));
        assert_eq!(kilobytes(text, "Mem"), None);
        assert_eq!(kilobytes(text, "Odd"), None);
    }
}
