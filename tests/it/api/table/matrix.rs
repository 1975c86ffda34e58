//! Every combination of route, method, name and body, for each caller and both protocols.

use super::{
    STORED, Who,
    answers::none_of,
    clients,
    model::{Call, Does, METHODS, ROWS, Row, expect, takes},
    requests::{FRESH, Sent, Then, UNREAD, bodies_for, names_for, sent},
    serving, version_of,
};
use crate::harness::{Client, block_on};
use std::collections::BTreeSet;

/// One caller's part of the table.
struct Table {
    who: Who,
    keys: BTreeSet<String>,
    made: usize,
    tried: usize,
    failures: Vec<String>,
}

impl Table {
    fn run(&mut self, client: &Client, http1: bool) {
        self.tried = 0;
        for row in &ROWS {
            for method in METHODS {
                let right = takes(row, method);
                if row.does == Does::Log && right && self.who.may() {
                    continue;
                }
                match row.path.ends_with('/') {
                    true => self.names(client, http1, row, method, right),
                    false => UNREAD
                        .iter()
                        .filter(|body| right || body.text.is_none())
                        .for_each(|body| self.one(client, http1, row, method, ("", ""), body)),
                }
            }
        }
        assert!(self.tried > 1000, "only {} combinations over {}", self.tried, version_of(http1));
    }

    /// All names and bodies with the right method; with a wrong method, the names and bodies that would get furthest.
    fn names(&mut self, client: &Client, http1: bool, row: &Row, method: &str, right: bool) {
        for name in names_for(row.does).iter().filter(|name| right || name.always) {
            let named = (name.sent.as_str(), name.decoded.as_str());
            if !right {
                self.one(client, http1, row, method, named, &UNREAD[0]);
                continue;
            }
            for body in bodies_for(row.does).iter().filter(|body| name.always || body.always) {
                self.one(client, http1, row, method, named, body);
            }
        }
        if method == "PATCH" {
            // A method is refused before the body is read.
            self.one(client, http1, row, method, ("kept", "kept"), &sent("garbage", Then::Invalid));
        }
    }

    fn one(
        &mut self,
        client: &Client,
        http1: bool,
        row: &Row,
        method: &str,
        name: (&str, &str),
        body: &Sent,
    ) {
        let fresh = format!("made-{}", self.made);
        let (sent, decoded) = if name.0 == FRESH { (fresh.as_str(), fresh.as_str()) } else { name };
        self.made += 1;
        self.tried += 1;
        let wanted = expect(&Call { row, who: self.who, method, name: decoded, body, keys: &self.keys });
        if matches!(row.does, Does::Create | Does::Import) && wanted.status == 200 {
            self.keys.insert(decoded.to_owned());
        }
        let path = format!("{}{sent}", row.path);
        let problem = match block_on(client.send(method, &path, body.text)) {
            Ok(got) => wanted.problem(method, http1, &got),
            Err(error) => Some(format!("no answer\n  expected {wanted:?}\n  got {error:?}")),
        };
        if let Some(problem) = problem {
            let (who, version) = (self.who, version_of(http1));
            self.failures
                .push(format!("{method} {path} by {who:?} over {version}, body {:?}: {problem}", body.text));
        }
    }
}

fn every_combination_for(who: Who) {
    let kes = serving();
    let keys = STORED.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut table = Table { who, keys, made: 0, tried: 0, failures: Vec::new() };
    for (client, http1) in clients(&kes, who) {
        table.run(&client, http1);
    }
    none_of(&table.failures);
}

#[test]
fn the_table_for_who_shows_no_certificate() {
    every_combination_for(Who::Nobody);
}

#[test]
fn the_table_for_an_unknown_identity() {
    every_combination_for(Who::Stranger);
}

#[test]
fn the_table_for_who_is_denied_everything() {
    every_combination_for(Who::Denied);
}

#[test]
fn the_table_for_who_is_allowed_something_else() {
    every_combination_for(Who::Unmentioned);
}

#[test]
fn the_table_for_who_is_allowed_everything() {
    every_combination_for(Who::Allowed);
}

#[test]
fn the_table_for_the_admin() {
    every_combination_for(Who::Admin);
}
