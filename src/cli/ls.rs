//! Lists of names: `keswarden ls`, and `ls` of keys, policies and identities.

use super::{
    client::{self, Client, Connection, Given, Remote},
    output::{self, Color, Outcome},
};
use crate::secret::Secret;
use clap::Args;
use serde::Deserialize;

#[derive(Args)]
pub(super) struct Options {
    /// Only names that begin with this
    prefix: Option<String>,
    /// List identities
    #[arg(short, long, conflicts_with = "policy")]
    identity: bool,
    /// List policies
    #[arg(short, long)]
    policy: bool,
    /// API key instead of the environment's
    #[arg(short, long, value_name = "KEY")]
    api_key: Option<String>,
    /// Server instead of the environment's
    #[arg(short, long, value_name = "HOST:PORT")]
    server: Option<String>,
    /// One JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
pub(super) struct Listing {
    /// Only names that begin with this; a `*` at the end changes nothing
    pattern: Option<String>,
    /// One JSON array
    #[arg(long)]
    json: bool,
    /// When to use colour
    #[arg(long, value_enum, default_value_t = Color::Auto)]
    color: Color,
    #[command(flatten)]
    remote: Remote,
}

/// The kind of names to list.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Keys,
    Policies,
    Identities,
}

/// One page of names: `identities` for identities, `names` for keys and policies.
#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    identities: Option<Vec<String>>,
    #[serde(default)]
    continue_at: String,
}

/// Runs `keswarden ls`.
pub(super) fn main(options: Options) -> u8 {
    let Options { prefix, identity, policy, api_key, server, json, connection } = options;
    let kind = match (identity, policy) {
        (true, _) => Kind::Identities,
        (_, true) => Kind::Policies,
        _ => Kind::Keys,
    };
    let given = Given { server, api_key: api_key.map(Secret::new) };
    client::with_given(&connection, given, |client| show(client, kind, prefix, json, Color::Auto))
}

/// Runs `keswarden key ls`, `policy ls` or `identity ls`.
pub(super) fn listing(kind: Kind, listing: Listing) -> u8 {
    let Listing { pattern, json, color, remote } = listing;
    client::with_client(&remote.connection, |client| show(client, kind, pattern, json, color))
}

async fn show(client: Client, kind: Kind, pattern: Option<String>, json: bool, color: Color) -> Outcome {
    let pattern = pattern_to_send(pattern.as_deref().unwrap_or_default());
    let names = names(&client, kind, pattern)
        .await
        .map_err(|reason| format!("failed to list {}: {reason}", kind.plural()))?;
    output::print_names(kind.header(), &names, json, color)
}

/// The pattern to send. KES compares key names with the whole pattern, a `*` at the end included, and so
/// finds none: the `*` stays only where the pattern is invalid without it.
fn pattern_to_send(pattern: &str) -> String {
    match pattern.strip_suffix('*').unwrap_or(pattern) {
        "" => "*".to_owned(),
        prefix if prefix == "_" || prefix.ends_with('-') => format!("{prefix}*"),
        prefix => prefix.to_owned(),
    }
}

/// The names of every page.
async fn names(client: &Client, kind: Kind, pattern: String) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    let mut next = pattern;
    loop {
        let answer = client.get(&client::path(kind.operation(), &next)).await?;
        let page: Page = answer.json()?;
        for name in page.names.or(page.identities).unwrap_or_default() {
            if all.last() != Some(&name) {
                all.push(name);
            }
        }
        if page.continue_at.is_empty() || page.continue_at == next {
            return Ok(all);
        }
        next = page.continue_at;
        // KES takes the continuation for a prefix, so that its second page is its last.
        output::say(&format!(
            "Warning: the server lists in pages; names after '{}' may be missing\n",
            output::plain(&next)
        ));
    }
}

// === impl Kind ===

impl Kind {
    fn header(self) -> &'static str {
        match self {
            Self::Keys => "Key",
            Self::Policies => "Policy",
            Self::Identities => "Identity",
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Policies => "policies",
            Self::Identities => "identities",
        }
    }

    fn operation(self) -> &'static str {
        match self {
            Self::Keys => "key/list",
            Self::Policies => "policy/list",
            Self::Identities => "identity/list",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_at_the_end_is_dropped_where_the_rest_is_a_pattern() {
        for (pattern, sent) in [
            ("", "*"),
            ("*", "*"),
            ("my", "my"),
            ("my*", "my"),
            ("my-*", "my-*"),
            ("my-", "my-*"),
            ("_*", "_*"),
        ] {
            assert_eq!(pattern_to_send(pattern), sent, "{pattern}");
        }
    }
}
