//! HTTPS: the certificate and the key are reloaded when their files change.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::{Process, World, eventually};

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// A certificate and its key in PEM.
struct Pair {
    certificate: CertificateDer<'static>,
    cert_pem: String,
    key_pem: String,
}

impl Pair {
    fn new() -> Pair {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        Pair {
            certificate: pair.cert.der().clone(),
            cert_pem: pair.cert.pem(),
            key_pem: pair.signing_key.serialize_pem(),
        }
    }
}

/// The files of `TLS_CERT` and `TLS_KEY`, behind a symbolic link as Kubernetes mounts a secret, and two
/// pairs of which they contain the first. Removed on drop.
pub struct CertificateFiles {
    folder: PathBuf,
    cert: String,
    key: String,
    old: Pair,
    new: Pair,
}

impl CertificateFiles {
    pub fn new() -> CertificateFiles {
        let folder = format!("token-vendor-tls-{}", uuid::Uuid::now_v7());
        let folder = std::env::temp_dir().join(folder);
        let path = |name: &str| folder.join("data").join(name).to_str().unwrap().to_owned();
        let files = CertificateFiles {
            cert: path("cert.pem"),
            key: path("key.pem"),
            folder,
            old: Pair::new(),
            new: Pair::new(),
        };
        files.publish("1", &files.old);
        files
    }

    /// Writes the pair into a new folder and points the link to it. All files have the same times.
    fn publish(&self, version: &str, pair: &Pair) {
        let folder = self.folder.join(version);
        fs::create_dir_all(&folder).unwrap();
        for (name, content) in [("cert.pem", &pair.cert_pem), ("key.pem", &pair.key_pem)] {
            fs::write(folder.join(name), content).unwrap();
            let file = fs::File::options().append(true).open(folder.join(name));
            file.unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        let link = self.folder.join("link");
        symlink(version, &link).unwrap();
        fs::rename(link, self.folder.join("data")).unwrap();
    }

    /// Returns the settings that name the files.
    pub fn settings(&self) -> [(&str, &str); 2] {
        [("TLS_CERT", &self.cert), ("TLS_KEY", &self.key)]
    }

    /// Opens a connection and completes its handshake.
    pub fn connect(&self, address: SocketAddr) -> Stream {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut roots = RootCertStore::empty();
        for pair in [&self.old, &self.new] {
            roots.add(pair.certificate.clone()).unwrap();
        }
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = StreamOwned::new(client, TcpStream::connect(address).unwrap());
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        stream
    }

    /// Returns whether a new connection gets the new certificate.
    fn is_new_served(&self, address: SocketAddr) -> bool {
        let stream = self.connect(address);
        stream.conn.peer_certificates().unwrap()[0] == self.new.certificate
    }
}

impl Drop for CertificateFiles {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Sends a `GET` without credentials and returns the response. Its body must have a `Content-Length`.
pub fn exchange(stream: &mut Stream, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let (mut response, mut buffer) = (String::new(), [0; 4096]);
    loop {
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "the connection ended: {response}");
        response += str::from_utf8(&buffer[..length]).unwrap();
        if let Some((head, body)) = response.split_once("\r\n\r\n") {
            let (_, rest) = head.split_once("content-length: ").unwrap();
            if body.len() == rest.lines().next().unwrap().parse::<usize>().unwrap() {
                return response;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_served_and_open_connections_stay() {
    let world = World::new().await;
    let files = CertificateFiles::new();
    let replica = world.replica_with(&files.settings()).await;
    let address = replica.service.addr();
    let mut open = files.connect(address);
    assert!(exchange(&mut open, "/health/live").starts_with("HTTP/1.1 200"));
    assert!(!files.is_new_served(address));
    files.publish("2", &files.new);
    eventually("the new certificate is served", async || {
        files.is_new_served(address)
    })
    .await;
    assert!(exchange(&mut open, "/health/live").starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_do_not_match_are_reported_and_the_old_certificate_is_served() {
    let world = World::new().await;
    let files = CertificateFiles::new();
    let mut process = Process::serve(&world.variables(&files.settings())).await;
    let address = process.address();
    fs::write(&files.key, "no key").unwrap();
    let reported = process.next_line().await;
    assert!(reported.contains("TLS_KEY: "), "{reported}");
    assert!(reported.contains(&files.key), "{reported}");
    fs::write(&files.cert, &files.new.cert_pem).unwrap();
    fs::write(&files.key, &files.old.key_pem).unwrap();
    process.logs_with("does not match TLS_KEY").await;
    assert!(!files.is_new_served(address));
    fs::write(&files.key, &files.new.key_pem).unwrap();
    eventually("the new certificate is served", async || {
        files.is_new_served(address)
    })
    .await;
}
