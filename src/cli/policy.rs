//! `keswarden policy`: the policies of a server.

use super::{
    client::{self, Client, Remote},
    ls::{self, Kind, Listing},
    output::{self, BOLD, Color, Outcome},
};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[derive(Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say who made a policy, and when
    Info {
        name: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
        /// When to use colour
        #[arg(long, value_enum, default_value_t = Color::Auto)]
        color: Color,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show what a policy allows and denies
    Show {
        name: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// List policies
    Ls(Listing),
}

/// KES's answer to `describe`.
#[derive(Deserialize, Serialize)]
struct PolicyDescription {
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    created_at: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    created_by: String,
}

/// KES's answer to `read`, which `show` prints. Absent rules are an empty object.
#[derive(Deserialize, Serialize)]
struct Policy {
    #[serde(default)]
    allow: Map<String, Value>,
    #[serde(default)]
    deny: Map<String, Value>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    created_at: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    created_by: String,
}

pub(super) fn main(options: Options) -> u8 {
    match options.command {
        Command::Info { name, json, color, remote } => {
            client::with_client(&remote.connection, |client| info(client, name, json, color))
        }
        Command::Show { name, json, remote } => {
            client::with_client(&remote.connection, |client| show(client, name, json))
        }
        Command::Ls(listing) => ls::listing(Kind::Policies, listing),
    }
}

async fn info(client: Client, name: String, json: bool, color: Color) -> Outcome {
    let answer = client.get(&client::path("policy/describe", &name)).await;
    let policy: PolicyDescription = answer
        .and_then(|answer| answer.json())
        .map_err(|reason| format!("failed to describe policy '{name}': {reason}"))?;
    if json {
        return output::print_json(&policy);
    }
    let mut rows = vec![("Name", policy.name), ("Date", output::date(&policy.created_at))];
    if !policy.created_by.is_empty() {
        rows.push(("Owner", policy.created_by));
    }
    output::print(&format!("{}\n", output::columns(&rows, color)))
}

async fn show(client: Client, name: String, json: bool) -> Outcome {
    let answer = client.get(&client::path("policy/read", &name)).await;
    let policy: Policy = answer
        .and_then(|answer| answer.json())
        .map_err(|reason| format!("failed to read policy '{name}': {reason}"))?;
    if json || !output::is_terminal() {
        return output::print_json(&policy);
    }
    let mut text = String::new();
    for (header, rules) in [("Allow", &policy.allow), ("Deny", &policy.deny)] {
        if !rules.is_empty() {
            text.push_str(&format!("{}\n", Color::Auto.paint(BOLD, header)));
            text.extend(rules.keys().map(|pattern| format!("  {}\n", output::plain(pattern))));
        }
    }
    let rows = [("Date", output::date(&policy.created_at)), ("Owner", policy.created_by)];
    output::print(&format!("{text}\n{}\n", output::columns(&rows, Color::Auto)))
}
