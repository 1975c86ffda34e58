//! `keswarden doctor`: every check of the gate once, as a table or as JSON.

use super::{SetUp, block_on, code_of, with_settings};
use crate::{
    app::{self, Deps},
    exit,
    gate::Row,
    names::Name,
};
use clap::Args;

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    set_up: SetUp,
    /// One JSON array
    #[arg(long)]
    json: bool,
}

pub(super) fn main(options: Options) -> u8 {
    let Options { set_up, json } = options;
    with_settings(set_up, |settings| {
        let key = settings.key.clone();
        let rows = match block_on(app::doctor(settings, Deps::default())) {
            Ok(rows) => rows,
            Err(stopped) => return code_of(Err(stopped)),
        };
        if json {
            print_json(&rows, &key)
        } else {
            print_table(&rows, &key)
        }
        let findings = rows.iter().filter_map(|row| row.result.as_ref()?.as_ref().err());
        exit::worst(findings.map(|finding| finding.cause.exit_code()))
    })
}

fn print_table(rows: &[Row], key: &Name) {
    for Row { check, result } in rows {
        let what = check.what(std::slice::from_ref(key));
        match result {
            None => println!("skipped  {what}: an earlier check failed"),
            Some(Ok(seen)) => println!("ok       {what}: {seen}"),
            Some(Err(finding)) => {
                println!("FAILED   {what}: {}: {}", finding.cause, finding.seen);
                println!("         fix: {}", finding.fix);
            }
        }
    }
}

fn print_json(rows: &[Row], key: &Name) {
    let rows: Vec<_> = rows
        .iter()
        .map(|Row { check, result }| {
            let what = check.what(std::slice::from_ref(key));
            match result {
                None => serde_json::json!({ "check": what, "state": "skipped" }),
                Some(Ok(seen)) => serde_json::json!({ "check": what, "state": "ok", "seen": seen }),
                Some(Err(finding)) => serde_json::json!({
                    "check": what, "state": "failed", "cause": finding.cause.id(), "seen": finding.seen, "fix": finding.fix,
                }),
            }
        })
        .collect();
    println!("{}", serde_json::Value::from(rows));
}
