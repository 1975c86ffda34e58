//! Policies of identities, with KES's verdicts.
//!
//! A pattern that ends in `*` is a prefix, across slashes. Any other pattern is an exact path. A `*`, `?` or
//! `[` elsewhere matches only itself, so a deny rule with one inside protects nothing: such a rule is warned
//! about, never reinterpreted.

use super::{
    caller::Caller,
    refusal::Refusal,
    routes::{Op, Route},
};
use crate::{identity::Identity, names::Name};
use std::collections::BTreeMap;

/// Paths that MinIO's identity may call: those that a MinIO server calls (see minio-kms-client), and none of
/// an admin's.
pub const MINIO: &[&str] = &[
    "/version",
    "/v1/status",
    "/v1/api",
    "/v1/key/create/*",
    "/v1/key/generate/*",
    "/v1/key/decrypt/*",
    "/v1/key/describe/*",
    "/v1/key/list/*",
    "/v1/key/hmac/*",
];

/// The names of keys that may be created or imported through the API, whatever a policy allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Makeable {
    /// Every name.
    #[default]
    Any,
    /// Every name but the default EK's: a person or the gate creates the default EK. MinIO would create
    /// another key under the name of a missing one.
    AllBut(Name),
    /// Names that match one of these patterns. Patterns match as in policies.
    These(Vec<String>),
}

/// The name of the policy for MinIO. No policy of a file can have the name, because of the dash.
const MINIO_POLICY: &str = "-minio";

/// The policies, and the identities that have them.
#[derive(Clone, Default)]
pub struct Policies {
    /// The admin's identity, compared verbatim. A text that is no identity disables the admin.
    pub admin: String,
    /// Policies by name.
    pub policies: BTreeMap<String, Policy>,
    /// Names of policies by identity, compared verbatim.
    pub assigned: BTreeMap<String, String>,
    /// The time this set came into force, RFC 3339.
    pub since: String,
}

/// Patterns of paths. A path is allowed when `allow` matches and `deny` does not.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Patterns of allowed paths.
    pub allow: Vec<String>,
    /// Patterns of denied paths.
    pub deny: Vec<String>,
}

// === impl Policies ===

impl Policies {
    /// MinIO's policy for these identities, and no admin. `since` is RFC 3339.
    pub fn for_minio(identities: impl IntoIterator<Item = Identity>, since: String) -> Self {
        let policy =
            Policy { allow: MINIO.iter().map(|path| (*path).to_owned()).collect(), deny: Vec::new() };
        let assigned = identities.into_iter();
        let assigned =
            assigned.map(|identity| (identity.as_str().to_owned(), MINIO_POLICY.to_owned())).collect();
        let policies = BTreeMap::from([(MINIO_POLICY.to_owned(), policy)]);
        Self { admin: "disabled".to_owned(), policies, assigned, since }
    }

    /// Both sets in one. An identity in both sets has the policy of `others` alone.
    pub fn joined(mut self, others: &Self) -> Self {
        for (name, policy) in &others.policies {
            self.policies.entry(name.clone()).or_insert_with(|| policy.clone());
        }
        for (identity, policy) in &others.assigned {
            self.assigned.insert(identity.clone(), policy.clone());
        }
        if !others.admin.is_empty() {
            self.admin.clone_from(&others.admin);
        }
        self
    }

    /// Checks that the caller may use the route on the decoded path. `open` lets every caller pass.
    ///
    /// # Errors
    /// `NoCertificate` or `TooManyCertificates` when the caller has no identity; `NotAllowed` when no policy
    /// allows the path.
    pub fn check(&self, route: &Route, open: bool, path: &str, caller: &Caller) -> Result<(), Refusal> {
        if open || matches!(route.op, Op::Version | Op::SelfDescribe) {
            return Ok(());
        }
        let identity = caller.identity()?;
        let allowed = self.is_admin(identity)
            || self.policy_of(identity).is_some_and(|(_, policy)| policy.allows(path));
        if allowed { Ok(()) } else { Err(Refusal::NotAllowed) }
    }

    /// Whether the identity is the admin.
    pub fn is_admin(&self, identity: &Identity) -> bool {
        self.admin == identity.as_str()
    }

    /// The name and the policy of an identity.
    pub fn policy_of(&self, identity: &Identity) -> Option<(&str, &Policy)> {
        let (name, policy) = self.policies.get_key_value(self.assigned.get(identity.as_str())?)?;
        Some((name, policy))
    }
}

// === impl Policy ===

impl Policy {
    /// Whether the policy allows a decoded path.
    pub fn allows(&self, path: &str) -> bool {
        !self.deny.iter().any(|pattern| matches(pattern, path))
            && self.allow.iter().any(|pattern| matches(pattern, path))
    }

    /// Patterns with `*`, `?` or `[` inside, which match only themselves there.
    pub fn ineffective(&self) -> impl Iterator<Item = &str> {
        let inner =
            |pattern: &&String| pattern.strip_suffix('*').unwrap_or(pattern).contains(['*', '?', '[']);
        self.allow.iter().chain(&self.deny).filter(inner).map(String::as_str)
    }
}

// === impl Makeable ===

impl Makeable {
    /// Whether the API may create or import a key of this name.
    pub fn allows(&self, name: &Name) -> bool {
        match self {
            Self::Any => true,
            Self::AllBut(other) => name != other,
            Self::These(patterns) => patterns.iter().any(|pattern| matches(pattern, name.as_str())),
        }
    }
}

fn matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => !pattern.is_empty() && pattern == path,
    }
}
