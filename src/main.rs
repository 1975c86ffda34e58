//! argv in, exit code out.

fn main() -> std::process::ExitCode {
    keswarden::cli::main(std::env::args_os()).into()
}
