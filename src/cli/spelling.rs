//! Two spellings of one command: `attesto key revoke …`, and `attesto key:revoke …`, which older runbooks use.
//!
//! The colon form is rewritten before the arguments are parsed, so that help, errors and completion know one form.

use std::ffi::OsString;

use clap::Command;

/// What the program was asked, in the nested form, with `serve` filled in when no command is named.
pub fn nested(arguments: impl IntoIterator<Item = OsString>, tree: &Command) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    // Only the first word that is a command counts: what follows it are its own arguments, which may look like anything.
    let command = (1..arguments.len())
        .take_while(|&at| arguments[at] != "--")
        .find_map(|at| {
            let word = arguments[at].to_str()?;
            let (noun, verb) = word.split_once(':').unwrap_or((word, ""));
            let known = tree.find_subcommand(noun)?;
            (verb.is_empty() || known.has_subcommands()).then(|| (at, word.to_owned()))
        });
    match command {
        Some((at, word)) => {
            let words = word.splitn(2, ':').map(OsString::from);
            arguments.splice(at..=at, words);
        }
        None if wants_serve(&arguments) => arguments.insert(1, "serve".into()),
        None => {}
    }
    arguments
}

/// Whether these arguments name no command and want none: nothing at all, or only settings of `serve`.
fn wants_serve(arguments: &[OsString]) -> bool {
    let about_us = ["-h", "--help", "-V", "--version"];
    match arguments {
        [] => false,
        [_] => true,
        [_, first, ..] => {
            first.to_string_lossy().starts_with('-')
                && !arguments
                    .iter()
                    .any(|argument| about_us.iter().any(|about| argument == about))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::command::Cli;

    #[test]
    fn both_spellings_are_one_command() {
        for (asked, nested_form) in [
            ("", "serve"),
            ("--port 9000", "serve --port 9000"),
            ("serve --port 9000", "serve --port 9000"),
            ("--help", "--help"),
            ("-V", "-V"),
            ("key revoke key_1", "key revoke key_1"),
            ("key:revoke key_1", "key revoke key_1"),
            ("tenant:create --name a", "tenant create --name a"),
            ("apple:set-credentials t", "apple set-credentials t"),
            ("--output json key:list t", "--output json key list t"),
            // A value is not a command, and neither is what follows a command.
            (
                "tenant create --name key:list",
                "tenant create --name key:list",
            ),
            (
                "tenant:create --name key:list",
                "tenant create --name key:list",
            ),
            ("-- key:list", "serve -- key:list"),
            // Not ours: the parser says what is wrong, in the words that were typed.
            ("keys:list", "keys:list"),
            ("serve:now", "serve:now"),
            ("key:", "key "),
            ("key:a:b", "key a:b"),
        ] {
            let arguments = std::iter::once("attesto")
                .chain(asked.split(' ').filter(|word| !word.is_empty()))
                .map(OsString::from);
            let rewritten = nested(arguments, &Cli::command());
            let rewritten: Vec<_> = rewritten[1..]
                .iter()
                .map(|word| word.to_str().unwrap())
                .collect();
            assert_eq!(rewritten.join(" "), nested_form, "for: attesto {asked}");
        }
    }
}
