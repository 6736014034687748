//! Reads the certificate and the private key of HTTPS.

use std::path::Path;

use anyhow::Context;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Reads the certificate chain and the private key from PEM files, and checks that they match.
/// Errors name the setting to correct.
pub(super) fn read_tls(cert: &Path, key: &Path) -> anyhow::Result<ServerConfig> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let certificates = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .context("TLS_CERT: the file is not a PEM certificate chain")?;
    let key =
        PrivateKeyDer::from_pem_file(key).context("TLS_KEY: the file is not a PEM private key")?;
    ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .context("TLS_CERT: the first certificate in the file does not match TLS_KEY")
}
