//! Reads certificates, revocation lists and private keys from files in PEM.

use std::{path::Path, time::SystemTime};

use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};
use zeroize::Zeroizing;

use super::file::{self, UnusableFile};
use crate::auth::expiry_of;

/// Reads the certificates of a file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, UnusableFile> {
    sections(path, "certificate")
}

/// Reads the revocation lists of a file, at least one.
pub(super) fn revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, UnusableFile> {
    sections(path, "revocation list")
}

/// Reads the first private key of a file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, UnusableFile> {
    let content = Zeroizing::new(file::read(path)?);
    let key = PrivateKeyDer::from_pem_slice(&content);
    key.map_err(|error| UnusableFile::new(path, problem(&error, "private key")))
}

/// Reads the certificates of a file as authorities.
pub(super) fn authorities(path: &Path, certificates: &[CertificateDer<'_>]) -> Result<RootCertStore, UnusableFile> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.clone().into_owned()).map_err(|error| UnusableFile::new(path, error))?;
    }
    Ok(roots)
}

/// Returns the time from which on the first of these certificates has expired.
pub(super) fn earliest_end(path: &Path, certificates: &[CertificateDer<'_>]) -> Result<SystemTime, UnusableFile> {
    let malformed = || UnusableFile::new(path, "has a malformed certificate");
    let ends: Option<Vec<_>> = certificates.iter().map(expiry_of).collect();
    ends.ok_or_else(malformed)?.into_iter().min().ok_or_else(malformed)
}

/// Explains an error of rustls about a certificate and its key.
pub(super) fn pair_problem(error: &rustls::Error, certificate: &Path, key: &Path) -> UnusableFile {
    match error {
        rustls::Error::InconsistentKeys(_) => UnusableFile::new(key, "is not the key of the certificate"),
        error => UnusableFile::new(certificate, error),
    }
}

/// Reads all sections of one kind, at least one.
fn sections<T: PemObject>(path: &Path, kind: &str) -> Result<Vec<T>, UnusableFile> {
    let content = file::read(path)?;
    let sections: Result<Vec<T>, _> = T::pem_slice_iter(&content).collect();
    let sections = sections.map_err(|error| UnusableFile::new(path, problem(&error, kind)))?;
    if sections.is_empty() {
        return Err(UnusableFile::new(path, format!("has no {kind} in PEM")));
    }
    Ok(sections)
}

/// Returns the problem without any content of the file.
fn problem(error: &pem::Error, kind: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("has no {kind} in PEM"),
        pem::Error::MissingSectionEnd { .. } => "is truncated: a PEM section has no end".to_owned(),
        _ => "is malformed PEM".to_owned(),
    }
}
