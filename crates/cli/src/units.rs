//! Numbers as people write and read them: sizes, counts, durations.

use std::time::Duration;

/// Parses a size: bytes, or a number with K, M, G, T (powers of 1024; `B` and `iB` may follow).
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let expected = "expected a size such as 24G, 512M or a number of bytes";
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let power = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 1,
        "M" | "MB" | "MIB" => 2,
        "G" | "GB" | "GIB" => 3,
        "T" | "TB" | "TIB" => 4,
        _ => return Err(expected.into()),
    };
    let number: f64 = number.parse().map_err(|_| expected.to_owned())?;
    let bytes = number * 1024f64.powi(power);
    if bytes < 1.0 || bytes > u64::MAX as f64 {
        return Err(format!("{expected}, above 0 and below 16 EiB"));
    }
    Ok(bytes as u64)
}

/// Bytes with a binary unit: `1.50 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.995 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

/// A count of parameters: `671.03 B`, with `digits` after the point.
pub(crate) fn parameters(n: u64, digits: usize) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.digits$} K", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.digits$} M", n as f64 / 1e6),
        _ => format!("{:.digits$} B", n as f64 / 1e9),
    }
}

/// An integer with thousands separated: `70,272`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A duration to about three digits: `38 ms`, `1.24 s`, `2 min 05 s`.
pub(crate) fn duration(d: Duration) -> String {
    let s = d.as_secs_f64();
    match s {
        _ if s < 0.9995 => format!("{:.0} ms", s * 1e3),
        _ if s < 60.0 => format!("{s:.2} s"),
        _ => format!("{} min {:02} s", d.as_secs() / 60, d.as_secs() % 60),
    }
}

/// A rate to three digits: `0.52`, `12.3`, `1,240`.
pub(crate) fn rate(x: f64) -> String {
    match x {
        _ if x < 10.0 => format!("{x:.2}"),
        _ if x < 100.0 => format!("{x:.1}"),
        _ => grouped(x.round() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let good = [("1", 1), ("24G", 24 << 30), ("1.5 MiB", 3 << 19), ("2kb", 2048), ("1T", 1 << 40)];
        for (text, wanted) in good {
            assert_eq!(parse_bytes(text), Ok(wanted), "{text}");
        }
        for text in ["", "G", "0", "-1G", "1X", "1e9", "0.1", "99999999999T", "1.2.3M"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_written() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(3 << 29), "1.50 GiB");
        assert_eq!(bytes((1 << 20) - 1), "1.00 MiB");
        assert_eq!(parameters(671_026_419_200, 2), "671.03 B");
        assert_eq!(parameters(999, 2), "999");
        assert_eq!([0, 999, 1000, 70_272, 1_234_567].map(grouped), ["0", "999", "1,000", "70,272", "1,234,567"]);
        assert_eq!(duration(Duration::from_micros(38_200)), "38 ms");
        assert_eq!(duration(Duration::from_secs(125)), "2 min 05 s");
        assert_eq!([0.523, 12.34, 1239.6].map(rate), ["0.52", "12.3", "1,240"]);
    }
}
