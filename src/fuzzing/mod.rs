//! Property checks for the fuzz targets in `fuzz/`. Unit tests run them over the corpus. No other build has them.
//!
//! Each function takes any input and panics if a property does not hold. The functions are public only because the
//! code that they check is private.

#[cfg(test)]
mod tests;

use uuid::Uuid;

pub use crate::api::fuzzing::{cache_control, cursor, json_request};
use crate::crypto::KeyRing;
use crate::model::{Access, Combination, TokenString};
pub use crate::upstream::fuzzing::provider_answer;

/// A function that checks one input.
pub type Target = fn(&[u8]);

/// The fuzz targets with the names of their files in `fuzz/`.
pub const TARGETS: [(&str, Target); 5] = [
    ("cache_control", cache_control),
    ("cursor", cursor),
    ("encrypted_token", encrypted_token),
    ("json_request", json_request),
    ("provider_answer", provider_answer),
];

/// Checks that no changed ciphertext decrypts.
///
/// The input is used as the ciphertext of another row, and as an XOR mask, a suffix and the length of a prefix of a
/// valid ciphertext.
pub fn encrypted_token(data: &[u8]) {
    let keys = KeyRing::new([("new", &[2; 32]), ("old", &[1; 32])], &[9; 32]);
    let id = Uuid::from_u128(7);
    let combination = Combination {
        user_id: "u-1".into(),
        country: "LT".parse().ok(),
        bank: Some("Swedbank".into()),
        access: Access::from_bits(1),
    };
    // The input belongs to another row: a fuzzer that traces comparisons can learn the valid ciphertext of a row.
    let other_row = keys.decrypt(data, Uuid::from_u128(8), &combination);
    assert!(other_row.is_err(), "an arbitrary ciphertext decrypted");
    let is_rejected = |bytes: &[u8]| keys.decrypt(bytes, id, &combination).is_err();

    let valid = keys.encrypt(&TokenString::new("secret"), id, &combination);
    let valid = valid.bytes;
    let mut masked = valid.clone();
    for (byte, mask) in masked.iter_mut().zip(data) {
        *byte ^= mask;
    }
    let is_changed = data.iter().take(valid.len()).any(|mask| *mask != 0);
    assert!(
        !is_changed || is_rejected(&masked),
        "a changed ciphertext decrypted"
    );
    let extended = [&valid, data].concat();
    assert!(
        data.is_empty() || is_rejected(&extended),
        "an extended ciphertext decrypted"
    );
    let length = data.first().map_or(0, |byte| usize::from(*byte)) % valid.len();
    assert!(
        is_rejected(&valid[..length]),
        "a truncated ciphertext decrypted"
    );
}
