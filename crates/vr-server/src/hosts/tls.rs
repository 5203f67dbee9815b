//! Whom an agent's certificate has to show, and what this server shows in return.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};

use super::settings::{AgentSettings, Fingerprint};

/// Why TLS cannot be set up.
#[derive(Debug, Error)]
pub enum TlsSettingsError {
    /// A file cannot be read, or is no PEM file.
    #[error("HOSTS.agent.{key}: cannot read {}: {source}", path.display())]
    File {
        /// The setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file has nothing of what it should have.
    #[error("HOSTS.agent.{key}: there is no {what} in {}", path.display())]
    Empty {
        /// The setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
    },
    /// The key is not the certificate's, or of a kind that is not supported.
    #[error("HOSTS.agent: the certificate and the key cannot be used: {0}")]
    Identity(#[source] TlsError),
    /// Nothing would be trusted.
    #[error("HOSTS.agent.ca_file is not set, and this machine trusts no certificates at all")]
    NoRoots,
}

/// The client's side of TLS with agents.
///
/// # Errors
/// [`TlsSettingsError`].
pub fn client_config(settings: &AgentSettings) -> Result<Arc<ClientConfig>, TlsSettingsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsSettingsError::Identity)?;
    let builder = match &settings.fingerprint {
        Some(fingerprint) => {
            let pinned = Pinned { fingerprint: fingerprint.clone(), provider };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(pinned))
        }
        None => {
            let roots = roots(settings.ca_file.as_deref())?;
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|_| TlsSettingsError::NoRoots)?;
            builder.with_webpki_verifier(verifier)
        }
    };
    let config = match (&settings.certificate_file, &settings.key_file) {
        (Some(certificate_file), Some(key_file)) => {
            let chain = certificates("certificate_file", certificate_file)?;
            let key = PrivateKeyDer::from_pem_file(key_file)
                .map_err(|source| unreadable("key_file", key_file, source))?;
            builder.with_client_auth_cert(chain, key).map_err(TlsSettingsError::Identity)?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsSettingsError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            for certificate in certificates("ca_file", path)? {
                roots.add(certificate).map_err(|e| unreadable("ca_file", path, io::Error::other(e)))?;
            }
        }
        None => {
            // What cannot be read among the system's certificates is not trusted, and that is all.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(roots)
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsSettingsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|source| unreadable(key, path, source))?;
    if found.is_empty() {
        return Err(TlsSettingsError::Empty { key, path: path.to_owned(), what: "certificate" });
    }
    Ok(found)
}

fn unreadable(
    key: &'static str,
    path: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> TlsSettingsError {
    TlsSettingsError::File { key, path: path.to_owned(), source: source.into() }
}

/// Trusts one certificate, whoever signed it, and whatever name it is for.
#[derive(Debug)]
struct Pinned {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let found: [u8; 32] = Sha256::digest(end_entity).into();
        if found == self.fingerprint.0 {
            return Ok(ServerCertVerified::assertion());
        }
        Err(TlsError::General(format!(
            "its certificate has the fingerprint {}, expected {}",
            Fingerprint(found),
            self.fingerprint
        )))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let known = &self.provider.signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let known = &self.provider.signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
