//! A moment handed in from outside, and `strftime` for templates that print the date.
//!
//! The engine reads no clock of its own: the caller says what "now" is, so renderings are reproducible.

/// A moment in a time zone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Clock {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub unix_seconds: i64,
    /// Offset of local time from UTC in seconds, east positive.
    pub utc_offset_seconds: i32,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Clock {
    /// Formats as Python's `strftime` in the C locale.
    ///
    /// # Errors
    /// The directive, if it is not one of `%Y %y %m %-m %d %-d %e %H %-H %I %-I %M %S %p %B %b %h %A %a %j %F %T %D %R %s %z %Z %n %t %%`.
    pub fn strftime(&self, format: &str) -> Result<String, String> {
        // 400 years hold 146,097 days; bounding the moment keeps all sums in range.
        let seconds = self.unix_seconds.clamp(-60_000_000_000, 250_000_000_000) + i64::from(self.utc_offset_seconds);
        let days = seconds.div_euclid(86_400);
        let of_day = seconds.rem_euclid(86_400);
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        let hour12 = (hour + 11) % 12 + 1;
        let (year, month, day) = civil(days);
        let weekday = (days + 4).rem_euclid(7);
        let month_name = MONTHS[month as usize - 1];
        let day_name = DAYS[weekday as usize];

        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = chars.next().unwrap_or('%').to_string();
            if directive == "-" {
                directive.extend(chars.next());
            }
            out.push_str(&match directive.as_str() {
                "Y" => year.to_string(),
                "y" => format!("{:02}", year.rem_euclid(100)),
                "m" => format!("{month:02}"),
                "-m" => month.to_string(),
                "d" => format!("{day:02}"),
                "-d" => day.to_string(),
                "e" => format!("{day:2}"),
                "H" => format!("{hour:02}"),
                "-H" => hour.to_string(),
                "I" => format!("{hour12:02}"),
                "-I" => hour12.to_string(),
                "M" => format!("{minute:02}"),
                "S" => format!("{second:02}"),
                "p" => if hour < 12 { "AM" } else { "PM" }.to_owned(),
                "B" => month_name.to_owned(),
                "b" | "h" => month_name[..3].to_owned(),
                "A" => day_name.to_owned(),
                "a" => day_name[..3].to_owned(),
                "j" => format!("{:03}", days - days_from_civil(year, 1, 1) + 1),
                "F" => format!("{year}-{month:02}-{day:02}"),
                "T" => format!("{hour:02}:{minute:02}:{second:02}"),
                "D" => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
                "R" => format!("{hour:02}:{minute:02}"),
                "s" => self.unix_seconds.to_string(),
                "z" => {
                    let offset = self.utc_offset_seconds.abs() / 60;
                    let sign = if self.utc_offset_seconds < 0 { '-' } else { '+' };
                    format!("{sign}{:02}{:02}", offset / 60, offset % 60)
                }
                // A naive Python datetime prints no zone name.
                "Z" => String::new(),
                "n" => "\n".to_owned(),
                "t" => "\t".to_owned(),
                "%" => "%".to_owned(),
                other => return Err(format!("%{other}")),
            });
        }
        Ok(out)
    }
}

/// Days since 1970-01-01 to (year, month, day) in the Gregorian calendar
/// (Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil`] (same source, `days_from_civil`).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(unix_seconds: i64, offset: i32, format: &str) -> String {
        Clock { unix_seconds, utc_offset_seconds: offset }.strftime(format).unwrap()
    }

    /// Expected values from CPython 3.11's datetime.
    #[test]
    fn dates_as_python_prints_them() {
        assert_eq!(at(0, 0, "%Y-%m-%d %H:%M:%S %A %j"), "1970-01-01 00:00:00 Thursday 001");
        assert_eq!(at(1_709_210_096, 0, "%d %B %Y, %a %I:%M %p, day %j"), "29 February 2024, Thu 12:34 PM, day 060");
        assert_eq!(at(1_798_761_599, 3600, "%F %T %z|%e|%-d|%y %b"), "2027-01-01 00:59:59 +0100| 1|1|27 Jan");
        assert_eq!(at(-1, 0, "%F %T %a"), "1969-12-31 23:59:59 Wed");
        assert_eq!(at(951_782_400, 0, "%F%%%D %R"), "2000-02-29%02/29/00 00:00");
    }

    #[test]
    fn every_day_of_eight_centuries_survives_the_round_trip() {
        for days in -146_097..146_097 {
            let (year, month, day) = civil(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
    }

    #[test]
    fn an_unknown_directive_is_named() {
        assert_eq!(Clock::default().strftime("%Q"), Err("%Q".to_owned()));
    }
}
