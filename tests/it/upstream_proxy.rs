//! `UPSTREAM_PROXY`: calls to the provider through an HTTP proxy.

use serde_json::json;

use crate::support::cluster::own_folder;
use crate::support::proxy::{PROXY_CREDENTIALS, Proxy};
use crate::support::{Api, Process, World, run};

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_through_the_proxy_and_the_provider_sees_no_proxy_credentials() {
    let (world, proxy) = (World::new().await, Proxy::start().await);
    let replica = world
        .replica_with(&[("UPSTREAM_PROXY", &proxy.url())])
        .await;
    for user in ["u-1", "u-2"] {
        assert_eq!(replica.issue(json!({"userId": user})).await.status, 201);
    }
    let base = world.sandbox.base_url();
    let expected = format!("POST {base}/bank/tokens/ HTTP/1.1");
    assert_eq!(proxy.requests(), [expected.clone(), expected]);
    for entry in world.sandbox.ledger() {
        assert_eq!(entry.header("proxy-authorization"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_refuses_its_credentials_makes_the_provider_unavailable() {
    let (world, proxy) = (World::new().await, Proxy::start().await);
    let tunnel = "https://localhost:1";
    for (user_info, base_url) in [
        ("proxy-user:wrong", world.sandbox.base_url()),
        ("proxy-user:wrong", tunnel.into()),
    ] {
        let settings = [
            ("UPSTREAM_PROXY", &*proxy.url_with(user_info)),
            ("UPSTREAM_BASE_URL", &*base_url),
        ];
        let replica = world.replica_with(&settings).await;
        let failed = replica.issue(json!({"userId": base_url})).await;
        failed.assert_problem(503, "upstream-unavailable");
        let checked = run(&["check", "--online"], &world.variables(&settings)).await;
        assert_eq!(checked.code, 1, "{checked:?}");
        let reason = checked
            .out
            .lines()
            .find(|line| line.contains("upstream: FAILED"));
        let reason = reason.unwrap_or_else(|| panic!("{checked:?}"));
        assert!(reason.contains("through UPSTREAM_PROXY"), "{reason}");
        assert!(!checked.out.contains("wrong"), "{checked:?}");
    }
    assert_eq!(world.sandbox.requests(), 0);
    let minted = "SELECT count(*) FROM mints WHERE unseen > 0";
    assert_eq!(world.count(minted).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn https_goes_through_a_tunnel() {
    let (world, proxy) = (World::new().await, Proxy::start().await);
    let folder = own_folder();
    std::fs::create_dir_all(&folder).unwrap();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::write(&cert, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let cert = cert.to_str().unwrap();
    let files = [("TLS_CERT", cert), ("TLS_KEY", key.to_str().unwrap())];
    // A service with HTTPS stands in for the provider: the check needs only a response.
    let provider = world.replica_with(&files).await;
    let authority = format!("localhost:{}", provider.service.addr().port());
    let settings = [
        ("UPSTREAM_PROXY", &*proxy.url()),
        ("UPSTREAM_BASE_URL", &format!("https://{authority}")),
        ("SSL_CERT_FILE", cert),
    ];
    let checked = run(&["check", "--online"], &world.variables(&settings)).await;
    assert_eq!(checked.code, 0, "{checked:?}");
    assert!(
        checked
            .out
            .contains("responds with status 200 OK through UPSTREAM_PROXY"),
        "{checked:?}"
    );
    assert_eq!(proxy.requests(), [format!("CONNECT {authority} HTTP/1.1")]);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn check_masks_the_proxy_and_probes_the_provider_through_it() {
    let (world, proxy) = (World::new().await, Proxy::start().await);
    let path = own_folder();
    std::fs::write(&path, format!("{}\n", proxy.url())).unwrap();
    let file = path.to_str().unwrap();
    for (setting, source) in [
        (("UPSTREAM_PROXY", &*proxy.url()), "environment".into()),
        (("UPSTREAM_PROXY_FILE", file), format!("file {file}")),
    ] {
        // A proxy of the environment is no news where the service has its own.
        let settings = [setting, ("HTTPS_PROXY", "http://127.0.0.1:1")];
        let checked = run(&["check", "--online"], &world.variables(&settings)).await;
        assert_eq!(checked.code, 0, "{checked:?}");
        let shown = format!("UPSTREAM_PROXY=***  # source: {source}\n");
        assert!(checked.out.contains(&shown), "{checked:?}");
        assert!(!checked.out.contains("proxy: note"), "{checked:?}");
        for secret in [PROXY_CREDENTIALS.0, PROXY_CREDENTIALS.1, "proxy%2Fpass"] {
            assert!(!checked.out.contains(secret), "{checked:?}");
        }
    }
    let expected = format!("GET {}/ HTTP/1.1", world.sandbox.base_url());
    assert_eq!(proxy.requests(), [expected.clone(), expected]);
    std::fs::remove_file(path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_of_the_environment_is_ignored_and_check_says_so() {
    let (world, proxy) = (World::new().await, Proxy::start().await);
    for name in ["HTTPS_PROXY", "http_proxy", "ALL_PROXY"] {
        let variables = world.variables(&[(name, &proxy.url())]);
        let process = Process::serve(&variables).await;
        let answer = Api::at(process.base.clone())
            .issue(json!({"userId": name}))
            .await;
        assert_eq!(answer.status, 201);
        let checked = run(&["check", "--online"], &variables).await;
        assert_eq!(checked.code, 0, "{checked:?}");
        let note = format!("proxy: note, calls to the provider ignore {name};");
        assert!(checked.out.contains(&note), "{checked:?}");
        assert!(!checked.out.contains("proxy-user"), "{checked:?}");
    }
    assert!(proxy.requests().is_empty(), "{:?}", proxy.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_proxy_is_refused_without_being_quoted() {
    let world = World::new().await;
    for invalid in [
        "proxy.example:3128",
        "socks5://user:hush@proxy.example",
        "http://user:1/hush@proxy.example:3128",
        "http://user:hush#hush@proxy.example",
        "http://user:hush@proxy.example/path",
        "http://user:hush@proxy.example?a=b",
        "http://user:hush@",
        "http://user:hush@proxy.example:99999",
        "hush",
    ] {
        for command in ["check", "serve"] {
            let ended = run(&[command], &world.variables(&[("UPSTREAM_PROXY", invalid)])).await;
            ended.refused(2, "UPSTREAM_PROXY: must be a URL like http://");
            assert!(!ended.err.contains("hush"), "{ended:?}");
        }
    }
    let flag = run(&["serve", "--upstream-proxy", "http://h:1"], &[]).await;
    assert_eq!(flag.code, 2, "{flag:?}");
}
