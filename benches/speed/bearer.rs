//! An OIDC issuer, and a bearer token that names the client of the benchmark.

use anyhow::Result;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::Utc;
use ring::signature::{Ed25519KeyPair, KeyPair};
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
        let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed has 32 bytes");
        let public = encode(key.public_key());
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "kid": "1", "x": public});

        let addr = free_addr()?;
        let url = format!("http://{addr}");
        let document = json!({"issuer": url, "jwks_uri": url, "keys": [jwk]}).to_string();
        let server = Server::start(
            world.rival_command("document", addr, &document)?,
            addr,
            &world.log("issuer"),
        )?;

        let header = json!({"alg": "EdDSA", "kid": "1"});
        let now = Utc::now().timestamp();
        let claims = json!({
            "iss": url, "aud": ["bench"], "sub": "bench", "iat": now, "exp": now + 86_400, "other": "x".repeat(500),
        });
        let message = format!(
            "{}.{}",
            encode(header.to_string()),
            encode(claims.to_string())
        );
        let signature = encode(key.sign(message.as_bytes()));
        Ok(Issuer {
            _server: server,
            url,
            authorization: format!("Bearer {message}.{signature}"),
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
