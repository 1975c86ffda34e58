//! The `policy` section: who may call what, with a word about every rule that does nothing.

use super::super::yaml::{self, Node, Reader};
use crate::{
    identity::ApiKey,
    kes::policy::{Policies, Policy},
    names::Name,
};

pub(super) fn policies(
    reader: &mut Reader<'_>,
    node: Option<&Node>,
    admin: String,
    proxies: &[String],
) -> Policies {
    let mut policies = Policies { admin, ..Policies::default() };
    let entries = node.map_or(&[][..], |node| reader.entries(node, "policies"));
    for entry in entries {
        let name = &entry.name;
        if Name::parse(name).is_err() {
            reader.problem(format!(
                "kes: policy name '{name}' is empty, too long or contains invalid characters"
            ));
        }
        let mut section = reader.section(Some(&entry.node), &format!("policy.{name}"));
        let policy = Policy {
            allow: patterns(reader, section.get("allow")),
            deny: patterns(reader, section.get("deny")),
        };
        for pattern in policy.ineffective() {
            let warning = format!(
                "policy.{name}: the pattern {pattern:?} has a wildcard inside, which KES takes literally: it matches nothing"
            );
            reader.warnings.push(warning);
        }
        for item in reader.items(section.get("identities")) {
            let Some(identity) = reader.text(Some(item)) else { continue };
            assign(reader, &mut policies, name, identity.text.expose(), proxies);
        }
        if section.get("paths").is_some() {
            let warning =
                format!("policy.{name}.paths is the old name of allow, and is ignored, as KES does");
            reader.warnings.push(warning);
        }
        reader.done(section);
        policies.policies.insert(name.clone(), policy);
    }
    policies
}

fn patterns(reader: &mut Reader<'_>, node: Option<&Node>) -> Vec<String> {
    let mut patterns = Vec::new();
    for item in reader.items(node) {
        match &item.value {
            yaml::Value::Scalar { text, .. } => patterns.push(text.expose().to_owned()),
            // An empty pattern matches nothing.
            yaml::Value::Null => {}
            _ => drop(reader.text(Some(item))),
        }
    }
    patterns
}

fn assign(
    reader: &mut Reader<'_>,
    policies: &mut Policies,
    policy: &str,
    identity: &str,
    proxies: &[String],
) {
    if identity.is_empty() && !reader.strict {
        return;
    }
    let problem = if ApiKey::parse(identity).is_ok() {
        format!(
            "policy.{policy}.identities: an API key stands where its identity belongs (`keswarden identity of`)"
        )
    } else if identity == policies.admin {
        format!("kesconf: invalid policy '{policy}': identity '{identity}' is already admin")
    } else if proxies.iter().any(|proxy| proxy == identity) {
        format!("kesconf: invalid policy '{policy}': identity '{identity}' is already a TLS proxy")
    } else if Name::parse(identity).is_err() {
        format!("kes: identity '{identity}' is empty, too long or contains invalid characters")
    } else if policies.assigned.insert(identity.to_owned(), policy.to_owned()).is_some() {
        format!("kes: cannot assign policy '{policy}' to '{identity}': identity already has a policy")
    } else {
        let hash =
            identity.len() == 64 && identity.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !hash {
            let warning = format!(
                "policy.{policy}.identities: {identity:?} is no identity (64 lower-case hexadecimal digits): it matches nobody"
            );
            reader.warnings.push(warning);
        }
        return;
    };
    reader.problem(problem);
}
