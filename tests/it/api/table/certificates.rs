//! Client certificates: which certificate of a chain says who calls.

use super::{
    NO_CERTIFICATE, NOT_ALLOWED, TWO_CERTIFICATES, Who,
    answers::{Findings, none_of, refusal_text},
    serving,
};
use crate::harness::api_key;
use keswarden::identity::ApiKey;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate for an API key's own key pair, with `is_ca` in its BasicConstraints.
fn certificate(key: &ApiKey, is_ca: rcgen::IsCa) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let (_, private) = key.certificate(1_700_000_000);
    let PrivateKeyDer::Pkcs8(pkcs8) = &private else { panic!("an API key's private key is PKCS#8") };
    let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(pkcs8, &rcgen::PKCS_ED25519).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = is_ca;
    (params.self_signed(&pair).unwrap().der().clone(), private)
}

fn ca() -> rcgen::IsCa {
    rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained)
}

#[test]
fn the_caller_is_the_one_certificate_that_is_no_ca_and_that_signed() {
    let kes = serving();
    let (allowed, stranger) = (Who::Allowed.key().unwrap(), Who::Stranger.key().unwrap());
    let plain = |key: &ApiKey| certificate(key, rcgen::IsCa::ExplicitNoCa).0;
    let unsaid = |key: &ApiKey| certificate(key, rcgen::IsCa::NoCa).0;
    let as_ca = |key: &ApiKey| certificate(key, ca()).0;
    // A chain, the key that signs, and the caller, or the refusal, of a request that needs permission.
    let chains = [
        ("a leaf", vec![plain(&allowed)], &allowed, Ok(Who::Allowed)),
        ("a leaf without BasicConstraints", vec![unsaid(&allowed)], &allowed, Ok(Who::Allowed)),
        ("a leaf and a CA", vec![plain(&allowed), as_ca(&api_key(40))], &allowed, Ok(Who::Allowed)),
        (
            "a leaf and two CAs",
            vec![plain(&allowed), as_ca(&api_key(40)), as_ca(&api_key(41))],
            &allowed,
            Ok(Who::Allowed),
        ),
        // The caller is the certificate whose key signed, whatever CA follows in the chain.
        (
            "a stranger, and a CA with our key",
            vec![plain(&stranger), as_ca(&allowed)],
            &stranger,
            Ok(Who::Stranger),
        ),
        ("two leaves", vec![plain(&allowed), plain(&api_key(40))], &allowed, Err(TWO_CERTIFICATES)),
        ("the same leaf twice", vec![plain(&allowed), plain(&allowed)], &allowed, Err(TWO_CERTIFICATES)),
        (
            "a stranger, and our leaf",
            vec![plain(&stranger), plain(&allowed)],
            &stranger,
            Err(TWO_CERTIFICATES),
        ),
        (
            "two leaves, one without BasicConstraints",
            vec![plain(&allowed), unsaid(&api_key(40))],
            &allowed,
            Err(TWO_CERTIFICATES),
        ),
        (
            "two leaves around a CA",
            vec![plain(&allowed), as_ca(&api_key(41)), plain(&api_key(40))],
            &allowed,
            Err(TWO_CERTIFICATES),
        ),
        ("a CA", vec![as_ca(&allowed)], &allowed, Err(NO_CERTIFICATE)),
        ("two CAs", vec![as_ca(&allowed), as_ca(&api_key(40))], &allowed, Err(NO_CERTIFICATE)),
        // Stricter than KES: a certificate that anybody can copy proves nothing.
        (
            "a stranger's CA, and our leaf",
            vec![as_ca(&stranger), plain(&allowed)],
            &stranger,
            Err(NO_CERTIFICATE),
        ),
    ];
    let mut findings = Findings::default();
    for (what, chain, signer, verdict) in chains {
        for http1 in [true, false] {
            let (_, key) = signer.certificate(1_700_000_000);
            let client = kes.client_with_chain(chain.clone(), key, http1);
            let status = match verdict {
                Ok(who) if who.may() => 200,
                Ok(_) => 403,
                Err(_) => 400,
            };
            for path in ["/v1/key/describe/kept", "/v1/key/list/"] {
                let about = format!("{what}: expected {status}");
                findings.judge((&client, http1), ("GET", path), &about, |got| {
                    let text = match verdict {
                        Ok(who) if who.may() => return got.status == status,
                        Ok(_) => NOT_ALLOWED,
                        Err(message) => message,
                    };
                    (got.status, &got.body) == (status, &refusal_text(text))
                });
            }
            // Open routes, wrong paths and wrong methods are answered whatever the certificates are.
            for (method, path, status) in [
                ("GET", "/version", 200),
                ("GET", "/v1/ready", 200),
                ("GET", "/v1/nowhere", 404),
                ("POST", "/v1/status", 405),
                ("GET", "/v1/identity/self/describe", if verdict == Ok(Who::Allowed) { 200 } else { 404 }),
            ] {
                let about = format!("{what}: expected {status}");
                findings.judge((&client, http1), (method, path), &about, |got| got.status == status);
            }
        }
    }
    none_of(&findings.0);
}
