//! Bearer tokens: JWTs of an OIDC issuer that name a client.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

use chrono::Utc;
use futures_util::future::join_all;
use reqwest::{Method, RequestBuilder};
use ring::hmac;
use serde_json::{Value, json};
use token_vendor::model::Scope;

use crate::support::issuer::{Fault, Issuer, SigningKey, encode};
use crate::support::{ADMIN, Answer, Api, Ended, Process, Replica, World, eventually, run, send};

const SUBJECT: &str = "system:serviceaccount:shop:web";
const PATH: &str = "/bank/tokens/";

/// Builds a request from an address of its own, so that the limit of wrong credentials does not apply.
fn with_bearer(api: &Api, token: &str, path: &str) -> RequestBuilder {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let address = Ipv4Addr::from_bits(0x0a00_0000 + NEXT.fetch_add(1, Ordering::Relaxed));
    let request = api.anonymous(Method::GET, path);
    request
        .header("x-forwarded-for", address.to_string())
        .bearer_auth(token)
}

/// Lists tokens with this bearer token.
async fn list(api: &Api, token: &str) -> Answer {
    send(with_bearer(api, token, PATH)).await
}

/// Starts an issuer with this key, and a replica with a client for [`SUBJECT`] that may read tokens.
async fn start(key: &SigningKey) -> (World, Issuer, Replica) {
    let (world, issuer) = (World::new().await, Issuer::start(&[key]).await);
    world
        .add_oidc_client("pod", SUBJECT, &[Scope::TokensRead])
        .await;
    let replica = world.replica_with(&issuer.settings()).await;
    (world, issuer, replica)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_names_a_client_and_grants_nothing_itself() {
    let key = SigningKey::new("k1", "ES256");
    let (world, issuer, replica) = start(&key).await;
    let scopes = [Scope::TokensIssue, Scope::AuditRead];
    world.add_oidc_client("person", "user-7", &scopes).await;
    let mut claims = issuer.claims("user-7");
    for claim in ["scope", "scp", "roles", "groups", "client_id", "azp"] {
        claims[claim] = json!("tokens:read admin");
    }
    let person = key.sign(&claims);
    let issue = replica
        .anonymous(Method::POST, PATH)
        .header("authorization", format!("bEARER  {person}"))
        .header("content-type", "application/json")
        .body(r#"{"userId":"u"}"#);
    assert_eq!(send(issue).await.status, 201);
    list(&replica, &person)
        .await
        .assert_problem(403, "forbidden");
    assert_eq!(
        list(&replica, &issuer.token(&key, SUBJECT)).await.status,
        200
    );
    assert_eq!(replica.get(PATH).await.status, 200, "Basic still works");
    let console = send(with_bearer(&replica, &person, "/console/")).await;
    assert_eq!(console.status, 200);
    let minted =
        "SELECT count(*) FROM audit_events WHERE kind = 'token.minted' AND client = 'person'";
    assert_eq!(world.count(minted).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_asymmetric_algorithm_is_accepted() {
    let algorithms = [
        "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
    ];
    let keys = algorithms.map(|algorithm| SigningKey::new(algorithm, algorithm));
    let (_world, issuer, replica) = start(&keys[0]).await;
    issuer.publish(&keys.each_ref());
    for key in &keys {
        let token = issuer.token(key, SUBJECT);
        assert_eq!(
            list(&replica, &token).await.status,
            200,
            "{}",
            key.algorithm
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_decides_about_the_algorithm() {
    let (rsa, pss) = (
        SigningKey::new("rsa", "RS256"),
        SigningKey::new("pss", "PS256"),
    );
    let (ec, shared) = (
        SigningKey::new("ec", "ES256"),
        b"a shared secret of 32 bytes or so",
    );
    let stranger = SigningKey::new("stranger", "ES256");
    let (_world, issuer, replica) = start(&rsa).await;
    let mut declared = pss.jwk();
    declared["alg"] = json!("PS256");
    let mut encryption = ec.jwk();
    (encryption["kid"], encryption["use"]) = (json!("enc"), json!("enc"));
    let symmetric = json!({"kty": "oct", "kid": "oct", "alg": "HS256", "k": encode(shared)});
    let unknown = json!({"kty": "AKP", "kid": "new", "alg": "ML-DSA-44", "pub": "AAAA"});
    let broken = json!({"kty": "RSA", "kid": 7});
    let keys = [
        rsa.jwk(),
        ec.jwk(),
        declared,
        encryption,
        symmetric,
        unknown,
        broken,
    ];
    issuer.publish_jwks(keys.into());
    // The replica reads the new keys.
    assert_eq!(
        list(&replica, &issuer.token(&ec, SUBJECT)).await.status,
        200
    );
    assert_eq!(
        list(&replica, &issuer.token(&pss, SUBJECT)).await.status,
        200
    );

    let claims = issuer.claims(SUBJECT).to_string();
    let unsigned = |algorithm: &str, kid: &str| {
        let header = json!({"alg": algorithm, "kid": kid});
        format!("{}.{}", encode(header.to_string()), encode(&claims))
    };
    let hmac = |kid: &str, secret: &[u8]| {
        let message = unsigned("HS256", kid);
        let tag = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, secret),
            message.as_bytes(),
        );
        format!("{message}.{}", encode(tag))
    };
    let public = rsa.jwk();
    let modulus = public["n"].as_str().unwrap();
    let header = |algorithm: &str, kid: &str| json!({"alg": algorithm, "kid": kid});
    let mut accepted = Vec::new();
    for (why, token) in [
        ("none", format!("{}.", unsigned("none", "rsa"))),
        ("None", format!("{}.", unsigned("None", "rsa"))),
        (
            "none with a signature",
            format!("{}.AAAA", unsigned("none", "rsa")),
        ),
        ("no signature", format!("{}.", unsigned("RS256", "rsa"))),
        ("HS256 with the modulus", hmac("rsa", modulus.as_bytes())),
        (
            "HS256 with the JWK",
            hmac("rsa", public.to_string().as_bytes()),
        ),
        ("HS256 with a published key", hmac("oct", shared)),
        (
            "RS256 with a key for PS256",
            rsa.sign_with(&header("RS256", "pss"), &claims),
        ),
        (
            "another algorithm than signed",
            rsa.sign_with(&header("RS512", "rsa"), &claims),
        ),
        (
            "another key than named",
            rsa.sign_with(&header("ES256", "ec"), &claims),
        ),
        (
            "a key for encryption",
            ec.sign_with(&header("ES256", "enc"), &claims),
        ),
        (
            "no kid and two keys",
            pss.sign_with(&json!({"alg": "PS256"}), &claims),
        ),
        (
            "a key in the header",
            stranger.sign_with(&json!({"alg": "ES256", "jwk": stranger.jwk()}), &claims),
        ),
        (
            "an unknown extension",
            rsa.sign_with(
                &json!({"alg": "RS256", "kid": "rsa", "crit": ["b64"], "b64": true}),
                &claims,
            ),
        ),
    ] {
        if list(&replica, &token).await.status != 401 {
            accepted.push(why);
        }
    }
    assert!(accepted.is_empty(), "{accepted:?}");
    // Without a kid, the only key that fits is used.
    let only = ec.sign_with(&json!({"alg": "ES256"}), &claims);
    assert_eq!(list(&replica, &only).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_are_checked() {
    let key = SigningKey::new("k1", "ES256");
    let (world, issuer, replica) = start(&key).await;
    let now = Utc::now().timestamp();
    let with = |claim: &str, value: Value| {
        let mut claims = issuer.claims(SUBJECT);
        claims[claim] = value;
        claims
    };
    for (claim, value) in [
        ("aud", json!(["other", "token-vendor"])),
        ("exp", json!(now - 10)),
        ("exp", json!(now as f64 + 60.5)),
        ("nbf", json!(now + 10)),
    ] {
        let token = key.sign(&with(claim, value.clone()));
        let answer = list(&replica, &token).await;
        assert_eq!(answer.status, 200, "{claim} {value}: {answer:?}");
    }
    let mut refused = vec![
        ("aud", json!("other")),
        ("aud", json!(["other", "token-vendor2"])),
        ("aud", json!([])),
        ("aud", json!("TOKEN-VENDOR")),
        ("iss", json!(format!("{}/", issuer.url))),
        ("iss", json!("https://issuer.example.com")),
        ("exp", json!(now - 60)),
        ("exp", json!(-1)),
        ("exp", json!((now + 60).to_string())),
        ("exp", json!(1e300)),
        ("nbf", json!(now + 60)),
        ("nbf", json!((now - 60).to_string())),
        ("sub", json!("system:serviceaccount:shop:other")),
        ("sub", json!("")),
        ("sub", json!(7)),
        ("sub", json!([SUBJECT])),
        ("sub", json!(format!("{SUBJECT}\0"))),
        ("sub", json!("x".repeat(2000))),
        ("sub", json!("pod")),
    ];
    for claim in ["aud", "iss", "exp", "nbf", "sub"] {
        refused.push((claim, Value::Null));
    }
    let count = refused.len();
    let mut accepted = Vec::new();
    for (claim, value) in refused {
        let answer = list(&replica, &key.sign(&with(claim, value.clone()))).await;
        if answer.status != 401 {
            accepted.push((claim, value, answer.status));
        }
    }
    assert!(accepted.is_empty(), "{accepted:?}");
    let twice = issuer
        .claims(SUBJECT)
        .to_string()
        .replacen('{', r#"{"sub":"x","#, 1);
    let twice = key.sign_with(&json!({"alg": "ES256", "kid": "k1"}), &twice);
    assert_eq!(list(&replica, &twice).await.status, 401, "two subjects");

    replica.service.stop().await;
    let denied = "SELECT coalesce(sum((detail->>'count')::bigint), 0)::bigint FROM audit_events
                  WHERE kind = 'access.denied' AND client IS NULL AND source_ip LIKE '10.%'";
    assert_eq!(world.count(denied).await, count as i64 + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_invalid_token_gets_the_same_response_with_both_challenges() {
    let key = SigningKey::new("k1", "ES256");
    let (_world, issuer, replica) = start(&key).await;
    let good = issuer.token(&key, SUBJECT);
    let mut large = issuer.claims(SUBJECT);
    large["groups"] = json!("x".repeat(14_000));
    let large = key.sign(&large);
    assert!(large.len() > 18_000);
    let [header, claims, signature] = *good.split('.').collect::<Vec<_>>() else {
        panic!("{good}");
    };
    let changed = claims.replacen('e', "f", 1);
    let get = || replica.anonymous(Method::GET, PATH);
    let requests = [
        get(),
        get().bearer_auth(""),
        get().bearer_auth("a"),
        get().bearer_auth("a.b.c"),
        get().bearer_auth("...."),
        get().bearer_auth(format!("{header}.{changed}.{signature}")),
        get().bearer_auth(format!("{header}.{claims}")),
        get().bearer_auth(format!("{good}.{signature}")),
        get().bearer_auth(format!("{good}=")),
        get().bearer_auth(format!("{good}, {good}")),
        get().bearer_auth(&large),
        get().bearer_auth(&good).bearer_auth(&good),
        get().bearer_auth(&good).basic_auth(ADMIN.0, Some(ADMIN.1)),
        get().basic_auth("pod", Some("")),
        get().basic_auth("wrong", Some("wrong")),
        get().header("authorization", &*good),
        get().header("authorization", format!("Bearer{good}")),
        get().header("authorization", format!("DPoP {good}")),
        get().header("authorization", &b"Bearer \xff"[..]),
    ];
    for (number, request) in requests.into_iter().enumerate() {
        let answer = send(request).await;
        answer.assert_problem(401, "unauthenticated");
        let challenges: Vec<_> = answer.headers.get_all("www-authenticate").iter().collect();
        assert_eq!(
            challenges,
            [
                r#"Basic realm="token-vendor", charset="UTF-8""#,
                r#"Bearer realm="token-vendor""#
            ],
            "{number}"
        );
        assert!(answer.text("detail").contains("bearer token"), "{number}");
    }
    assert_eq!(list(&replica, &good).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_client_is_refused_and_frees_its_subject() {
    let key = SigningKey::new("k1", "ES256");
    let (world, issuer, replica) = start(&key).await;
    let token = issuer.token(&key, SUBJECT);
    assert_eq!(list(&replica, &token).await.status, 200);
    let disabled = run(&["client", "disable", "pod"], &world.variables(&[])).await;
    assert_eq!(disabled.code, 0, "{disabled:?}");
    // A replica caches a client for 3 s.
    eventually("the disabled client is refused", async || {
        list(&replica, &token).await.status == 401
    })
    .await;
    world
        .add_oidc_client("pod-2", SUBJECT, &[Scope::TokensRead])
        .await;
    eventually("the next client has the subject", async || {
        list(&replica, &token).await.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_causes_one_fetch_at_a_time() {
    let keys = ["k1", "k2", "k3"].map(|id| SigningKey::new(id, "ES256"));
    let (_world, issuer, replica) = start(&keys[0]).await;
    assert_eq!(issuer.fetches(), 1, "at the start");
    for _ in 0..3 {
        let token = issuer.token(&keys[0], SUBJECT);
        assert_eq!(list(&replica, &token).await.status, 200);
    }
    assert_eq!(issuer.fetches(), 1, "a known key");

    // The issuer rotates its keys: all requests share one fetch and then succeed.
    issuer.publish(&[&keys[1]]);
    issuer.set_fault(Some(Fault::Slow));
    let tokens: Vec<String> = (0..20)
        .map(|number| {
            let mut claims = issuer.claims(SUBJECT);
            claims["jti"] = json!(number);
            keys[1].sign(&claims)
        })
        .collect();
    let answers = join_all(tokens.iter().map(|token| list(&replica, token))).await;
    assert!(
        answers.iter().all(|answer| answer.status == 200),
        "{answers:?}"
    );
    assert_eq!(issuer.fetches(), 2);

    // Within the same minute, forged tokens cannot cause another one.
    issuer.publish(&[&keys[1], &keys[2]]);
    for _ in 0..20 {
        let token = issuer.token(&keys[2], SUBJECT);
        assert_eq!(list(&replica, &token).await.status, 401);
    }
    assert_eq!(issuer.fetches(), 2);
    // The key that the issuer withdrew is unknown now.
    let mut claims = issuer.claims(SUBJECT);
    claims["jti"] = json!("new");
    assert_eq!(list(&replica, &keys[0].sign(&claims)).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_hangs_up_does_not_end_the_fetch() {
    let keys = ["k1", "k2"].map(|id| SigningKey::new(id, "ES256"));
    let (_world, issuer, replica) = start(&keys[0]).await;
    issuer.publish(&[&keys[1]]);
    issuer.set_fault(Some(Fault::Slow));
    let token = issuer.token(&keys[1], SUBJECT);
    tokio::select! {
        _ = list(&replica, &token) => {}
        () = eventually("the keys are requested", async || issuer.fetches() == 2) => {}
    }
    // An unknown key causes no other fetch for a minute.
    eventually("the fetch ends", async || {
        list(&replica, &token).await.status == 200
    })
    .await;
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_keys_stay_in_use_while_the_issuer_is_down() {
    let (key, other) = (
        SigningKey::new("k1", "ES256"),
        SigningKey::new("k2", "ES256"),
    );
    let (_world, issuer, replica) = start(&key).await;
    for fault in [
        Fault::Answer(503, "down".into()),
        Fault::Answer(200, "<html>".into()),
        Fault::Answer(
            200,
            json!({"issuer": issuer.url, "jwks_uri": "", "keys": []}).to_string(),
        ),
    ] {
        issuer.set_fault(Some(fault));
        let unknown = issuer.token(&other, SUBJECT);
        assert_eq!(list(&replica, &unknown).await.status, 401);
        let known = issuer.token(&key, SUBJECT);
        assert_eq!(list(&replica, &known).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_starts_while_the_issuer_is_down() {
    let key = SigningKey::new("k1", "ES256");
    let (world, issuer) = (World::new().await, Issuer::start(&[&key]).await);
    world
        .add_oidc_client("pod", SUBJECT, &[Scope::TokensRead])
        .await;
    let token = issuer.token(&key, SUBJECT);
    for fault in [
        Fault::Hang,
        Fault::Redirect,
        Fault::Answer(503, "down".into()),
        Fault::Answer(200, "x".repeat(300_000)),
    ] {
        issuer.set_fault(Some(fault));
        let replica = world.replica_with(&issuer.settings()).await;
        let refused = list(&replica, &token).await;
        refused.assert_problem(503, "issuer-unavailable");
        assert_eq!(refused.retry_after(), Some(5));
        assert_eq!(replica.get(PATH).await.status, 200, "Basic works");
        issuer.set_fault(None);
        eventually("the issuer is read again", async || {
            list(&replica, &token).await.status == 200
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_no_issuer_is_refused_with_one_sentence() {
    let key = SigningKey::new("k1", "ES256");
    let (world, issuer) = (World::new().await, Issuer::start(&[&key]).await);
    let variables = world.variables(&issuer.settings());
    let checked = run(&["check", "--online"], &variables).await;
    let line = format!("issuer: ok, {} can be read; usable keys: 1", issuer.url);
    assert!(
        checked.out.lines().any(|printed| printed == line),
        "{checked:?}"
    );

    let discovery = format!("{}/.well-known/openid-configuration", issuer.url);
    let named = |jwks: &str| json!({"issuer": issuer.url, "jwks_uri": jwks});
    let other = json!({"issuer": "https://other.example.com", "jwks_uri": "https://x/"});
    for (document, reason) in [
        (json!("x"), format!("{discovery} is no discovery document")),
        (
            other,
            format!(
                "{discovery} is of another issuer; set the exact text \"https://other.example.com\""
            ),
        ),
        (
            named("file:///etc/passwd"),
            format!("{discovery} has a jwks_uri that is no https:// URL"),
        ),
        (
            named("http://127.0.0.1:1/keys"),
            format!("{discovery} has a jwks_uri that is no https:// URL"),
        ),
        (
            named(&format!("{}/nothing", issuer.url)),
            format!("{}/nothing does not exist", issuer.url),
        ),
        (
            named(&discovery),
            format!("{discovery} is no JSON Web Key Set"),
        ),
    ] {
        issuer.set_discovery(document);
        let message = format!("AUTH_OIDC_ISSUER: {reason}");
        run(&["serve"], &variables).await.refused(2, &message);
        let checked = run(&["check", "--online"], &variables).await;
        assert_eq!(checked.code, 1, "{checked:?}");
        let line = format!("issuer: FAILED, {message}");
        assert!(
            checked.out.lines().any(|printed| printed == line),
            "{checked:?}"
        );
    }
    issuer.set_fault(Some(Fault::Answer(404, String::new())));
    let message = format!("AUTH_OIDC_ISSUER: {discovery} does not exist");
    run(&["serve"], &variables).await.refused(2, &message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_a_subject_has_no_secret() {
    let world = World::new().await;
    let variables = world.variables(&[]);
    let client =
        async |arguments: &[&str]| run(&[&["client"], arguments].concat(), &variables).await;
    let read = |ended: &Ended| -> Value {
        assert_eq!(ended.code, 0, "{ended:?}");
        serde_json::from_str(&ended.out).unwrap()
    };
    let create = |name| {
        let scope = ["--scope", "tokens:read", "--oidc-subject", SUBJECT];
        [&["create", "--name", name][..], &scope].concat()
    };
    let created = read(&client(&create("Pod")).await);
    let key = created["apiKey"].as_str().unwrap();
    assert_eq!(created["oidcSubject"], SUBJECT);
    assert!(created.get("apiSecret").is_none(), "{created}");
    let taken = format!("--oidc-subject: is the subject of client {key} already");
    client(&create("Other")).await.refused(2, &taken);
    client(&["rotate", key]).await.refused(1, "has no secret");
    let invalid = client(&["update", key, "--oidc-subject", "a\nb"]).await;
    assert!(
        invalid.code == 2 && invalid.err.contains("1 to 1024 bytes"),
        "{invalid:?}"
    );
    let listed = read(&client(&["list"]).await);
    assert!(listed.as_array().unwrap().contains(&created), "{listed}");
    let audited = "SELECT count(*) FROM audit_events WHERE kind = 'client.created'
                   AND detail->'after'->>'oidcSubject' = 'system:serviceaccount:shop:web'";
    assert_eq!(world.count(audited).await, 1);

    // A subject ends the secret of a client, and a client without one can have a secret again.
    let replica = world.replica().await;
    let update = |key: &str, subject: Value| {
        let body = json!({"oidcSubject": subject}).to_string();
        let request = replica.request(Method::PATCH, &format!("/clients/{key}"));
        send(
            request
                .header("content-type", "application/json")
                .body(body),
        )
    };
    let refused = update(ADMIN.0, json!(SUBJECT)).await;
    refused.assert_problem(400, "validation");
    assert_eq!(refused.body["errors"][0]["pointer"], "#/oidcSubject");
    let removed = update(key, Value::Null).await;
    assert_eq!(
        (removed.status, &removed.body["oidcSubject"]),
        (200, &Value::Null)
    );
    let rotated = read(&client(&["rotate", key]).await);
    let secret = rotated["apiSecret"].as_str().unwrap();
    let list = async || {
        send(replica.request_by((key, secret), Method::GET, "/bank/tokens/"))
            .await
            .status
    };
    assert_eq!(list().await, 200);
    assert_eq!(update(key, json!(SUBJECT)).await.status, 200);
    eventually("the secret ends", async || list().await == 401).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_bearer_token_is_logged() {
    let key = SigningKey::new("k1", "ES256");
    let (world, issuer) = (World::new().await, Issuer::start(&[&key]).await);
    world
        .add_oidc_client("pod", SUBJECT, &[Scope::TokensRead])
        .await;
    let [issuer_setting, audience, proxies] = issuer.settings();
    let settings = [issuer_setting, audience, proxies, ("RUST_LOG", "trace")];
    let mut process = Process::serve(&world.variables(&settings)).await;
    let api = Api::at(process.base.clone());
    let tokens = [issuer.token(&key, SUBJECT), issuer.token(&key, "unknown")];
    assert_eq!(list(&api, &tokens[0]).await.status, 200);
    assert_eq!(list(&api, &tokens[1]).await.status, 401);
    process.signal(nix::sys::signal::Signal::SIGTERM);
    let mut lines = process.early.split_off(0);
    while let Some(line) = process.logs.recv().await {
        lines.push(line);
    }
    assert!(lines.iter().any(|line| line.contains("pod")), "{lines:?}");
    for part in tokens.iter().flat_map(|token| token.split('.').skip(1)) {
        assert!(!lines.iter().any(|line| line.contains(part)));
    }
}
