//! Verifies signatures of bearer tokens with ring, which rustls uses too.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
    UnparsedPublicKey, VerificationAlgorithm,
};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: refuse_to_sign,
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes jsonwebtoken verify with ring in this process.
pub fn install() {
    // Fails if it is installed already, which is fine.
    let _ = PROVIDER.install_default();
}

/// The rule to verify a signature. No symmetric algorithm has one.
enum Rule {
    Rsa(&'static RsaParameters),
    Curve(&'static dyn VerificationAlgorithm),
}

fn rule(algorithm: Algorithm) -> Option<Rule> {
    Some(match algorithm {
        Algorithm::RS256 => Rule::Rsa(&RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => Rule::Rsa(&RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => Rule::Rsa(&RSA_PKCS1_2048_8192_SHA512),
        Algorithm::PS256 => Rule::Rsa(&RSA_PSS_2048_8192_SHA256),
        Algorithm::PS384 => Rule::Rsa(&RSA_PSS_2048_8192_SHA384),
        Algorithm::PS512 => Rule::Rsa(&RSA_PSS_2048_8192_SHA512),
        Algorithm::ES256 => Rule::Curve(&ECDSA_P256_SHA256_FIXED),
        Algorithm::ES384 => Rule::Curve(&ECDSA_P384_SHA384_FIXED),
        Algorithm::EdDSA => Rule::Curve(&ED25519),
        _ => return None,
    })
}

struct RingVerifier {
    algorithm: Algorithm,
    rule: Rule,
    key: DecodingKey,
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    let rule = rule(*algorithm).ok_or(ErrorKind::InvalidAlgorithm)?;
    Ok(Box::new(RingVerifier {
        algorithm: *algorithm,
        rule,
        key: key.clone(),
    }))
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let verified = match (&self.rule, self.key.kind()) {
            (Rule::Rsa(parameters), DecodingKeyKind::RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
            }
            (Rule::Curve(algorithm), DecodingKeyKind::SecretOrDer(key)) => {
                UnparsedPublicKey::new(*algorithm, key).verify(message, signature)
            }
            _ => Err(ring::error::Unspecified),
        };
        verified.map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

fn refuse_to_sign(_: &Algorithm, _: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    Err(ErrorKind::InvalidAlgorithm.into())
}
