//! `keswarden identity`: API keys, certificates and their identities.

mod new;

use super::{
    client::{self, Client, Remote},
    ls::{self, Kind, Listing},
    output::{self, Color, Failure, Outcome},
};
use crate::{
    identity::{ApiKey, Certificate, Identity},
    tls,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use serde_json::Value;
use std::path::Path;
use zeroize::Zeroizing;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// An API key or a PEM file: print the identity of the key or certificate, or the API key of a private
    /// key; without it, a new API key
    key_or_file: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Make an identity: print its API key, and write a private key and a certificate where asked to
    New(new::Options),
    /// Print the identity of an API key, or of a PEM certificate file
    Of {
        /// An API key, or the path of a certificate file
        key_or_file: String,
    },
    /// Say what the server knows of an identity
    Info {
        /// One's own when absent
        identity: Option<String>,
        /// The server's answer, as JSON
        #[arg(long)]
        json: bool,
        /// When to use colour
        #[arg(long, value_enum, default_value_t = Color::Auto)]
        color: Color,
        #[command(flatten)]
        remote: Remote,
    },
    /// List identities
    Ls(Listing),
}

/// The bytes between version and seed in PKCS#8 of an Ed25519 key (RFC 8410).
const ED25519_PKCS8_MIDDLE: &[u8] = &[0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

pub(super) fn main(options: Options) -> u8 {
    match (options.command, options.key_or_file) {
        (None, None) => output::code_of(print_new()),
        (None, Some(given)) => output::code_of(print_counterpart(&Zeroizing::new(given))),
        (Some(Command::New(options)), _) => output::code_of(new::run(options)),
        (Some(Command::Of { key_or_file }), _) => output::code_of(
            identity_of(&key_or_file).and_then(|identity| output::print_bare(identity.as_str())),
        ),
        (Some(Command::Info { identity, json, color, remote }), _) => {
            client::with_client(&remote.connection, |client| info(client, identity, json, color))
        }
        (Some(Command::Ls(listing)), _) => ls::listing(Kind::Identities, listing),
    }
}

/// Prints a new API key: alone for a program, with its identity for a person.
fn print_new() -> Outcome {
    let key = ApiKey::generate();
    if output::is_terminal() { print_with_identity(&key) } else { output::print(key.to_text().expose()) }
}

/// Prints an API key and its identity for people.
fn print_with_identity(key: &ApiKey) -> Outcome {
    let text = Zeroizing::new(format!(
        "Your API key:\n\n   {}\n\nIt is shown only now. Whoever has it is you: keep it secret.\n\n\
         Your identity:\n\n   {}\n\nThe identity is no secret. Policies name it, and servers know you by it.\n",
        key.to_text().expose(),
        key.identity()
    ));
    output::print(&text)
}

/// Prints the identity of an API key or certificate, or the API key of a private key.
fn print_counterpart(given: &str) -> Outcome {
    if let Ok(identity) = identity_of(given) {
        return output::print_bare(identity.as_str());
    }
    let path = file(given)?;
    let key = client::private_key(path)?;
    output::print_bare(&api_key_text(key.secret_der()).ok_or_else(|| {
        Failure::Because(format!("{}: only an Ed25519 key in PKCS#8 form has an API key", path.display()))
    })?)
}

fn identity_of(key_or_file: &str) -> Result<Identity, Failure> {
    if let Ok(key) = ApiKey::parse(key_or_file) {
        return Ok(key.identity());
    }
    let chain = tls::read_certificates(file(key_or_file)?).map_err(|error| error.to_string())?;
    let certificate = Certificate::parse(&chain[0]).map_err(|error| error.to_string())?;
    Ok(certificate.identity)
}

/// The path of an existing file. Any other argument may be a mistyped API key, so no error repeats the
/// argument.
fn file(given: &str) -> Result<&Path, Failure> {
    let path = Path::new(given);
    match path.is_file() {
        true => Ok(path),
        false => Err("the argument is neither an API key nor a file that is there".into()),
    }
}

/// The API key of a private key in PKCS#8 form, with or without its public key.
fn api_key_text(pkcs8: &[u8]) -> Option<Zeroizing<String>> {
    let seed = pkcs8.get(5..)?.strip_prefix(ED25519_PKCS8_MIDDLE)?.get(..32)?;
    let bytes = Zeroizing::new([&[0][..], seed].concat());
    Some(Zeroizing::new(format!("kes:v1:{}", *Zeroizing::new(STANDARD.encode(&*bytes)))))
}

async fn info(client: Client, identity: Option<String>, json: bool, color: Color) -> Outcome {
    let failed = |reason: String| match &identity {
        Some(identity) => format!("failed to describe identity '{identity}': {reason}"),
        None => format!("failed to describe one's own identity: {reason}"),
    };
    let path = match &identity {
        Some(identity) => client::path("identity/describe", identity),
        None => "/v1/identity/self/describe".to_owned(),
    };
    let answer: Value = client.get(&path).await.and_then(|answer| answer.json()).map_err(failed)?;
    if json {
        return output::print_json(&answer);
    }
    let rows = rows(&answer, identity);
    output::print(&format!("{}\n", output::columns(&rows, color)))
}

fn rows(answer: &Value, identity: Option<String>) -> Vec<(&'static str, String)> {
    let text = |name: &str| answer[name].as_str().map(str::to_owned);
    let mut rows: Vec<(&'static str, String)> = Vec::new();
    let mut row = |label, value: Option<String>| rows.extend(value.map(|value| (label, value)));
    row("Identity", text("identity").or(identity));
    row("Created At", text("created_at").map(|at| output::date(&at)));
    // KES nests a caller's own policy. For other identities the policy is a name, with the rules beside it.
    let policy = &answer["policy"];
    row("Policy", policy.as_str().or_else(|| policy["name"].as_str()).map(str::to_owned));
    let is_admin = answer["admin"].as_bool().unwrap_or_default();
    row("Role", Some(if is_admin { "Admin" } else { "User" }.to_owned()));
    row("Created By", text("created_by").filter(|by| !by.is_empty()));
    for (label, member) in [("Allow", "allow"), ("Deny", "deny")] {
        let rules = if policy.is_object() { &policy[member] } else { &answer[member] };
        let patterns = rules.as_object().into_iter().flat_map(|rules| rules.keys());
        for (index, pattern) in patterns.enumerate() {
            row(if index == 0 { label } else { "" }, Some(pattern.clone()));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_becomes_the_api_key_that_it_came_from() {
        let key = ApiKey::generate();
        let (_, private) = key.certificate(1_800_000_000);
        let text = api_key_text(private.secret_der()).expect("an Ed25519 key must have an API key");
        assert_eq!(text.as_str(), key.to_text().expose());
        assert!(api_key_text(&[0; 48]).is_none() && api_key_text(&[]).is_none());
    }

    #[test]
    fn no_error_repeats_an_api_key() {
        let Err(Failure::Because(reason)) = identity_of("kes:v1:c2VjcmV0") else {
            panic!("it must be refused")
        };
        assert!(!reason.contains("c2Vj"), "{reason}");
    }

    #[test]
    fn both_forms_of_a_callers_own_policy_are_read() {
        let allow = serde_json::json!({ "/v1/a": {}, "/v1/b": {} });
        let policy = serde_json::json!({ "name": "p", "allow": allow });
        let nested = serde_json::json!({ "identity": "ab", "policy": policy });
        let flat = serde_json::json!({ "identity": "ab", "policy": "p", "allow": allow });
        assert_eq!(rows(&nested, None), rows(&flat, None));
        assert!(rows(&flat, None).contains(&("", "/v1/b".to_owned())));
    }
}
