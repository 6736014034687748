//! The certificate that HTTPS is served with.

use std::path::Path;

use anyhow::Context;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The certificate and its key, from their PEM files, if they go together.
pub(super) fn read_tls(cert: &Path, key: &Path) -> anyhow::Result<ServerConfig> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let certificates = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .context("is no PEM file of certificates")?;
    let key = PrivateKeyDer::from_pem_file(key)
        .context("goes with TLS_KEY, which is no PEM file of a private key")?;
    ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .context("its first certificate is not that of TLS_KEY")
}
