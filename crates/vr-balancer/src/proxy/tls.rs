//! TLS to clients: certificates from files, chosen by the name that the client asks for, and read again when the files
//! change. Connections that are open are not touched by that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};
use vr_common::exit::chain;

use super::files::Stamp;
use super::options::{CertificateFiles, MinTls};

/// The longest file, in bytes.
const FILE_LIMIT: u64 = 1 << 20;

/// Why a certificate cannot be used.
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
        /// Why.
        source: pem::Error,
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
    /// The library offers no version of TLS.
    #[error("TLS cannot be used")]
    Library(#[source] rustls::Error),
}

/// A certificate as it is in use.
struct Loaded {
    files: CertificateFiles,
    /// As the files were when they were last read, whether they could be used or not.
    stamps: [Option<Stamp>; 2],
    key: Arc<CertifiedKey>,
}

impl Loaded {
    fn read(files: &CertificateFiles, provider: &CryptoProvider) -> Result<Self, TlsError> {
        // Stamps first: what changes while it is read is read again.
        let stamps = stamps(files);
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(&files.certificate)?).collect();
        let chain =
            chain.and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) });
        let bad = |path: &Path, expected, source| TlsError::Pem { path: path.to_owned(), expected, source };
        let chain = chain.map_err(|e| bad(&files.certificate, "certificate", e))?;
        let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
            .map_err(|e| bad(&files.key, "private key", e))?;
        let pair = |source| TlsError::Pair {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            source,
        };
        let key = provider.key_provider.load_private_key(key).map_err(pair)?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(pair)?;
        key.end_entity_cert().and_then(ParsedCertificate::try_from).map_err(pair)?;
        Ok(Self { files: files.clone(), stamps, key: Arc::new(key) })
    }

    fn is_for(&self, name: &ServerName<'_>) -> bool {
        let parsed = self.key.end_entity_cert().and_then(ParsedCertificate::try_from);
        parsed.is_ok_and(|parsed| verify_server_name(&parsed, name).is_ok())
    }
}

fn stamps(files: &CertificateFiles) -> [Option<Stamp>; 2] {
    [Stamp::of(&files.certificate), Stamp::of(&files.key)]
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let read = || {
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(fs::File::open(path)?, FILE_LIMIT + 1), &mut bytes)?;
        if bytes.len() as u64 > FILE_LIMIT {
            return Err(io::Error::other(format!("it is longer than {FILE_LIMIT} bytes")));
        }
        Ok(bytes)
    };
    read().map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// All certificates, for handshakes to choose from while they are read again.
pub(super) struct Certificates {
    provider: CryptoProvider,
    current: ArcSwap<Vec<Arc<Loaded>>>,
    /// Held while the files are read.
    reading: Mutex<()>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let files: Vec<_> =
            self.current.load().iter().map(|loaded| loaded.files.certificate.clone()).collect();
        f.debug_tuple("Certificates").field(&files).finish()
    }
}

impl Certificates {
    /// Reads them for the first time; all of them have to be good.
    pub(super) fn open(files: &[CertificateFiles]) -> Result<Self, TlsError> {
        let provider = ring::default_provider();
        let loaded: Result<Vec<_>, _> =
            files.iter().map(|files| Loaded::read(files, &provider).map(Arc::new)).collect();
        Ok(Self { provider, current: ArcSwap::from_pointee(loaded?), reading: Mutex::new(()) })
    }

    /// Reads the files that have changed, or all of them if it is asked for. A certificate whose files cannot be used
    /// stays as it is.
    pub(super) fn look(&self, all_the_same: bool) {
        let files: Vec<_> = self.current.load().iter().map(|loaded| loaded.files.clone()).collect();
        self.replace(&files, all_the_same);
    }

    /// Makes these the certificates. One that is in use already is read again only if its files have changed, or if it
    /// is asked for.
    pub(super) fn replace(&self, files: &[CertificateFiles], all_the_same: bool) {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.current.load_full();
        let mut changed = files.len() != before.len();
        let after: Vec<Arc<Loaded>> = files
            .iter()
            .filter_map(|files| {
                let old = before.iter().find(|loaded| loaded.files == *files);
                if let Some(old) = old.filter(|old| !all_the_same && stamps(files) == old.stamps) {
                    return Some(Arc::clone(old));
                }
                changed = true;
                match Loaded::read(files, &self.provider) {
                    Ok(loaded) => {
                        let is_new = old.is_none_or(|old| old.key.cert != loaded.key.cert);
                        if is_new {
                            tracing::info!(certificate = %files.certificate.display(), "a certificate was read");
                        }
                        Some(Arc::new(loaded))
                    }
                    Err(error) => {
                        let error = chain(&error);
                        let certificate = files.certificate.display();
                        match old {
                            Some(_) => tracing::error!(
                                %certificate, error, "a certificate cannot be read again, the old one stays in use"
                            ),
                            None => tracing::error!(%certificate, error, "a certificate cannot be read"),
                        }
                        // Said once, until the files change again.
                        old.map(|old| {
                            Arc::new(Loaded {
                                files: files.clone(),
                                stamps: stamps(files),
                                key: Arc::clone(&old.key),
                            })
                        })
                    }
                }
            })
            .collect();
        if changed && !after.is_empty() {
            self.current.store(Arc::new(after));
        }
    }

    /// What connections are accepted with.
    pub(super) fn acceptor(self: &Arc<Self>, oldest: MinTls) -> Result<TlsAcceptor, TlsError> {
        let versions: &[&rustls::SupportedProtocolVersion] = match oldest {
            MinTls::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            MinTls::V1_3 => &[&rustls::version::TLS13],
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(self.provider.clone()))
            .with_protocol_versions(versions)
            .map_err(TlsError::Library)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ResolvesServerCert for Certificates {
    /// The first certificate that is for the name and that the client can check; the first of all for clients that
    /// name no host, or one that none is for, as they may know what they do.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.load();
        let fits = |loaded: &&Arc<Loaded>| loaded.key.key.choose_scheme(hello.signature_schemes()).is_some();
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let named = name.and_then(|name| {
            let mut named = current.iter().filter(|loaded| loaded.is_for(&name));
            named.clone().find(fits).or_else(|| named.next())
        });
        let found = named.or_else(|| current.iter().find(fits)).or_else(|| current.first());
        found.map(|loaded| Arc::clone(&loaded.key))
    }
}
