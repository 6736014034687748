//! What a value may be.

use std::time::Duration;

use super::*;

#[test]
fn integers_have_bounds() {
    for setting in SETTINGS {
        let Kind::Integer(min, max) = setting.kind else {
            continue;
        };
        let name = setting.variable;
        assert!(load(&[(name, &min.to_string())]).is_ok(), "{name}");
        assert!(load(&[(name, &max.to_string())]).is_ok(), "{name}");
        let over = (max + 1).to_string();
        for wrong in [
            &over,
            "-1",
            "1.5",
            "1e3",
            " 3",
            "0x10",
            "99999999999999999999",
        ] {
            let expected = format!("{name}: {wrong:?} is not a whole number from {min} to {max}");
            assert_eq!(problem(&[(name, wrong)]), expected);
        }
        if min > 0 {
            problem(&[(name, &(min - 1).to_string())]);
        }
    }
}

#[test]
fn durations_have_bounds_and_a_unit() {
    for setting in SETTINGS {
        let Kind::Span(min, max) = setting.kind else {
            continue;
        };
        let name = setting.variable;
        let text = |duration: Duration| humantime::format_duration(duration).to_string();
        assert!(load(&[(name, &text(min))]).is_ok(), "{name}");
        assert!(load(&[(name, &text(max))]).is_ok(), "{name}");
        let over = problem(&[(name, &text(max + Duration::from_millis(1)))]);
        assert!(over.contains(" is not between "), "{over}");
        if min > Duration::ZERO {
            problem(&[(name, &text(min - Duration::from_millis(1)))]);
        }
        for wrong in [
            "30",
            "-1s",
            "s",
            "1 fortnight",
            "off",
            "99999999999999999999y",
        ] {
            assert_eq!(
                problem(&[(name, wrong)]),
                format!("{name}: {wrong:?} is not a duration like 500ms, 30s or 7d")
            );
        }
    }
}

#[test]
fn the_upstream_address_is_https_or_loopback() {
    let base = |url: &str| load(&[("UPSTREAM_BASE_URL", url)]).map(|c| c.upstream.base_url);
    for loopback in [
        "http://127.0.0.1:8081",
        "http://127.8.9.1",
        "http://[::1]:8081",
        "http://localhost:8081",
        "HTTP://LOCALHOST",
    ] {
        assert!(base(loopback).is_ok(), "{loopback}");
    }
    for outside in [
        "http://ivs.idenfy.com",
        "http://10.0.0.1",
        "http://localhost.example",
        "http://127.0.0.1.example",
        "http://[::2]",
        "http://0.0.0.0",
    ] {
        let message = problem(&[("UPSTREAM_BASE_URL", outside)]);
        assert!(
            message.starts_with("UPSTREAM_BASE_URL: must be https://"),
            "{message}"
        );
        let allowed = [
            ("UPSTREAM_BASE_URL", outside),
            ("UPSTREAM_ALLOW_HTTP", "true"),
        ];
        assert!(load(&allowed).is_ok(), "{outside}");
    }
    assert_eq!(base("https://h/a").unwrap().as_str(), "https://h/a/");
}

#[test]
fn urls_have_a_shape() {
    for (name, wrong, why) in [
        ("UPSTREAM_BASE_URL", "ivs.idenfy.com", "absolute"),
        ("UPSTREAM_BASE_URL", "ftp://h", "absolute"),
        ("UPSTREAM_BASE_URL", "https:h", "absolute"),
        ("UPSTREAM_BASE_URL", "https://", "absolute"),
        ("UPSTREAM_BASE_URL", " https://h", "absolute"),
        ("UPSTREAM_BASE_URL", "https://u:hush@h", "credentials"),
        ("UPSTREAM_BASE_URL", "https://hush@h", "credentials"),
        ("UPSTREAM_BASE_URL", "https://h/?a=b", "query"),
        ("UPSTREAM_BASE_URL", "https://h/#a", "fragment"),
        ("VERIFICATION_BASE_URL", "/verify?token=", "absolute"),
        ("VERIFICATION_BASE_URL", "https://h/?a b=", "absolute"),
        (
            "VERIFICATION_BASE_URL",
            "https://u:hush@h/?t=",
            "credentials",
        ),
        ("DATABASE_URL", "mysql://u:hush@h/d", "postgres://"),
        ("DATABASE_URL", "u:hush@h/d", "postgres://"),
        ("DATABASE_URL", "postgres:hush", "postgres://"),
        ("DATABASE_URL", "postgres://u:hush@h:port/d", "postgres://"),
        ("DATABASE_URL", "postgres://u:1#hush@h/d", "percent-encode"),
        ("DATABASE_URL", "postgres://u:1/hush@h/d", "percent-encode"),
        ("READ_DATABASE_URL", "hush", "postgres://"),
    ] {
        let message = problem(&[(name, wrong)]);
        assert!(message.starts_with(name), "{message}");
        assert!(message.contains(why), "{message}");
        assert!(!message.contains("hush"), "{message}");
    }
    assert!(load(&[("VERIFICATION_BASE_URL", "https://h/v#token=")]).is_ok());
}

#[test]
fn keys_have_a_shape() {
    let long_id = "i".repeat(33);
    let short = "AQEB";
    let long = format!("{}AQEB", KEY_1.trim_end_matches('='));
    for (wrong, why) in [
        (KEY_1.to_owned(), "entry 1 is not id:base64-of-32-bytes"),
        (format!("{long_id}:{KEY_1}"), "the id of entry 1"),
        (format!("{KEY_1}:k1"), "the id of entry 1"),
        (format!(":{KEY_1}"), "the id of entry 1"),
        (
            format!("k1:{KEY_1},"),
            "entry 2 is not id:base64-of-32-bytes",
        ),
        (format!("k1:{short}"), "the key of entry 1"),
        (format!("k1:{long}"), "the key of entry 1"),
        (
            format!("k1:{}", KEY_1.replace('=', "*")),
            "the key of entry 1",
        ),
        (
            format!("k1:{KEY_1},k1:{KEY_2}"),
            "entries 1 and 2 have the same id",
        ),
        (
            format!("k1:{KEY_1},k2:{KEY_1}"),
            "entries 1 and 2 have the same key",
        ),
    ] {
        let message = problem(&[("TOKEN_KEYS", &wrong)]);
        assert!(
            message.starts_with(&format!("TOKEN_KEYS: {why}")),
            "{message}"
        );
        assert!(!message.contains("AQEB"), "{message}");
    }
    let unpadded = KEY_1.trim_end_matches('=');
    assert!(load(&[("TOKEN_KEYS", &format!("a-Z_9:{unpadded}, k2:{KEY_2}"))]).is_ok());
    assert_eq!(
        problem(&[("FINGERPRINT_KEY", short)]),
        "FINGERPRINT_KEY: is not base64 of 32 bytes"
    );
    assert_eq!(
        problem(&[("FINGERPRINT_KEY", unpadded)]),
        "FINGERPRINT_KEY: must differ from every key in TOKEN_KEYS"
    );
}

#[test]
fn the_other_values_have_a_shape() {
    assert!(problem(&[("LISTEN_ADDR", "localhost:8080")]).contains("like 127.0.0.1:8080"));
    assert!(problem(&[("UPSTREAM_ALLOW_HTTP", "yes")]).ends_with("neither true nor false"));
    assert!(problem(&[("UPSTREAM_API_SECRET", "a\nb")]).ends_with("control characters"));
    assert_eq!(
        problem(&[("TRUSTED_PROXIES", "10.0.0.0/8,10.0.0.0/33")]),
        "TRUSTED_PROXIES: \"10.0.0.0/33\" is not a CIDR like 10.0.0.0/8"
    );
    let config = load(&[("TRUSTED_PROXIES", "10.0.0.0/8, ::1,fd00::/8")]).unwrap();
    let proxies = config.http.trusted_proxies.iter().map(ToString::to_string);
    assert_eq!(
        proxies.collect::<Vec<_>>(),
        ["10.0.0.0/8", "::1/128", "fd00::/8"]
    );
}

#[test]
fn tls_needs_both_files() {
    let file = TempFile::new(b"PEM");
    let both = [("TLS_CERT", file.path()), ("TLS_KEY", file.path())];
    assert_eq!(load(&both).unwrap().http.tls.unwrap().cert, file.0);
    assert_eq!(
        problem(&both[..1]),
        "TLS_KEY: is required where TLS_CERT is set"
    );
    assert_eq!(
        problem(&both[1..]),
        "TLS_CERT: is required where TLS_KEY is set"
    );
}
