//! How values read on a page.

use std::borrow::Borrow;
use std::fmt;

use askama::filters::HtmlSafe;
use chrono::{DateTime, TimeDelta, Utc};

use crate::model::Access;

/// A moment as an element: UTC, to the second for the eye and to the microsecond for programs.
pub struct Time(DateTime<Utc>);

/// The moment.
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

/// How long ago, or in how long: `12 s ago`, `in 3 min`.
pub fn distance(at: impl Borrow<DateTime<Utc>>, now: impl Borrow<DateTime<Utc>>) -> String {
    let away = *at.borrow() - *now.borrow();
    let size = span(away.abs());
    if away > TimeDelta::zero() {
        format!("in {size}")
    } else {
        format!("{size} ago")
    }
}

/// A length of time in its largest unit.
pub fn span(length: impl Borrow<TimeDelta>) -> String {
    match length.borrow().num_seconds() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// Thousands apart, by a space that does not break: `12 345`.
pub fn number(number: impl fmt::Display) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 2);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// What is given access to, in words.
pub fn access(access: impl Borrow<Access>) -> String {
    let access = access.borrow();
    let parts = [
        (access.accounts, "accounts"),
        (access.balances, "balances"),
        (access.transactions, "transactions"),
    ];
    let given: Vec<_> = parts
        .iter()
        .filter(|(is_given, _)| *is_given)
        .map(|(_, name)| *name)
        .collect();
    if given.is_empty() {
        "no access".into()
    } else {
        given.join(", ")
    }
}

/// Anybody's text, with the characters told that would not be seen, or would turn what follows around.
pub fn plain(text: impl fmt::Display) -> String {
    let is_seen = |c| !matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let shown = |c| {
        if is_seen(c) {
            String::from(c)
        } else {
            format!("\\u{:04x}", u32::from(c))
        }
    };
    text.to_string().chars().map(shown).collect()
}
