//! Encrypts, decrypts and fingerprints token strings.
//!
//! An encrypted token is `version (1) ‖ key id length (1) ‖ key id ‖ nonce (24) ‖ ciphertext ‖ tag (16)`. The numbers
//! are bytes. The cipher is XChaCha20-Poly1305 with a random nonce. The associated data contains the id and the
//! combination of the row, so a ciphertext decrypts only in its own row.

use std::fmt;

use chacha20poly1305::aead::{Aead, Generate, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use secrecy::zeroize::Zeroizing;
use sha2::Sha256;
use uuid::Uuid;

use crate::model::{Combination, Fingerprint, TokenString};

const VERSION: u8 = 1;
const NONCE_LEN: usize = 24;

/// The reason why a stored token does not decrypt. Contains no byte of the token.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecryptError {
    /// The ciphertext is empty, truncated or of an unknown version.
    #[error("the stored token has an unknown format or is truncated")]
    Format,
    /// The key of the ciphertext is not configured.
    #[error("the stored token is encrypted under key {0:?}, which is not in TOKEN_KEYS")]
    UnknownKey(String),
    /// The ciphertext was changed, or it was copied from another row.
    #[error(
        "the stored token fails authentication: it was changed or copied from another row, or its key has another value"
    )]
    Forged,
}

/// An encrypted token string.
#[derive(Clone, PartialEq, Eq)]
pub struct EncryptedToken {
    /// The bytes to store, in the format of this module.
    pub bytes: Vec<u8>,
    /// The id of the key that encrypted it.
    pub key_id: String,
}

impl fmt::Debug for EncryptedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptedToken")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

/// The token keys and the fingerprint key. The first token key encrypts. All token keys decrypt.
pub struct KeyRing {
    keys: Vec<(String, XChaCha20Poly1305)>,
    fingerprint: Hmac<Sha256>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = self.keys.iter().map(|(id, _)| id);
        f.debug_list().entries(ids).finish()
    }
}

impl KeyRing {
    /// Creates a key ring. Each key has an id of 1 to 32 bytes.
    ///
    /// # Panics
    /// Panics if there is no token key.
    pub fn new<'a>(
        keys: impl IntoIterator<Item = (&'a str, &'a [u8; 32])>,
        fingerprint_key: &[u8; 32],
    ) -> Self {
        let keys: Vec<_> = keys
            .into_iter()
            .map(|(id, key)| (id.to_owned(), XChaCha20Poly1305::new(key.into())))
            .collect();
        assert!(!keys.is_empty(), "a key ring needs a key that encrypts");
        KeyRing {
            keys,
            fingerprint: KeyInit::new_from_slice(fingerprint_key)
                .expect("HMAC takes keys of any length"),
        }
    }

    /// Returns the id of the key that encrypts.
    pub fn primary_key_id(&self) -> &str {
        &self.keys[0].0
    }

    /// Encrypts a token string for the row with this id and combination.
    pub fn encrypt(
        &self,
        token: &TokenString,
        id: Uuid,
        combination: &Combination,
    ) -> EncryptedToken {
        let (key_id, cipher) = &self.keys[0];
        let nonce = XNonce::generate();
        let payload = Payload {
            msg: token.expose().as_bytes(),
            aad: &associated_data(id, combination),
        };
        let ciphertext = cipher
            .encrypt(&nonce, payload)
            .expect("a token string is far below the cipher's limit");
        let id_len = u8::try_from(key_id.len()).expect("key ids are at most 32 bytes");
        let bytes = [
            &[VERSION, id_len],
            key_id.as_bytes(),
            nonce.as_slice(),
            &ciphertext,
        ]
        .concat();
        EncryptedToken {
            bytes,
            key_id: key_id.clone(),
        }
    }

    /// Decrypts the token string of the row with this id and combination.
    pub fn decrypt(
        &self,
        encrypted: &[u8],
        id: Uuid,
        combination: &Combination,
    ) -> Result<TokenString, DecryptError> {
        let [VERSION, id_len, body @ ..] = encrypted else {
            return Err(DecryptError::Format);
        };
        let (key_id, body) = body
            .split_at_checked(usize::from(*id_len))
            .ok_or(DecryptError::Format)?;
        let (nonce, ciphertext) = body
            .split_at_checked(NONCE_LEN)
            .ok_or(DecryptError::Format)?;
        let nonce = XNonce::try_from(nonce).map_err(|_| DecryptError::Format)?;
        let (_, cipher) = self
            .keys
            .iter()
            .find(|(id, _)| id.as_bytes() == key_id)
            .ok_or_else(|| {
                DecryptError::UnknownKey(String::from_utf8_lossy(key_id).into_owned())
            })?;
        let payload = Payload {
            msg: ciphertext,
            aad: &associated_data(id, combination),
        };
        let plain = cipher
            .decrypt(&nonce, payload)
            .map(Zeroizing::new)
            .map_err(|_| DecryptError::Forged)?;
        let text = str::from_utf8(&plain).map_err(|_| DecryptError::Forged)?;
        Ok(TokenString::new(text))
    }

    /// Returns the fingerprint of a token string: its HMAC-SHA256 under the fingerprint key.
    pub fn fingerprint(&self, token: &str) -> Fingerprint {
        let mut mac = self.fingerprint.clone();
        mac.update(token.as_bytes());
        let tag: [u8; 32] = mac.finalize().into_bytes().into();
        tag.into()
    }
}

/// Returns the associated data of a row: its id and the parts of its combination.
///
/// The length of each part precedes it, so that two different rows never have the same encoding.
fn associated_data(id: Uuid, combination: &Combination) -> Vec<u8> {
    let access = combination.access.bits().to_be_bytes();
    let parts: [&[u8]; 5] = [
        id.as_bytes(),
        combination.user_id.as_bytes(),
        combination.country_key().as_bytes(),
        combination.bank_key().as_bytes(),
        &access,
    ];
    let mut data = Vec::with_capacity(128);
    for part in parts {
        let len = u32::try_from(part.len()).expect("parts are at most 128 characters");
        data.extend_from_slice(&len.to_be_bytes());
        data.extend_from_slice(part);
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Access;

    fn combination(user: &str, bank: Option<&str>) -> Combination {
        Combination {
            user_id: user.into(),
            country: "LT".parse().ok(),
            bank: bank.map(Into::into),
            access: Access::from_bits(5),
        }
    }

    fn ring() -> KeyRing {
        KeyRing::new([("new", &[2; 32]), ("old", &[1; 32])], &[9; 32])
    }

    #[test]
    fn a_ciphertext_decrypts_only_in_its_own_row() {
        let ring = ring();
        let id = Uuid::now_v7();
        let own = combination("u-1", Some("Swedbank"));
        let encrypted = ring.encrypt(&TokenString::new("secret"), id, &own);
        assert_eq!(
            ring.decrypt(&encrypted.bytes, id, &own).unwrap().expose(),
            "secret"
        );
        assert!(!String::from_utf8_lossy(&encrypted.bytes).contains("secret"));

        for other in [
            combination("u-2", Some("Swedbank")),
            combination("u-1S", Some("wedbank")),
            combination("u-1", None),
        ] {
            assert_eq!(
                ring.decrypt(&encrypted.bytes, id, &other).unwrap_err(),
                DecryptError::Forged
            );
        }
        let error = ring
            .decrypt(&encrypted.bytes, Uuid::now_v7(), &own)
            .unwrap_err();
        assert_eq!(error, DecryptError::Forged);
    }

    #[test]
    fn a_ciphertext_with_a_flipped_bit_or_cut_short_does_not_decrypt() {
        let ring = ring();
        let (id, own) = (Uuid::now_v7(), combination("u", None));
        let encrypted = ring.encrypt(&TokenString::new("secret"), id, &own).bytes;
        for bit in 0..encrypted.len() * 8 {
            let mut forged = encrypted.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(ring.decrypt(&forged, id, &own).is_err(), "bit {bit}");
        }
        for len in 0..encrypted.len() {
            assert!(
                ring.decrypt(&encrypted[..len], id, &own).is_err(),
                "length {len}"
            );
        }
    }

    #[test]
    fn older_keys_decrypt_and_the_error_names_an_unknown_key() {
        let (id, own) = (Uuid::now_v7(), combination("u", None));
        let old = KeyRing::new([("old", &[1; 32])], &[9; 32]);
        let encrypted = old.encrypt(&TokenString::new("secret"), id, &own);
        assert_eq!(
            ring().decrypt(&encrypted.bytes, id, &own).unwrap().expose(),
            "secret"
        );
        let without = KeyRing::new([("new", &[2; 32])], &[9; 32]);
        assert_eq!(
            without.decrypt(&encrypted.bytes, id, &own).unwrap_err(),
            DecryptError::UnknownKey("old".into())
        );
    }

    #[test]
    fn debug_output_contains_only_key_ids() {
        let text = format!("{:?} {:?}", ring(), TokenString::new("secret"));
        assert_eq!(text, r#"["new", "old"] TokenString([REDACTED])"#);
    }
}
