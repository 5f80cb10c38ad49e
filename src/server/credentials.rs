//! Everything by which the server knows its callers and shows who it is: loaded at start, and again when a file changes.

use std::{path::Path, sync::Arc};

use super::{
    file::{self, UnusableFile},
    reload::FileSet,
    tls::{CurrentTls, TlsFiles},
};
use crate::{
    auth::{Authenticator, Callers, InvalidCallers},
    config::Config,
    observe::Metrics,
};

/// Credentials in force, and the files that they come from.
pub(super) struct Credentials {
    /// Finds the callers.
    pub authenticator: Arc<Authenticator>,
    /// TLS of new connections. None: they have no TLS.
    pub tls: Option<Arc<CurrentTls>>,
    /// Files to reload.
    pub files: Vec<FileSet>,
}

impl Credentials {
    /// Reads all files of the configuration. Fails if one cannot be used.
    pub(super) fn load(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, UnusableFile> {
        let callers = config.callers.as_deref().map(|path| read_callers(path, None)).transpose()?;
        let tls_files = tls_files(config);
        let tls = tls_files.as_ref().map(|files| files.load(0)).transpose()?;
        let verifier = tls.as_ref().and_then(|tls| tls.verifier.clone());
        let authenticator = Arc::new(Authenticator::new(callers, verifier));
        let tls = tls.map(|tls| Arc::new(CurrentTls::new(tls)));
        let mut files = Vec::new();
        if let Some((tls_files, tls)) = tls_files.zip(tls.clone()) {
            files.push(Self::tls_set(tls_files, tls, authenticator.clone(), metrics.clone())?);
        }
        if let Some(path) = config.callers.clone() {
            let (authenticator, metrics) = (authenticator.clone(), metrics.clone());
            files.push(FileSet::load(vec![("callers", path.clone())], move || {
                for (caller, key) in
                    authenticator.replace_callers(read_callers(&path, authenticator.callers().as_deref())?)
                {
                    metrics.network.forget_key(&caller, key.to_string());
                }
                Ok(())
            })?);
        }
        Ok(Credentials { authenticator, tls, files })
    }

    /// The files of TLS: certificate, authorities and revocation lists change together.
    fn tls_set(
        files: TlsFiles,
        current: Arc<CurrentTls>,
        authenticator: Arc<Authenticator>,
        metrics: Arc<Metrics>,
    ) -> Result<FileSet, UnusableFile> {
        let mut generation = 0;
        FileSet::load(files.named(), move || {
            generation += 1;
            let tls = files.load(generation)?;
            tls.not_after.iter().for_each(|(name, end)| metrics.network.set_certificate_end(name, *end));
            // New handshakes first: a certificate that is accepted under the old verifier is verified again with the new one.
            let verifier = tls.verifier.clone();
            current.replace(tls);
            if let Some(verifier) = verifier {
                authenticator.replace_verifier(verifier);
            }
            Ok(())
        })
    }
}

/// Returns the files of TLS. None: the configuration has none.
fn tls_files(config: &Config) -> Option<TlsFiles> {
    let (certificate, key) = config.tls_cert.clone().zip(config.tls_key.clone())?;
    let (client_authorities, client_revocations) = (config.client_ca.clone(), config.client_crl.clone());
    Some(TlsFiles { certificate, key, client_authorities, client_revocations })
}

fn read_callers(path: &Path, before: Option<&Callers>) -> Result<Callers, UnusableFile> {
    let text = String::from_utf8(file::read(path)?).map_err(|_| UnusableFile::new(path, "is not UTF-8"))?;
    Callers::parse(&text, before).map_err(|InvalidCallers(problems)| UnusableFile::new(path, problems.join("; ")))
}
