//! The public keys of the issuer, from its JSON Web Key Set (RFC 7517).

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Header};
use serde::Deserialize;

/// A key that verifies signatures.
#[derive(Debug)]
pub struct SigningKey {
    id: Option<String>,
    /// The algorithms of this key. A token must name one of them.
    algorithms: Vec<Algorithm>,
    /// The key itself.
    pub key: DecodingKey,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<serde_json::Value>,
}

/// Returns the keys of a key set that can verify tokens, perhaps none. Returns `None` if the text is no key set.
///
/// Other keys are skipped, because an issuer may publish kinds that this version does not know.
pub fn parse_key_set(json: &[u8]) -> Option<Vec<SigningKey>> {
    let set: KeySet = serde_json::from_slice(json).ok()?;
    Some(set.keys.into_iter().filter_map(parse_key).collect())
}

/// Returns the key if it verifies signatures of asymmetric algorithms. The key alone decides about the algorithms.
fn parse_key(json: serde_json::Value) -> Option<SigningKey> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    let jwk: Jwk = serde_json::from_value(json).ok()?;
    if !matches!(
        jwk.common.public_key_use,
        None | Some(PublicKeyUse::Signature)
    ) {
        return None;
    }
    let mut algorithms = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => vec![RS256, RS384, RS512, PS256, PS384, PS512],
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => vec![ES256],
            EllipticCurve::P384 => vec![ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            vec![EdDSA]
        }
        _ => return None,
    };
    if let Some(declared) = jwk.common.key_algorithm {
        let declared = Algorithm::try_from(declared).ok();
        algorithms.retain(|algorithm| Some(*algorithm) == declared);
    }
    (!algorithms.is_empty()).then_some(SigningKey {
        key: DecodingKey::from_jwk(&jwk).ok()?,
        id: jwk.common.key_id,
        algorithms,
    })
}

/// Returns the key for a token with this header. Without a `kid`, only one key may fit.
pub fn find_key<'a>(keys: &'a [SigningKey], header: &Header) -> Option<&'a SigningKey> {
    let mut fitting = keys.iter().filter(|key| {
        key.algorithms.contains(&header.alg) && (header.kid.is_none() || key.id == header.kid)
    });
    let key = fitting.next()?;
    (header.kid.is_some() || fitting.next().is_none()).then_some(key)
}
