//! `keswarden doctor`: every check once, as a table or as JSON.

use super::{SetUp, block_on, code_of, with_settings};
use crate::{
    app::{
        Deps,
        doctor::{self, Outcome, Row},
    },
    clock, exit,
};
use clap::Args;
use serde_json::{Value, json};

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
        let rows = match block_on(doctor::examine(settings, Deps::default())) {
            Ok(rows) => rows,
            Err(stopped) => return code_of(Err(stopped)),
        };
        if json {
            println!("{}", rows.iter().map(as_json).collect::<Value>());
        } else {
            print_table(&rows);
        }
        exit::worst(rows.iter().filter_map(|row| match &row.outcome {
            Outcome::Failed(finding) => Some(finding.cause.exit_code()),
            _ => None,
        }))
    })
}

/// Prints a line for each check, and the fix of a failed one on the next line.
fn print_table(rows: &[Row]) {
    let width = rows.iter().map(|row| row.what.chars().count()).max().unwrap_or_default();
    println!("{:<7}  {:>6}  {:<width$}  SEEN", "STATE", "TOOK", "CHECK");
    for Row { what, outcome, took } in rows {
        let (state, seen, fix) = match outcome {
            Outcome::Well(seen) => ("ok", seen.clone(), None),
            Outcome::Skipped(why) => ("skipped", (*why).to_owned(), None),
            Outcome::Warning(finding) => {
                ("warning", format!("{}: {}", finding.cause, finding.seen), Some(&finding.fix))
            }
            Outcome::Failed(finding) => {
                ("FAILED", format!("{}: {}", finding.cause, finding.seen), Some(&finding.fix))
            }
        };
        println!("{state:<7}  {:>6}  {what:<width$}  {seen}", clock::human(*took));
        if let Some(fix) = fix {
            println!("{:<7}  {:>6}  {:<width$}  fix: {fix}", "", "", "");
        }
    }
}

fn as_json(Row { what, outcome, took }: &Row) -> Value {
    let (state, more) = match outcome {
        Outcome::Well(seen) => ("ok", json!({ "seen": seen })),
        Outcome::Skipped(why) => ("skipped", json!({ "why": why })),
        Outcome::Warning(finding) | Outcome::Failed(finding) => {
            let state = if matches!(outcome, Outcome::Failed(_)) { "failed" } else { "warning" };
            (state, json!({ "cause": finding.cause.id(), "seen": finding.seen, "fix": finding.fix }))
        }
    };
    let mut row = json!({ "check": what, "state": state, "seconds": took.as_secs_f64() });
    if let (Some(row), Value::Object(more)) = (row.as_object_mut(), more) {
        row.extend(more);
    }
    row
}
