//! Who may call what: KES's policies, with KES's verdicts.
//!
//! A pattern that ends in `*` is a prefix, across slashes; any other is an exact path. A `*`, `?` or `[` elsewhere is
//! itself, so a deny rule with one inside protects nothing: it is warned about, never reinterpreted.

use super::{
    caller::Caller,
    refusal::Refusal,
    routes::{Op, Route},
};
use crate::{identity::Identity, names::Name};
use std::collections::BTreeMap;

/// What MinIO does, and nothing of an admin's (see minio-kms-client: what the identity of a server calls).
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

/// Which names of keys may be made or imported through the API, whatever a policy allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Makeable {
    #[default]
    Any,
    /// The default EK is made by a person, or by the gate; MinIO would make another one when it does not find it.
    AllBut(Name),
    /// As policies match: a `*` at the end stands for any ending.
    These(Vec<String>),
}

/// The name of MinIO's own policy.
const OURS: &str = "-minio";

/// Every policy and who has it.
#[derive(Clone, Default)]
pub struct Policies {
    /// Compared verbatim; what is no identity disables the admin.
    pub admin: String,
    pub policies: BTreeMap<String, Policy>,
    /// Policies by identity, compared verbatim.
    pub assigned: BTreeMap<String, String>,
    /// When this set came into force, RFC 3339.
    pub since: String,
}

/// Paths that are allowed, unless they are denied.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    pub allow: Vec<String>,
    pub deny: Vec<String>,
}

// === impl Policies ===

impl Policies {
    /// One policy for these identities, and no admin. Its name starts with a dash, which no policy of a file can.
    pub fn for_minio(identities: impl IntoIterator<Item = Identity>, since: String) -> Self {
        let policy =
            Policy { allow: MINIO.iter().map(|path| (*path).to_owned()).collect(), deny: Vec::new() };
        let assigned = identities.into_iter();
        let assigned = assigned.map(|identity| (identity.as_str().to_owned(), OURS.to_owned())).collect();
        let policies = BTreeMap::from([(OURS.to_owned(), policy)]);
        Self { admin: "disabled".to_owned(), policies, assigned, since }
    }

    /// These and the others; where both know an identity, the others' policy is its policy, denials and all.
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

    /// Whether the caller may use this route, on this decoded path.
    pub fn check(&self, route: &Route, open: bool, path: &str, caller: &Caller) -> Result<(), Refusal> {
        if open || matches!(route.op, Op::Version | Op::SelfDescribe) {
            return Ok(());
        }
        let identity = caller.identity()?;
        let allowed = self.is_admin(identity)
            || self.policy_of(identity).is_some_and(|(_, policy)| policy.allows(path));
        if allowed { Ok(()) } else { Err(Refusal::NotAllowed) }
    }

    pub fn is_admin(&self, identity: &Identity) -> bool {
        self.admin == identity.as_str()
    }

    pub fn policy_of(&self, identity: &Identity) -> Option<(&str, &Policy)> {
        let (name, policy) = self.policies.get_key_value(self.assigned.get(identity.as_str())?)?;
        Some((name, policy))
    }
}

// === impl Policy ===

impl Policy {
    pub fn allows(&self, path: &str) -> bool {
        !self.deny.iter().any(|pattern| matches(pattern, path))
            && self.allow.iter().any(|pattern| matches(pattern, path))
    }

    /// Patterns that match no path a person would mean.
    pub fn ineffective(&self) -> impl Iterator<Item = &str> {
        let inner =
            |pattern: &&String| pattern.strip_suffix('*').unwrap_or(pattern).contains(['*', '?', '[']);
        self.allow.iter().chain(&self.deny).filter(inner).map(String::as_str)
    }
}

// === impl Makeable ===

impl Makeable {
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
