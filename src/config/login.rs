//! How to log in to Vault: exactly one way.

use super::parse::Reader;
use crate::vault::login::{Login, Source};

/// Every setting is read, so that none of them is unknown; one way must remain.
pub(super) fn login(reader: &mut Reader) -> Option<Login> {
    let mut ways =
        [token, app_role, kubernetes, jwt, certificate].map(|way| way(reader)).into_iter().flatten();
    match (ways.next(), ways.next()) {
        (Some(way), None) => way,
        (Some(_), Some(_)) => reader.refuse(
            "KESWARDEN_VAULT_TOKEN",
            "more than one way to log in is set: token, AppRole, Kubernetes, JWT, certificate",
        ),
        (None, _) => reader.refuse(
            "KESWARDEN_VAULT_TOKEN",
            "is not set, and neither is KESWARDEN_VAULT_ROLE_ID with KESWARDEN_VAULT_SECRET_ID, nor \
             KESWARDEN_VAULT_KUBERNETES_ROLE, KESWARDEN_VAULT_JWT_ROLE or KESWARDEN_VAULT_CERT_LOGIN: as whom to log in? (each secret \
             may also be a file: NAME_FILE)",
        ),
    }
}

/// Nothing when the way is not chosen; nothing inside when it is, and is incomplete, which was said.
type Way = Option<Option<Login>>;

fn token(reader: &mut Reader) -> Way {
    reader.secret("KESWARDEN_VAULT_TOKEN").map(|token| Some(Login::Token(token)))
}

fn app_role(reader: &mut Reader) -> Way {
    let role_id = reader.secret("KESWARDEN_VAULT_ROLE_ID");
    let secret_id = reader.secret("KESWARDEN_VAULT_SECRET_ID");
    let wrapped = reader.secret("KESWARDEN_VAULT_WRAPPED_SECRET_ID");
    let mount = reader.vault_path_or_default("KESWARDEN_VAULT_APPROLE_MOUNT");
    Some(match (role_id, secret_id, wrapped) {
        (None, None, None) => return None,
        (Some(role_id), Some(secret_id), None) => Some(Login::AppRole { mount, role_id, secret_id }),
        (Some(role_id), None, Some(wrapping_token)) => {
            Some(Login::WrappedAppRole { mount, role_id, wrapping_token })
        }
        (Some(_), None, None) => {
            reader.refuse("KESWARDEN_VAULT_SECRET_ID", "is not set, but KESWARDEN_VAULT_ROLE_ID is")
        }
        (None, ..) => {
            reader.refuse("KESWARDEN_VAULT_ROLE_ID", "is not set, but KESWARDEN_VAULT_SECRET_ID is")
        }
        (Some(_), Some(_), Some(_)) => reader.refuse(
            "KESWARDEN_VAULT_WRAPPED_SECRET_ID",
            "is set beside KESWARDEN_VAULT_SECRET_ID: which of the two is it?",
        ),
    })
}

fn kubernetes(reader: &mut Reader) -> Way {
    let role = reader.plain("KESWARDEN_VAULT_KUBERNETES_ROLE");
    let mount = reader.vault_path_or_default("KESWARDEN_VAULT_KUBERNETES_MOUNT");
    let jwt = reader.path_or_default("KESWARDEN_VAULT_KUBERNETES_JWT_FILE");
    role.map(|role| Some(Login::Kubernetes { mount, role, jwt: Source::File(jwt) }))
}

fn jwt(reader: &mut Reader) -> Way {
    let role = reader.plain("KESWARDEN_VAULT_JWT_ROLE");
    let mount = reader.vault_path_or_default("KESWARDEN_VAULT_JWT_MOUNT");
    let jwt = reader.path_or_default("KESWARDEN_VAULT_JWT_FILE");
    role.map(|role| Some(Login::Jwt { mount, role, jwt: Source::File(jwt) }))
}

fn certificate(reader: &mut Reader) -> Way {
    let is_chosen = reader.switch("KESWARDEN_VAULT_CERT_LOGIN");
    let role = reader.plain("KESWARDEN_VAULT_CERT_ROLE");
    let mount = reader.vault_path_or_default("KESWARDEN_VAULT_CERT_MOUNT");
    let has_pair = reader.path("KESWARDEN_VAULT_CLIENT_CERT").is_some();
    is_chosen.then(|| match has_pair {
        true => Some(Login::Certificate { mount, role }),
        false => reader.refuse(
            "KESWARDEN_VAULT_CLIENT_CERT",
            "is not set, but KESWARDEN_VAULT_CERT_LOGIN is: with which certificate?",
        ),
    })
}
