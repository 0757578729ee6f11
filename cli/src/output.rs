//! What commands print: whole texts at once, to a reader that may have gone, and tables and dates for them.
//! It does not print errors; `main` does.

use std::io::{self, ErrorKind, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::attach::Console;
use crate::text::plain;

/// Prints to the standard output. A reader that wants no more (`coracle ls | head -1`) is no error.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write to standard output"),
    }
}

/// Prints to the error stream, as far as that is possible.
pub fn note(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// An error in one line, or with its causes below each other. The guest's console only goes with all causes. Causes come from
/// libraries as well, which repeat what they have read: no terminal may obey that.
pub fn explain(error: &anyhow::Error, verbose: bool) -> String {
    let harmless = |text: String| text.split('\n').map(plain).collect::<Vec<_>>().join("\n");
    let shown = error.chain().filter(|cause| verbose || !cause.is::<Console>());
    let causes: Vec<_> = shown.map(|cause| harmless(cause.to_string())).collect();
    match verbose {
        false => causes.join(": "),
        true => causes.join("\n  caused by: "),
    }
}

/// Rows with their columns aligned; the last column is not padded.
pub fn table(rows: &[Vec<String>]) -> String {
    const GAP: usize = 3;
    let width = |column| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell: &String| cell.chars().count()).max()
    };
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0) + GAP).collect();
    let mut out = String::new();
    for row in rows {
        for (cell, width) in row.iter().zip(&widths) {
            out.push_str(cell);
            out.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
        }
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
    out
}

/// Seconds since the epoch.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

/// How long ago, in the largest unit that is not zero.
pub fn ago(then_s: u64, now_s: u64) -> String {
    let age = now_s.saturating_sub(then_s);
    let (count, unit) = match age {
        0..60 => (age, "second"),
        60..3600 => (age / 60, "minute"),
        3600..86400 => (age / 3600, "hour"),
        _ => (age / 86400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// Seconds since the epoch as RFC 3339, section 5.6 "Internet Date/Time Format", in UTC.
pub fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The Gregorian date of a day since 1970-01-01. Years are counted from March, so the leap day is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_EPOCH: u64 = 719_468;
    const ERA: u64 = 146_097;
    let days = days + DAYS_TO_EPOCH;
    let (era, day) = (days / ERA, days % ERA);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_552_442), "2026-11-24T20:34:02Z");
        assert_eq!(rfc3339(4_107_542_399), "2100-02-28T23:59:59Z");
        assert_eq!(
            [ago(10, 5), ago(0, 60), ago(0, 7200), ago(0, 86400 * 3)].join(", "),
            "0 seconds ago, 1 minute ago, 2 hours ago, 3 days ago"
        );
    }

    #[test]
    fn no_cause_reaches_a_terminal_as_a_command() {
        let error = anyhow::anyhow!("not a number: \x1b[31mX\nin \"a\"").context("load x");
        assert_eq!(explain(&error, false), "load x: not a number: \\u{1b}[31mX\nin \"a\"");
    }

    #[test]
    fn columns_line_up() {
        let rows =
            [vec!["A".into(), "B".into()], vec!["long".into(), String::new()], vec!["é".into(), "x".into()]];
        assert_eq!(table(&rows), "A      B\nlong\né      x\n");
    }
}
