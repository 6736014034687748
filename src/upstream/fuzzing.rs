//! Property checks of the provider's answers. `crate::fuzzing` exports them.

use chrono::{DateTime, Datelike, TimeDelta};
use reqwest::header::HeaderValue;

use super::answer::{MAX_TOKEN, read_error, read_minted};
use crate::model::{Access, Combination};

/// Checks that an accepted answer has a token string, a storable expiration and life left, and that an error is short.
pub fn provider_answer(body: &[u8]) {
    let any_bank = Combination {
        user_id: "u-1".into(),
        country: None,
        bank: None,
        access: Access::default(),
    };
    let one_bank = Combination {
        country: "LT".parse().ok(),
        bank: Some("Swedbank".into()),
        access: Access::from_bits(1),
        ..any_bank.clone()
    };
    let date = HeaderValue::from_static("Sun, 22 Nov 2026 09:00:00 GMT");
    let received_at = DateTime::from_timestamp(1_795_338_000, 0).expect("a time in range");
    for combination in [any_bank, one_bank] {
        for (date, lifetime) in [
            (Some(&date), 3600),
            (Some(&date), 0),
            (None, 3600),
            (None, 0),
        ] {
            let Ok(minted) = read_minted(body, date, &combination, lifetime, received_at) else {
                continue;
            };
            let length = minted.token_string.expose().chars().count();
            assert!((1..=MAX_TOKEN).contains(&length), "{length} characters");
            let year = minted.expiration.year();
            assert!((0..=9999).contains(&year), "an expiration in year {year}");
            let micros = DateTime::from_timestamp_micros(minted.expiration.timestamp_micros());
            assert_eq!(
                micros,
                Some(minted.expiration),
                "the record has another expiration"
            );
            assert_eq!(minted.life.is_some(), date.is_some());
            if lifetime != 0 {
                assert!(minted.life.is_none_or(|life| life > TimeDelta::zero()));
            }
        }
    }

    let error = read_error(502, body);
    assert!(
        error
            .identifier
            .is_none_or(|text| (1..=64).contains(&text.len()))
    );
    assert!(
        error
            .message
            .is_none_or(|text| !text.contains(char::is_control))
    );
}
