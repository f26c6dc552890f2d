//! Whether `benches/path` still measures: its rows once, short, and every answer right. What they cost says nothing here.

use std::process::ExitCode;

use clap::Parser as _;
use libtest_mimic::{Arguments, Completion, Trial};

#[path = "../../benches/path/main.rs"]
#[allow(dead_code, reason = "it has a main of its own")]
mod bench;

/// One of each kind; the others are the same loads at other sizes.
const ROWS: &str = "start,idle,open,one,embed64,flat,paced100,first,down,up,connect,hey";

fn main() -> ExitCode {
    if bench::is_server() {
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let permitted = bench::permitted();
    let trial = Trial::ignorable_test("every_row_measures_every_system", move || match permitted {
        Ok(()) => measures(),
        Err(reason) => Ok(Completion::ignored_with(reason)),
    });
    libtest_mimic::run(&arguments, vec![trial]).exit_code()
}

fn measures() -> Result<Completion, libtest_mimic::Failed> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let svg = directory.path().join("path.svg");
    let arguments = ["path", "--quick", "--rows", ROWS, "--systems", "direct,nginx,haproxy,ollana", "--svg"];
    let arguments = arguments.into_iter().map(Into::into).chain([svg.into_os_string()]);
    match bench::run(&bench::Arguments::try_parse_from(arguments).map_err(|error| error.to_string())?)? {
        true => Ok(Completion::Completed),
        false => Err("a row was invalid; see above".into()),
    }
}
