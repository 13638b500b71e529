//! Colon form of the commands: `attesto key:revoke …`, which older runbooks use, is `attesto key revoke …`.
//!
//! The colon form is rewritten before the arguments are parsed, so that help, errors and completion know one form.

use std::ffi::OsString;

use clap::Command;

use crate::crypto::redact::looks_like_secret;

/// The arguments in the nested form, with `serve` inserted when they name no command.
pub fn expand_colon_aliases(
    arguments: impl IntoIterator<Item = OsString>,
    tree: &Command,
) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    // Only the first command counts: what follows are its arguments, which may look like a command.
    let command = (1..arguments.len())
        .take_while(|&at| arguments[at] != "--")
        .find_map(|at| Some((at, split_colon_alias(arguments[at].to_str()?, tree)?)));
    match command {
        Some((at, words)) => {
            arguments.splice(at..=at, words);
        }
        None if is_implicit_serve(&arguments) => arguments.insert(1, "serve".into()),
        None => {}
    }
    arguments
}

/// The words of a command in either form; `None` when `asked` is no command.
fn split_colon_alias(asked: &str, tree: &Command) -> Option<Vec<OsString>> {
    let (mut words, mut rest, mut here) = (Vec::new(), asked, tree);
    while let Some((noun, verb)) = rest.split_once(':')
        && let Some(known) = here.find_subcommand(noun)
        && known.has_subcommands()
    {
        words.push(noun.into());
        (rest, here) = (verb, known);
    }
    let is_command = !words.is_empty() || tree.find_subcommand(asked).is_some();
    words.push(rest.into());
    is_command.then_some(words)
}

/// The parser's message, in which an argument that [may be a secret](looks_like_secret) is replaced by `…`.
pub fn redact_secrets(message: &str, arguments: &[OsString]) -> String {
    let mut secrets: Vec<_> = arguments
        .iter()
        .skip(1)
        .map(|argument| argument.to_string_lossy())
        .flat_map(|argument| {
            let value = argument.split_once('=').map(|(_, value)| value.to_owned());
            [Some(argument.into_owned()), value]
        })
        .flatten()
        .filter(|argument| looks_like_secret(argument))
        .collect();
    // The longest first, because a shorter one may be part of a longer one.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.iter().fold(message.to_owned(), |message, secret| {
        message.replace(secret.as_str(), "…")
    })
}

/// The arguments name no command and ask for no help: there are none, or only flags of `serve`.
fn is_implicit_serve(arguments: &[OsString]) -> bool {
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
    fn what_may_be_a_secret_is_not_repeated() {
        let key = format!("attesto_live_{}", "k3y".repeat(14));
        let label = "PRIVATE KEY-----";
        let pem = &format!("-----BEGIN {label}\ns3cret\n-----END {label}");
        for secret in [
            &key,
            pem,
            "postgres://ada:s3cret@db/x",
            "attesto_test_s3",
            r#"{"s3cret":1}"#,
        ] {
            for words in [
                vec!["key", "list", secret],
                vec!["key", "revoke", "key_1", secret],
                vec![secret],
                vec!["tenant", "list", &format!("--offset={secret}")],
                vec!["key", "list", "t", "--limit", secret],
                vec!["key", "list", "t", &format!("--limit={secret}")],
                vec!["--output", secret],
            ] {
                let arguments: Vec<_> = ["attesto"]
                    .iter()
                    .chain(&words)
                    .map(OsString::from)
                    .collect();
                let error = Cli::command()
                    .try_get_matches_from(&arguments)
                    .and_then(|matches| {
                        clap::FromArgMatches::from_arg_matches(&matches).map(|_: Cli| ())
                    })
                    .expect_err("it cannot be meant");
                let said = redact_secrets(&error.render().to_string(), &arguments);
                assert!(!said.contains(secret) && !said.contains("s3cret"), "{said}");
                assert!(
                    said.starts_with("error: ") && said.contains("--help"),
                    "{said}"
                );
            }
        }
        let harmless = "error: invalid value 'tenant_1' for '<TENANT>'";
        assert_eq!(
            redact_secrets(harmless, &["attesto".into(), "tenant_1".into()]),
            harmless
        );
    }

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
            // Neither a value nor what follows a command is a command.
            (
                "tenant create --name key:list",
                "tenant create --name key:list",
            ),
            (
                "tenant:create --name key:list",
                "tenant create --name key:list",
            ),
            ("-- key:list", "serve -- key:list"),
            // Not a command: the parser's message repeats the words as typed.
            ("keys:list", "keys:list"),
            ("serve:now", "serve:now"),
            ("key:", "key "),
            ("key:a:b", "key a:b"),
            ("audit:operators:list", "audit operators list"),
            ("audit:operators list", "audit operators list"),
            ("audit operators:list", "audit operators:list"),
        ] {
            let arguments = std::iter::once("attesto")
                .chain(asked.split(' ').filter(|word| !word.is_empty()))
                .map(OsString::from);
            let rewritten = expand_colon_aliases(arguments, &Cli::command());
            let rewritten: Vec<_> = rewritten[1..]
                .iter()
                .map(|word| word.to_str().unwrap())
                .collect();
            assert_eq!(rewritten.join(" "), nested_form, "for: attesto {asked}");
        }
    }
}
