//! argv in, exit code out.

fn main() -> std::process::ExitCode {
    let _last_words = keswarden::telemetry::LastWords;
    keswarden::cli::main(std::env::args_os()).into()
}
