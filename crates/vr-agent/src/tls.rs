//! TLS of the API: the files that it is made of, and their renewal while the agent runs.
//!
//! Knows nothing of what is served over it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};
use tracing::{error, info};

use crate::files::{self, Stamp};

/// How often the files are looked at, at most; nobody looks while nobody connects.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The longest file, in bytes: more than all authorities of the web.
const FILE_LIMIT: u64 = 4 << 20;

/// Where certificates and keys are, all in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The agent's certificate, and those between it and the authority that its callers know.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// The authorities whose certificates callers may show.
    pub client_ca: Option<PathBuf>,
    /// Whether callers without a certificate are turned away at once.
    pub only_certificates: bool,
}

/// Why there is no TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} holds no usable {expected} in PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
        /// Why, unless there simply is none.
        source: Option<pem::Error>,
    },
    /// Certificate and key do not fit together, or are of a kind that is not supported.
    #[error("{} and {} cannot be used together", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// An authority's certificate is of a kind that is not supported.
    #[error("{} holds an authority that cannot be used", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The library offers no version of TLS.
    #[error("TLS cannot be used")]
    Library(#[source] rustls::Error),
}

impl TlsFiles {
    /// Reads everything.
    pub fn read(&self) -> Result<ServerConfig, TlsError> {
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Library)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
                    roots.add(authority).map_err(|e| authority_error(path, e))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier =
                    if self.only_certificates { verifier } else { verifier.allow_unauthenticated() };
                let verifier =
                    verifier.build().map_err(|e: VerifierBuilderError| authority_error(path, e))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .map_err(|e| pem_error(&self.key, "private key", e))?;
        let mut config =
            builder.with_single_cert(certificates(&self.certificate)?, key).map_err(|source| {
                TlsError::Pair { certificate: self.certificate.clone(), key: self.key.clone(), source }
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// What tells whether a file is still the same.
    fn stamps(&self) -> Vec<Option<Stamp>> {
        let files = [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()];
        files.into_iter().flatten().map(|path| Stamp::of(path)).collect()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    files::read(path, FILE_LIMIT).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let found = found.map_err(|e| pem_error(path, "certificate", e))?;
    if found.is_empty() {
        return Err(pem_error(path, "certificate", pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn pem_error(path: &Path, expected: &'static str, source: pem::Error) -> TlsError {
    let source = Some(source).filter(|source| !matches!(source, pem::Error::NoItemsFound));
    TlsError::Pem { path: path.to_owned(), expected, source }
}

fn authority_error(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> TlsError {
    TlsError::Authority { path: path.to_owned(), source: source.into() }
}

/// TLS as it is now. Files that have changed are read again when somebody connects; while they cannot be used, what was
/// read before goes on.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    /// The files when they were last read, whether they could be used or not.
    stamps: Vec<Option<Stamp>>,
    looked: Instant,
}

impl Tls {
    /// Reads the files for the first time.
    pub fn open(files: TlsFiles) -> Result<Self, TlsError> {
        // Stamps first: what changes while it is read is read again.
        let stamps = files.stamps();
        let config = Arc::new(files.read()?);
        Ok(Self { files, current: Mutex::new(Current { config, stamps, looked: Instant::now() }) })
    }

    /// For the next connection.
    pub async fn config(self: &Arc<Self>) -> Arc<ServerConfig> {
        let (config, looked) = {
            let current = self.lock();
            (Arc::clone(&current.config), current.looked)
        };
        if looked.elapsed() < LOOK_EVERY {
            return config;
        }
        let tls = Arc::clone(self);
        // Files may be on a disk that hangs; the runtime must not.
        tokio::task::spawn_blocking(move || tls.look(false)).await.unwrap_or(config)
    }

    /// Reads the files again, if they have changed or if it is asked for.
    pub fn look(&self, all_the_same: bool) -> Arc<ServerConfig> {
        let stamps = self.files.stamps();
        {
            let mut current = self.lock();
            current.looked = Instant::now();
            if current.stamps == stamps && !all_the_same {
                return Arc::clone(&current.config);
            }
        }
        let read = self.files.read();
        let mut current = self.lock();
        current.stamps = stamps;
        match read {
            Ok(config) => {
                current.config = Arc::new(config);
                info!(certificate = %self.files.certificate.display(), "read the certificates again");
            }
            Err(e) => error!("the certificates from before go on: {}", vr_common::exit::chain(&e)),
        }
        Arc::clone(&current.config)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        // Nothing is left half-changed under this lock.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Pair {
        certificate: String,
        key: String,
    }

    fn pair() -> Pair {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        Pair { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }

    fn files(folder: &Path, pair: &Pair) -> TlsFiles {
        let files = TlsFiles {
            certificate: folder.join("cert.pem"),
            key: folder.join("key.pem"),
            client_ca: None,
            only_certificates: false,
        };
        fs::write(&files.certificate, &pair.certificate).unwrap();
        fs::write(&files.key, &pair.key).unwrap();
        files
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let good = pair();
        let mut files = files(dir.path(), &good);
        files.read().unwrap();

        fs::write(&files.key, pair().key).unwrap();
        let said = vr_common::exit::chain(&files.read().unwrap_err());
        assert!(said.contains("key.pem cannot be used together"), "{said}");
        fs::write(&files.key, &good.certificate).unwrap();
        let said = vr_common::exit::chain(&files.read().unwrap_err());
        assert!(said.ends_with("key.pem holds no usable private key in PEM"), "{said}");
        fs::write(&files.key, &good.key).unwrap();

        files.client_ca = Some(dir.path().join("ca.pem"));
        let said = vr_common::exit::chain(&files.read().unwrap_err());
        assert!(said.contains("ca.pem: No such file"), "{said}");
        fs::write(dir.path().join("ca.pem"), "hello").unwrap();
        let said = vr_common::exit::chain(&files.read().unwrap_err());
        assert!(said.ends_with("ca.pem holds no usable certificate in PEM"), "{said}");

        // Authorities beyond the limit must not be left out in silence.
        let mut many = good.certificate.clone();
        many.extend(std::iter::repeat_n('\n', usize::try_from(FILE_LIMIT).unwrap()));
        fs::write(dir.path().join("ca.pem"), many + &good.certificate).unwrap();
        let said = vr_common::exit::chain(&files.read().unwrap_err());
        assert!(said.ends_with("ca.pem: it is longer than 4194304 bytes"), "{said}");
    }

    #[test]
    fn changed_files_are_used_and_broken_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (pair(), pair());
        let files = files(dir.path(), &first);
        let tls = Tls::open(files.clone()).unwrap();
        let before = tls.look(false);
        assert!(Arc::ptr_eq(&before, &tls.look(false)), "nothing has changed");
        assert!(!Arc::ptr_eq(&before, &tls.look(true)), "it was asked for");
        let before = tls.look(false);

        // Half of a change: the new certificate with the old key.
        fs::write(&files.certificate, &second.certificate).unwrap();
        assert!(Arc::ptr_eq(&before, &tls.look(false)));
        fs::write(&files.key, &second.key).unwrap();
        let after = tls.look(false);
        assert!(!Arc::ptr_eq(&before, &after));
        fs::remove_file(&files.key).unwrap();
        assert!(Arc::ptr_eq(&after, &tls.look(false)));
    }
}
