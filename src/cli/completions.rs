//! `attesto completions` and `attesto man`: generated from the tree of commands.

use std::io::Write as _;
use std::path::PathBuf;

use clap_complete::Shell;
use clap_mangen::Man;

use super::context::CommandError;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "bash: attesto completions bash >/etc/bash_completion.d/attesto\nzsh:  attesto completions zsh >\"${fpath[1]}/_attesto\"\nfish: attesto completions fish >~/.config/fish/completions/attesto.fish"
)]
pub(crate) struct CompletionsArgs {
    /// Shell to generate for
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// Write a page for every command into this folder, instead of one page for `attesto` to standard output
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

/// Writes the completion script to stdout.
pub(crate) fn write_completions(
    args: &CompletionsArgs,
    mut tree: clap::Command,
) -> Result<(), CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut tree, "attesto", &mut script);
    ignore_broken_pipe(std::io::stdout().write_all(&script))
}

/// Writes one manual page to stdout, or all into a folder.
pub(crate) fn write_manual(args: ManArgs, mut tree: clap::Command) -> Result<(), CommandError> {
    tree.build();
    let Some(folder) = args.folder else {
        let mut page = Vec::new();
        Man::new(tree).render(&mut page)?;
        return ignore_broken_pipe(std::io::stdout().write_all(&page));
    };
    std::fs::create_dir_all(&folder)?;
    write_man_pages(&tree, "attesto", &mut |name, page| {
        std::fs::write(folder.join(format!("{name}.1")), page)
    })?;
    Ok(())
}

/// One page for a command and for each below it, named as git's are: `attesto-key-revoke`.
fn write_man_pages(
    command: &clap::Command,
    name: &str,
    write: &mut impl FnMut(&str, &[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut page = Vec::new();
    let named = command.clone().name(name.to_owned());
    Man::new(named).render(&mut page)?;
    write(name, &page)?;
    for below in command.get_subcommands() {
        if below.get_name() != "help" {
            write_man_pages(below, &format!("{name}-{}", below.get_name()), write)?;
        }
    }
    Ok(())
}

/// `attesto man | head` closes the pipe early, which is no failure.
fn ignore_broken_pipe(result: std::io::Result<()>) -> Result<(), CommandError> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::command::Cli;

    #[test]
    fn every_command_has_a_page() {
        let mut tree = Cli::command();
        tree.build();
        let mut written = BTreeMap::new();
        write_man_pages(&tree, "attesto", &mut |name, page| {
            let page = String::from_utf8(page.to_vec()).expect("text");
            written.insert(name.to_owned(), page);
            Ok(())
        })
        .expect("nothing fails in memory");
        for name in ["attesto", "attesto-serve", "attesto-key-revoke"] {
            assert!(written[name].contains(".SH SYNOPSIS"), "{name}");
        }
        assert!(written["attesto-serve"].contains("SHUTDOWN_GRACE_SECONDS"));
        assert!(!written.keys().any(|name| name.ends_with("help")));
    }

    #[test]
    fn every_shell_knows_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "attesto", &mut script);
            let script = String::from_utf8(script).expect("text");
            assert!(script.contains("set-credentials"), "{shell}");
        }
    }
}
