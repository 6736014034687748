//! The certificate and the private key of HTTPS, reloaded when their files change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// Time between two reads of the files.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

/// The certificate that new connections get. It changes when the files of `TLS_CERT` and `TLS_KEY`
/// contain another pair.
#[derive(Debug)]
pub struct ServerCertificate {
    cert: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ServerCertificate {
    /// Reads the certificate chain and the private key from PEM files, and checks that they match.
    /// Errors name the setting to correct.
    pub(super) fn read(cert: &Path, key: &Path) -> anyhow::Result<Self> {
        Ok(ServerCertificate {
            cert: cert.into(),
            key: key.into(),
            current: RwLock::new(Arc::new(read_pair(cert, key)?)),
        })
    }

    /// Returns the TLS settings of a server with this certificate.
    pub fn server_config(self: Arc<Self>) -> ServerConfig {
        let _ = default_provider().install_default();
        ServerConfig::builder()
            .with_no_client_auth()
            .with_cert_resolver(self)
    }

    /// Reads the files every 2 s and never returns. Open connections keep their certificate.
    ///
    /// An unusable pair leaves the previous one in use. It is logged if two reads in a row find it,
    /// because the two files are usually replaced one after the other.
    pub async fn reload_periodically(self: Arc<Self>) {
        let (mut last_error, mut repetitions) = (String::new(), 0);
        loop {
            sleep(RELOAD_INTERVAL).await;
            let certificate = self.clone();
            let reloaded = spawn_blocking(move || certificate.reload()).await;
            let error = match reloaded.unwrap_or_else(|error| Err(error.into())) {
                Ok(is_new) => {
                    if is_new {
                        tracing::info!("new connections get the new TLS certificate");
                    }
                    String::new()
                }
                Err(error) => format!("{error:#}"),
            };
            repetitions = if error == last_error {
                repetitions + 1
            } else {
                0
            };
            last_error = error;
            if repetitions == 1 && !last_error.is_empty() {
                tracing::error!(
                    error = last_error,
                    cert = %self.cert.display(),
                    key = %self.key.display(),
                    "the TLS files cannot be used; new connections still get the previous certificate"
                );
            }
        }
    }

    /// Reads the files and returns whether their certificate is another one than before.
    ///
    /// Compares the contents. A secret of Kubernetes changes by a symbolic link, and its files can have
    /// any time.
    fn reload(&self) -> anyhow::Result<bool> {
        let pair = read_pair(&self.cert, &self.key)?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // The key matches the certificate, so the same certificate has the same key.
        let is_new = current.cert != pair.cert;
        if is_new {
            *current = Arc::new(pair);
        }
        Ok(is_new)
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(current.clone())
    }
}

fn read_pair(cert: &Path, key: &Path) -> anyhow::Result<CertifiedKey> {
    let certificates = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .context("TLS_CERT: the file is not a PEM certificate chain")?;
    let key =
        PrivateKeyDer::from_pem_file(key).context("TLS_KEY: the file is not a PEM private key")?;
    CertifiedKey::from_der(certificates, key, &default_provider())
        .context("TLS_CERT: the first certificate in the file does not match TLS_KEY")
}
