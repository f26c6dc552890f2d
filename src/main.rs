//! The `ollana` command.

use std::process::ExitCode;

use clap::Parser as _;
use ollana::cli::Cli;

fn main() -> ExitCode {
    // Bad usage ends here with 2 and help with 0, as clap does it.
    let cli = Cli::parse();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
