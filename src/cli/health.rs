//! `keswarden health`: the readiness or status of the running agent, so that an exec probe needs no shell.

use super::block_on;
use crate::{config, exit};
use clap::Args;
use std::time::Duration;

#[derive(Args)]
pub(super) struct Options {
    /// The agent's whole status, as JSON
    #[arg(long)]
    json: bool,
}

/// Bound of the request to the agent.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn main(options: Options) -> u8 {
    let address = match config::admin_address() {
        Ok(address) => address,
        Err(problems) => {
            eprintln!("keswarden: {problems}");
            return exit::SETTINGS;
        }
    };
    let path = if options.json { "status" } else { "readyz" };
    match block_on(ask(&format!("http://{address}/{path}"))) {
        Ok((ready, text)) => {
            print!("{text}");
            if ready { exit::DONE } else { exit::NOT_READY }
        }
        Err(error) => {
            eprintln!("keswarden: no agent answers at {address}: {error}");
            exit::NOT_READY
        }
    }
}

async fn ask(url: &str) -> Result<(bool, String), String> {
    let client = crate::tls::plain_http_client(REQUEST_TIMEOUT).map_err(|error| error.to_string())?;
    let answer = client.get(url).send().await.map_err(|error| error.to_string())?;
    let good = answer.status().is_success();
    let text = answer.text().await.map_err(|error| error.to_string())?;
    let status: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    let ready = status.and_then(|status| status["ready"].as_bool()).unwrap_or(true);
    Ok((good && ready, text))
}
