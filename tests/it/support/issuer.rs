//! An OIDC issuer: it serves discovery and keys, counts how often its keys are read, and signs tokens.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::Utc;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPair as RsaKeyPair, PublicKeyComponents};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384,
    RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The audience that the tests configure.
pub const AUDIENCE: &str = "token-vendor";

/// The path of the discovery document.
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// The private key of the RSA tests, because ring creates none. It protects nothing.
const RSA_KEY: &[u8] = include_bytes!("../fixtures/rsa-2048.der");

/// A running issuer. It stops when it is dropped.
pub struct Issuer {
    /// The `iss` of its tokens.
    pub url: String,
    state: Arc<Mutex<State>>,
    serving: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    keys: Vec<Value>,
    /// The response to every request, instead of the documents.
    fault: Option<Fault>,
    /// The discovery document, instead of the right one.
    discovery: Option<Value>,
    fetches: u32,
}

/// A response that is none of an issuer.
#[derive(Clone)]
pub enum Fault {
    /// A status and a body.
    Answer(u16, String),
    /// A connection that stays open without an answer.
    Hang,
    /// The right response, 100 ms later.
    Slow,
    /// A redirect from the discovery document to a copy of it.
    Redirect,
}

impl Issuer {
    /// Starts an issuer with the public keys of these keys.
    pub async fn start(keys: &[&SigningKey]) -> Issuer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let serving = tokio::spawn(serve(listener, url.clone(), state.clone()));
        let issuer = Issuer {
            url,
            state,
            serving,
        };
        issuer.publish(keys);
        issuer
    }

    /// Replaces the published keys.
    pub fn publish(&self, keys: &[&SigningKey]) {
        self.publish_jwks(keys.iter().map(|key| key.jwk()).collect());
    }

    /// Replaces the published keys by these JWKs.
    pub fn publish_jwks(&self, keys: Vec<Value>) {
        self.state().keys = keys;
    }

    /// Replaces all responses, or restores them.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// Replaces the discovery document.
    pub fn set_discovery(&self, document: Value) {
        self.state().discovery = Some(document);
    }

    /// Returns how often the keys were requested.
    pub fn fetches(&self) -> u32 {
        self.state().fetches
    }

    /// Returns the settings of a replica that accepts tokens of this issuer.
    pub fn settings(&self) -> [(&str, &str); 3] {
        [
            ("AUTH_OIDC_ISSUER", &self.url),
            ("AUTH_OIDC_AUDIENCE", AUDIENCE),
            ("TRUSTED_PROXIES", "127.0.0.1"),
        ]
    }

    /// Returns valid claims for a subject.
    pub fn claims(&self, subject: &str) -> Value {
        let now = Utc::now().timestamp();
        json!({"iss": self.url, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + 600})
    }

    /// Returns a valid token for a subject.
    pub fn token(&self, key: &SigningKey, subject: &str) -> String {
        key.sign(&self.claims(subject))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, url: String, state: Arc<Mutex<State>>) {
    loop {
        let (connection, _) = listener.accept().await.unwrap();
        tokio::spawn(answer(connection, url.clone(), state.clone()));
    }
}

/// Answers one request and closes the connection.
async fn answer(mut connection: TcpStream, url: String, state: Arc<Mutex<State>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match connection.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let fault = {
        let mut state = state.lock().unwrap();
        state.fetches += u32::from(path == "/keys");
        state.fault.clone()
    };
    if let Some(Fault::Slow) = fault {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (status, body) = match fault {
        Some(Fault::Hang) => return std::future::pending().await,
        Some(Fault::Answer(status, body)) => (status, body),
        Some(Fault::Redirect) if path == DISCOVERY => (302, String::new()),
        Some(Fault::Redirect | Fault::Slow) | None => {
            let state = state.lock().unwrap();
            match &*path {
                DISCOVERY | "/copy" => {
                    let own = json!({"issuer": url, "jwks_uri": format!("{url}/keys")});
                    (200, state.discovery.clone().unwrap_or(own).to_string())
                }
                "/keys" => (200, json!({"keys": state.keys}).to_string()),
                _ => (404, String::new()),
            }
        }
    };
    let length = body.len();
    let response = format!(
        "HTTP/1.1 {status} X\r\nlocation: /copy\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    let _ = connection.write_all(response.as_bytes()).await;
}

/// A private key of an issuer.
pub struct SigningKey {
    /// The id of the key.
    pub id: String,
    /// The algorithm that its tokens name.
    pub algorithm: &'static str,
    pair: Pair,
}

enum Pair {
    Ec(EcdsaKeyPair, &'static str),
    Ed(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>, &'static dyn RsaEncoding),
}

impl SigningKey {
    /// Creates a key for an algorithm.
    pub fn new(id: &str, algorithm: &'static str) -> SigningKey {
        let pair = match algorithm {
            "ES256" => ec(&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
            "ES384" => ec(&ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
            "EdDSA" => {
                let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
                Pair::Ed(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap())
            }
            "RS256" => rsa(&RSA_PKCS1_SHA256),
            "RS384" => rsa(&RSA_PKCS1_SHA384),
            "RS512" => rsa(&RSA_PKCS1_SHA512),
            "PS256" => rsa(&RSA_PSS_SHA256),
            "PS384" => rsa(&RSA_PSS_SHA384),
            "PS512" => rsa(&RSA_PSS_SHA512),
            other => panic!("{other}"),
        };
        SigningKey {
            id: id.into(),
            algorithm,
            pair,
        }
    }

    /// Returns the public key without `alg`.
    pub fn jwk(&self) -> Value {
        let mut jwk = match &self.pair {
            Pair::Ec(pair, curve) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kty": "EC", "crv": curve, "x": encode(x), "y": encode(y)})
            }
            Pair::Ed(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key())})
            }
            Pair::Rsa(pair, _) => {
                let PublicKeyComponents { n, e } =
                    PublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({"kty": "RSA", "n": encode(n), "e": encode(e)})
            }
        };
        jwk["kid"] = self.id.as_str().into();
        jwk["use"] = "sig".into();
        jwk
    }

    /// Signs claims with the usual header.
    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": self.algorithm, "kid": self.id, "typ": "JWT"});
        self.sign_with(&header, &claims.to_string())
    }

    /// Signs a text with this header.
    pub fn sign_with(&self, header: &Value, claims: &str) -> String {
        let message = format!("{}.{}", encode(header.to_string()), encode(claims));
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Ec(pair, _) => encode(pair.sign(&random, message.as_bytes()).unwrap()),
            Pair::Ed(pair) => encode(pair.sign(message.as_bytes())),
            Pair::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(*encoding, &random, message.as_bytes(), &mut signature)
                    .unwrap();
                encode(signature)
            }
        };
        format!("{message}.{signature}")
    }
}

fn ec(algorithm: &'static EcdsaSigningAlgorithm, curve: &'static str) -> Pair {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
    Pair::Ec(pair, curve)
}

fn rsa(encoding: &'static dyn RsaEncoding) -> Pair {
    Pair::Rsa(Box::new(RsaKeyPair::from_der(RSA_KEY).unwrap()), encoding)
}

/// Encodes in base64url without padding.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}
