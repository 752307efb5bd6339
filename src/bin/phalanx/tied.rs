//! `phalanx tied`: what `phalanx run` starts in place of a command. It has the system end it with its launcher, then
//! becomes the command. A program that joins the world ties itself; this is for the others, and for the time before.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use phalanx::launch;

/// The command behind a tie to this process.
pub fn command(command: &[OsString]) -> Result<Vec<OsString>, String> {
    let me = std::process::id().to_string();
    let mut tied = crate::world::own_command(&["tied", me.as_str()])?;
    tied.extend_from_slice(command);
    Ok(tied)
}

/// Becomes the command, or says why not (127, as a shell has it).
pub fn run(args: Vec<OsString>) -> Result<i32, String> {
    let [parent, program, arguments @ ..] = args.as_slice() else {
        return Err("tied is for `phalanx run`".to_owned());
    };
    let parent =
        parent.to_str().and_then(|text| text.parse().ok()).ok_or("tied needs the launcher's process")?;
    launch::tie_to_parent(parent).map_err(|e| e.to_string())?;
    let cause = Command::new(program).args(arguments).exec();
    eprintln!("phalanx: {} cannot be started: {cause}", program.display());
    Ok(127)
}
