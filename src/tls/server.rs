//! A server's certificate and key, read and checked as KES does, and the clients that the server accepts.

use super::{Error, Pair, pem_password, provider, trust::Trust};
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use std::{path::Path, sync::Arc};
use x509_parser::prelude::FromDer;

/// The clients that a server accepts.
pub struct ClientAuth {
    /// Whether the handshake fails without a client certificate.
    pub mandatory: bool,
    /// Certificates that a client's certificate must be one of, or lead to. When absent, every certificate is
    /// accepted whose key the client holds, as in KES by default.
    pub trusted: Option<Trust>,
}

/// A TLS server with the certificate of `pair`, for HTTP/2 and HTTP/1.1.
///
/// # Errors
/// When the certificate does not fit the key, or the trusted certificates cannot be used.
pub fn config(pair: Pair, clients: ClientAuth) -> Result<Arc<ServerConfig>, Error> {
    let provider = provider();
    let verifier = verifier(clients, &provider)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(pair.chain, pair.key)
        .map_err(Error::Unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Reads a server's certificate chain and key (kes-spec §6.3). `password` opens a key under a password, and
/// may be empty.
///
/// # Errors
/// When a file cannot be read, `certificate` has a block that is no certificate, the leaf has no name or
/// address, `key` has no private key, or the password is missing or wrong.
pub fn read_pair(certificate: &Path, key: &Path, password: &str) -> Result<Pair, Error> {
    let unreadable = |path: &Path, reason: String| Error::Read { path: path.display().to_string(), reason };
    let text =
        |path: &Path| std::fs::read_to_string(path).map_err(|error| unreadable(path, error.to_string()));
    let blocks = pem::parse_many(text(certificate)?)
        .map_err(|_| unreadable(certificate, "https: no valid PEM data".to_owned()))?;
    if blocks.iter().any(|block| block.tag() != "CERTIFICATE") {
        return Err(unreadable(certificate, "https: unsupported PEM data block".to_owned()));
    }
    let chain: Vec<_> = blocks.into_iter().map(|block| CertificateDer::from(block.into_contents())).collect();
    let leaf = chain.first();
    let leaf = leaf.ok_or_else(|| unreadable(certificate, "https: no valid PEM data".to_owned()))?;
    if !has_name(leaf) {
        let reason =
            "invalid TLS certificate: certificate does not contain any DNS or IP address as SAN".to_owned();
        return Err(unreadable(certificate, reason));
    }
    let pem = zeroize::Zeroizing::new(text(key)?);
    let key = pem_password::decrypt(&pem, password).map_err(|reason| unreadable(key, reason))?;
    Ok(Pair { chain, key })
}

/// Whether the certificate has a DNS name or an IP address.
fn has_name(certificate: &CertificateDer<'_>) -> bool {
    use x509_parser::extensions::GeneralName;
    let Ok((_, parsed)) = x509_parser::certificate::X509Certificate::from_der(certificate) else {
        return false;
    };
    let names = parsed.subject_alternative_name().ok().flatten();
    names.is_some_and(|names| {
        let names = &names.value.general_names;
        names.iter().any(|name| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_)))
    })
}

fn verifier(
    ClientAuth { mandatory, trusted }: ClientAuth,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let Some(trusted) = trusted else {
        return Ok(Arc::new(ClientVerifier {
            provider: provider.clone(),
            mandatory,
            listed: None,
            chains: None,
        }));
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted.certificates().iter().cloned());
    let chains = match roots.is_empty() {
        true => None,
        false => {
            let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            let built = builder.build();
            Some(built.map_err(|error| Error::Unusable(rustls::Error::General(error.to_string())))?)
        }
    };
    let listed = Some(trusted.certificates().to_vec());
    Ok(Arc::new(ClientVerifier { provider: provider.clone(), mandatory, listed, chains }))
}

/// The check of client certificates: listed ones and those that lead to a listed one pass; without a list,
/// all pass whose key the client holds.
#[derive(Debug)]
struct ClientVerifier {
    provider: Arc<CryptoProvider>,
    mandatory: bool,
    listed: Option<Vec<CertificateDer<'static>>>,
    chains: Option<Arc<dyn ClientCertVerifier>>,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let Some(listed) = &self.listed else { return Ok(ClientCertVerified::assertion()) };
        // A listed leaf is its own root, because the certificate of an API key has no CA.
        if listed.iter().any(|certificate| certificate == leaf) {
            return super::trust::check_dates(leaf, now).map(|()| ClientCertVerified::assertion());
        }
        match &self.chains {
            Some(chains) => chains.verify_client_cert(leaf, intermediates, now),
            None => Err(rustls::CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
