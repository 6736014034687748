//! Formats values for the console's pages.

use std::borrow::Borrow;
use std::fmt;

use askama::Template;
use askama::filters::HtmlSafe;
use chrono::{DateTime, TimeDelta, Utc};

use crate::model::Access;

/// A time as a `<time>` element in UTC. The text shows seconds, and the attributes have microseconds.
pub struct Time(DateTime<Utc>);

/// Wraps a time for display.
pub fn time(at: impl Borrow<DateTime<Utc>>) -> Time {
    Time(*at.borrow())
}

impl HtmlSafe for Time {}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Time(at) = self;
        let (exact, short) = (at.format("%FT%T%.6fZ"), at.format("%F %T"));
        write!(
            f,
            "<time datetime=\"{exact}\" title=\"{exact}\">{short}</time>"
        )
    }
}

/// Shows a time and its distance from now: `2026-11-22 09:39:08 3 min ago`.
pub fn ago(at: impl Borrow<DateTime<Utc>>, now: impl Borrow<DateTime<Utc>>) -> Ago {
    let at = *at.borrow();
    Ago(Time(at), distance(at, now))
}

/// A [`Time`] and its distance from now.
pub struct Ago(Time, String);

impl HtmlSafe for Ago {}

impl fmt::Display for Ago {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ago(time, distance) = self;
        write!(f, "{time} <small>{distance}</small>")
    }
}

/// Formats the distance of a time from now in one unit, rounded down: `119 s ago`, `in 3 min`.
pub fn distance(at: impl Borrow<DateTime<Utc>>, now: impl Borrow<DateTime<Utc>>) -> String {
    let offset = *at.borrow() - *now.borrow();
    let length = match offset.abs().num_seconds() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    };
    if offset > TimeDelta::zero() {
        format!("in {length}")
    } else {
        format!("{length} ago")
    }
}

/// The units of durations, in seconds.
const UNITS: [(i64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];

/// Formats a duration in one or two units: `30 d`, `1 h 30 min`. Smaller units are left out.
pub fn span(length: impl Borrow<TimeDelta>) -> String {
    let mut rest = length.borrow().num_seconds();
    let mut parts = UNITS.iter().filter_map(|(seconds, unit)| {
        let count = rest / seconds;
        rest %= seconds;
        (count > 0).then(|| format!("{count} {unit}"))
    });
    match (parts.next(), parts.next()) {
        (Some(first), Some(second)) => format!("{first} {second}"),
        (first, _) => first.unwrap_or_else(|| "0 s".into()),
    }
}

/// Groups digits by thousands with narrow no-break spaces: `12 345`.
pub fn number(number: impl fmt::Display) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 2);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

/// Lists the granted access: `accounts, balances`.
pub fn access(access: impl Borrow<Access>) -> String {
    let granted = access.borrow().names();
    if granted.is_empty() {
        "no access".into()
    } else {
        granted.join(", ")
    }
}

/// Escapes invisible and bidirectional control characters, for example as `\u202e`.
///
/// Use it for all text that callers or the provider supply, because such characters can disguise an id.
pub fn plain(text: impl fmt::Display) -> String {
    let is_visible = |c| !matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let escape = |c| {
        if is_visible(c) {
            String::from(c)
        } else {
            format!("\\u{:04x}", u32::from(c))
        }
    };
    text.to_string().chars().map(escape).collect()
}

/// The number of characters that [`short`] shows at each end.
const END: usize = 8;

/// A long id whose middle is hidden. The document contains the whole id, so copies and screen readers get it.
#[derive(Template)]
#[template(
    ext = "html",
    source = r#"{{ head }}{% if !middle.is_empty() %}<span class="middle"><span>{{ middle }}</span></span>{% endif %}{{ tail }}"#
)]
pub struct Short {
    head: String,
    middle: String,
    tail: String,
}

impl HtmlSafe for Short {}

/// Hides the middle of an id of more than 18 characters. The element around it needs the class `short`.
pub fn short(id: impl fmt::Display) -> Short {
    let id: Vec<char> = plain(id).chars().collect();
    let ends = match id.len() {
        length @ ..=18 => length..length,
        length => END..length - END,
    };
    let text = |part: &[char]| part.iter().collect();
    Short {
        head: text(&id[..ends.start]),
        middle: text(&id[ends.clone()]),
        tail: text(&id[ends.end..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_at_most_two_units() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (90, "1 min 30 s"),
            (3600, "1 h"),
            (5400, "1 h 30 min"),
            (7384, "2 h 3 min"),
            (86_460, "1 d 1 min"),
            (2_592_000, "30 d"),
        ] {
            assert_eq!(span(TimeDelta::seconds(seconds)), text);
        }
    }
}
