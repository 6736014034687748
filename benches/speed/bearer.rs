//! An OIDC issuer, and a bearer token that names the client of the benchmark.

use anyhow::{Result, anyhow};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::Utc;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::json;

use crate::process::{Server, free_addr};
use crate::world::World;

pub struct Issuer {
    _server: Server,
    url: String,
    /// The header of a request with a bearer token. The token has the length of one of Kubernetes, about 1,000 bytes.
    pub authorization: String,
}

impl Issuer {
    /// Starts an issuer. One document is the answer to every request, so it is discovery and key set.
    pub fn start(world: &World) -> Result<Issuer> {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let failed = |_| anyhow!("the key of the issuer cannot be created");
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(failed)?;
        let key = EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random)?;
        let (x, y) = key.public_key().as_ref()[1..].split_at(32);
        let jwk = json!({"kty": "EC", "crv": "P-256", "kid": "1", "x": encode(x), "y": encode(y)});

        let addr = free_addr()?;
        let url = format!("http://{addr}");
        let document = json!({"issuer": url, "jwks_uri": url, "keys": [jwk]}).to_string();
        let server = Server::start(
            world.rival_command("document", addr, &document)?,
            addr,
            &world.log("issuer"),
        )?;

        let header = json!({"alg": "ES256", "kid": "1"});
        let now = Utc::now().timestamp();
        let claims = json!({
            "iss": url, "aud": ["bench"], "sub": "bench", "iat": now, "exp": now + 86_400, "other": "x".repeat(500),
        });
        let message = format!(
            "{}.{}",
            encode(header.to_string()),
            encode(claims.to_string())
        );
        let signature = key.sign(&random, message.as_bytes()).map_err(failed)?;
        Ok(Issuer {
            _server: server,
            url,
            authorization: format!("Bearer {message}.{}", encode(signature)),
        })
    }

    /// Returns the settings of a service that accepts the token.
    pub fn settings(&self) -> [(&str, &str); 2] {
        [
            ("AUTH_OIDC_ISSUER", &self.url),
            ("AUTH_OIDC_AUDIENCE", "bench"),
        ]
    }
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}
