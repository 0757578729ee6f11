//! Numbers that users type: counts, sizes, durations. Pure functions; each error says what is accepted.
//! It knows no flag: the caller names the one that the value came from.

use std::ffi::OsStr;

use crate::text::quoted;

/// The largest size that is understood at all, in MiB (8 EiB): a guard for the arithmetic, not a policy.
const MIB_MAX: u64 = 1 << 43;
const FRACTION_DIGITS_MAX: usize = 3;

/// A decimal integer from `min` to `max`, digits only.
pub fn count(text: &OsStr, what: &str, min: u64, max: u64) -> Result<u64, String> {
    let value = digits(text.to_str().unwrap_or_default());
    match value {
        Some(value) if (min..=max).contains(&value) => Ok(value),
        _ => Err(format!("{} is not {what} from {min} to {max}", quoted(text))),
    }
}

/// A size in MiB: `512`, `512m`, `4g`, `1.5g`, `2GiB`, `1t`; a bare number is MiB.
pub fn mib(text: &OsStr) -> Result<u64, String> {
    let parse = || {
        let text = text.to_str()?;
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let scale: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "m" | "mb" | "mib" => 1,
            "g" | "gb" | "gib" => 1 << 10,
            "t" | "tb" | "tib" => 1 << 20,
            _ => return None,
        };
        scaled(number, scale)
    };
    parse().ok_or_else(|| {
        format!(
            "{} is not a size; write it like 512m, 4g or 1.5g, in whole MiB (a bare number is MiB)",
            quoted(text)
        )
    })
}

/// `number` times `scale`, when that is whole and not absurd.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.len() > FRACTION_DIGITS_MAX {
        return None;
    }
    let denominator = 10u64.pow(u32::try_from(fraction.len()).ok()?);
    let part = digits(fraction)? * scale;
    let value = digits(whole)?.checked_mul(scale)?.checked_add(part / denominator)?;
    (part.is_multiple_of(denominator) && value <= MIB_MAX).then_some(value)
}

/// A duration in seconds: `30`, `30s`, `5m`, `2h`; 0 is allowed.
pub fn seconds(text: &OsStr, max: u64) -> Result<u64, String> {
    let parse = || {
        let text = text.to_str()?;
        let (number, scale) = match text.as_bytes().last()? {
            b's' => (&text[..text.len() - 1], 1),
            b'm' => (&text[..text.len() - 1], 60),
            b'h' => (&text[..text.len() - 1], 3600),
            _ => (text, 1),
        };
        digits(number)?.checked_mul(scale).filter(|&seconds| seconds <= max)
    };
    parse().ok_or_else(|| {
        format!(
            "{} is not a time; write it like 30, 30s, 5m or 2h, at most {max} seconds, 0 for never",
            quoted(text)
        )
    })
}

/// ASCII digits only: no sign, space, underscore, exponent or other script's digits.
fn digits(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// A number of MiB as a size that can be typed.
pub fn show_mib(mib: u64) -> String {
    match mib {
        _ if mib != 0 && mib.is_multiple_of(1 << 20) => format!("{}t", mib >> 20),
        _ if mib != 0 && mib.is_multiple_of(1 << 10) => format!("{}g", mib >> 10),
        _ => format!("{mib}m"),
    }
}

/// A number of bytes for people, to a tenth of the largest unit that is not zero.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut tenths = bytes.saturating_mul(10) >> 10;
    let mut unit = 0;
    while tenths >= 10 << 10 && unit + 1 < UNITS.len() {
        tenths >>= 10;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let good = [
            ("512", 512),
            ("512m", 512),
            ("512M", 512),
            ("512mb", 512),
            ("512MiB", 512),
            ("4g", 4096),
            ("1.5g", 1536),
            ("2GiB", 2048),
            ("1t", 1 << 20),
            ("0", 0),
            ("0.5g", 512),
            ("1.125g", 1152),
            ("007", 7),
        ];
        for (text, value) in good {
            assert_eq!(mib(OsStr::new(text)), Ok(value), "{text}");
        }
        let bad = [
            "",
            " ",
            "-1",
            "+1",
            "0x10",
            "NaN",
            "inf",
            "1e3",
            "1_000",
            "٣",
            " 4",
            "4 ",
            "4k",
            "1.0001g",
            "1.5",
            "1.1m",
            ".5g",
            "1.g",
            "1..5g",
            "4gg",
            "4 g",
            "8EiB",
            "g",
            "18446744073709551616",
            "18446744073709551615t",
            "9223372036854775808m",
            "512\n",
            "512\0",
        ];
        for text in bad {
            assert!(mib(OsStr::new(text)).is_err(), "{text:?}");
        }
    }

    #[test]
    fn counts_and_times() {
        assert_eq!(count(OsStr::new("8"), "a number", 1, 8), Ok(8));
        for text in
            ["", "0", "9", "-1", "0.5", "1e9", "٣", "1_0", " 4", "4 ", "4k", "18446744073709551616", "+4"]
        {
            assert!(count(OsStr::new(text), "a number", 1, 8).is_err(), "{text:?}");
        }
        for (text, value) in [("0", 0), ("30", 30), ("30s", 30), ("5m", 300), ("2h", 7200)] {
            assert_eq!(seconds(OsStr::new(text), 86400), Ok(value), "{text}");
        }
        for text in ["", "s", "-1", "1.5h", "inf", "1d", "25h", "99999999999999999999h", "5 m"] {
            assert!(seconds(OsStr::new(text), 86400).is_err(), "{text:?}");
        }
    }

    #[test]
    fn bytes_are_shown_in_the_unit_that_fits() {
        let cases = [(0, "0.0 KiB"), (1536, "1.5 KiB"), (1023 << 10, "1023.0 KiB"), (1 << 20, "1.0 MiB")];
        for (bytes, shown) in cases.into_iter().chain([(20 << 30, "20.0 GiB"), (3 << 50, "3.0 PiB")]) {
            assert_eq!(show_bytes(bytes), shown);
        }
    }

    #[test]
    fn a_shown_size_can_be_typed() {
        for value in [1, 512, 1536, 4096, 1 << 20, 3 << 20] {
            assert_eq!(mib(OsStr::new(&show_mib(value))), Ok(value));
        }
    }
}
