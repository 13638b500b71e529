//! The documentation is checked: links have targets, commands and flags exist, JSON parses, and
//! every event type and error code is documented.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use attesto::cli::colon_aliases;
use attesto::cli::command::Cli;
use attesto::config::definitions::find_setting;
use attesto::deliveries::OutcomeClass;
use attesto::deliveries::health::EndpointState;
use attesto::events::EventType;
use attesto::http::ErrorCode;
use clap::CommandFactory as _;
use clap::error::ErrorKind;
use strum::VariantArray as _;

use crate::openapi::schema::objections;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page: its path from the root, and its text.
pub(crate) fn pages() -> BTreeMap<PathBuf, String> {
    fn collect(folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let name = folder.join(entry.unwrap().file_name());
            let path = root().join(&name);
            if path.is_dir() {
                collect(&name, found);
            } else if name.extension().is_some_and(|extension| extension == "md") {
                found.insert(name, std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(Path::new("docs"), &mut found);
    for name in ["README.md", "CHANGELOG.md"] {
        let text = std::fs::read_to_string(root().join(name)).unwrap();
        found.insert(name.into(), text);
    }
    assert!(found.len() > 15, "{:?}", found.keys());
    found
}

/// The text between fences, each with its language; and what stands outside of them.
pub(crate) fn blocks(text: &str) -> (Vec<(String, String)>, String) {
    let (mut blocks, mut outside, mut open) = (Vec::new(), String::new(), None);
    for line in text.lines() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(language)) => open = Some((language.trim().to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, block)), None) => block.extend([line, "\n"]),
            (None, None) => outside.extend([line, "\n"]),
        }
    }
    assert!(open.is_none(), "a fence is not closed");
    (blocks, outside)
}

/// The text between single backticks.
fn spans(outside: &str) -> Vec<String> {
    let lines = outside.split("\n\n");
    lines
        .flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2))
        .map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

/// A heading's anchor, as forges and books make it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    kept.chars()
        .filter_map(|letter| match letter {
            ' ' => Some('-'),
            letter if letter.is_alphanumeric() || "-_".contains(letter) => Some(letter),
            _ => None,
        })
        .collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let (_, outside) = blocks(text);
    let headings = outside.lines().filter(|line| line.starts_with('#'));
    headings.map(anchor).collect()
}

#[test]
fn every_link_has_a_target() {
    let pages = pages();
    for (name, text) in &pages {
        let (_, outside) = blocks(text);
        for link in outside.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.starts_with("https://") {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => name.clone(),
                path => name.parent().unwrap().join(path),
            };
            // Without the dots on the way.
            let mut plain = PathBuf::new();
            for part in target.components() {
                match part {
                    std::path::Component::ParentDir => assert!(plain.pop(), "{name:?}: {link}"),
                    part => plain.push(part),
                }
            }
            assert!(root().join(&plain).exists(), "{}: {link}", name.display());
            if !heading.is_empty() {
                let known = pages
                    .get(&plain)
                    .map(|text| anchors(text))
                    .unwrap_or_default();
                assert!(
                    known.contains(heading),
                    "{}: {link} of {known:?}",
                    name.display()
                );
            }
        }
    }
}

const OUR_FOLDERS: [&str; 8] = [
    ".ci/",
    "benches/",
    "bin/",
    "docs/",
    "fuzz/",
    "migrations/",
    "src/",
    "tests/",
];

/// Files of this repository that a sentence names.
#[test]
fn every_mentioned_file_exists() {
    let mut count = 0;
    for (name, text) in pages() {
        for span in spans(&blocks(&text).1) {
            let path = span.split(' ').next().unwrap();
            if OUR_FOLDERS.iter().any(|it| path.starts_with(it)) {
                count += 1;
                assert!(root().join(path).exists(), "{}: `{span}`", name.display());
            }
        }
    }
    assert!(count > 15, "only {count} were found");
}

/// The text of a page from a heading to the next one.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, after) = text
        .split_once(heading)
        .unwrap_or_else(|| panic!("no heading {heading}"));
    after.split("\n## ").next().unwrap()
}

/// The rows of a section's table, without its head.
fn table_rows(section: &str) -> Vec<&str> {
    let rows = section.lines().filter(|line| line.starts_with("| "));
    rows.skip(1).collect()
}

fn architecture() -> String {
    pages().remove(Path::new("docs/ARCHITECTURE.md")).unwrap()
}

#[test]
fn the_map_has_every_room_in_the_order_that_is_checked() {
    let page = architecture();
    let map = section(&page, "## The map");
    let rooms: Vec<String> = table_rows(map)
        .into_iter()
        .filter_map(|row| spans(row).into_iter().next())
        .map(|path| {
            let room = path.strip_prefix("src/").unwrap();
            room.trim_end_matches(".rs").trim_matches('/').to_owned()
        })
        .collect();
    assert_eq!(rooms, crate::tidy::ROOMS);
}

/// Each answer names a file, and that file contains the names in the answer.
#[test]
fn every_question_of_a_newcomer_is_answered_by_a_path() {
    let page = architecture();
    let rows = table_rows(section(&page, "## Where do I find…"));
    assert!(rows.len() >= 12, "{rows:#?}");
    for row in rows {
        let answer = row.split('|').nth(2).unwrap();
        let mut named: Option<(String, String)> = None;
        for span in spans(answer) {
            let path = root().join(&span);
            if OUR_FOLDERS.iter().any(|folder| span.starts_with(folder)) {
                let text = if path.is_file() {
                    std::fs::read_to_string(path).unwrap()
                } else {
                    String::new()
                };
                named = Some((span, text));
            } else {
                let (file, text) = named.as_ref().expect("a path stands before a name");
                assert!(text.contains(&span), "{file} has no {span}: {row}");
            }
        }
        assert!(named.is_some(), "no path: {row}");
    }
}

#[test]
fn our_own_vocabulary_is_small() {
    let page = architecture();
    let words = table_rows(section(&page, "## Words"));
    assert!((1..=20).contains(&words.len()), "{}", words.len());
}

/// The participants of the sequence diagrams.
#[test]
fn every_file_in_a_diagram_is_there() {
    let mut count = 0;
    for (language, block) in blocks(&architecture()).0 {
        assert_eq!(language, "mermaid");
        for word in block
            .split_whitespace()
            .filter(|it| Path::new(it).extension().is_some_and(|kind| kind == "rs"))
        {
            count += 1;
            assert!(root().join("src").join(word).is_file(), "{word}");
        }
    }
    assert!(count >= 8, "only {count} were found");
}

#[test]
fn the_book_has_every_page() {
    let pages = pages();
    let summary = &pages[Path::new("docs/SUMMARY.md")];
    for name in pages.keys() {
        if let Ok(inside) = name.strip_prefix("docs")
            && inside != Path::new("SUMMARY.md")
        {
            let link = format!("({})", inside.display());
            assert!(summary.contains(&link), "docs/SUMMARY.md has no {link}");
        }
    }
}

/// The words of a command line, split as a shell does. Operators between commands are words of
/// their own.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, letter) if letter.is_whitespace() => words.extend(word.take()),
            // `<tenant>` is a placeholder, not a redirection.
            (None, '>') if word.as_ref().is_some_and(|word| word.contains('<')) => {
                word.get_or_insert_default().push(letter);
            }
            (None, '|' | ';' | '>' | '&' | '(' | ')') => {
                // The 2 of `2>` is no argument.
                let is_number = |word: &String| word.parse::<u8>().is_ok();
                words.extend(word.take().filter(|it| letter != '>' || !is_number(it)));
                words.push(letter.to_string());
            }
            (None, '<') if letters.peek() == Some(&'(') => words.push("<".to_owned()),
            (_, letter) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// The `attesto` commands among the words, each without the program's name.
fn ours(words: &[String]) -> Vec<Vec<String>> {
    let ends = |word: &str| ["|", ";", ">", "&", "(", ")", "<"].contains(&word);
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let program = matches!(word.as_str(), "attesto" | "/usr/local/bin/attesto");
        let before = at.checked_sub(1).map(|before| words[before].as_str());
        // At the start of a command, after variables, or as an argument of a program that runs it.
        let leads = match before {
            None => true,
            Some(before) => {
                ends(before)
                    || ["$", "sudo", "--", "attesto", "-T"].contains(&before)
                    || before.split_once('=').is_some_and(|(name, _)| {
                        name.chars()
                            .all(|letter| letter.is_ascii_uppercase() || letter == '_')
                    })
            }
        };
        let next = words.get(at + 1).map(String::as_str);
        if program && leads && next != Some("attesto") {
            let rest = words[at + 1..].iter().take_while(|word| !ends(word));
            found.push(rest.cloned().collect());
        }
    }
    found
}

/// Fills in a placeholder: an id for `tenant_…` and `<tenant>`, some text for other words in angle
/// brackets.
fn filled(word: &str) -> String {
    const RANDOM: &str = "01J9ZQ4T5W6X7Y8Z9A0B1C2D3E";
    // `[--limit N]` is optional, and must be valid all the same.
    let word = word
        .trim_matches(['[', ']'])
        .replace("<tenant>", "tenant_…");
    for prefix in ["tenant_", "key_", "evt_", "del_"] {
        if word == format!("{prefix}…") || word == format!("{prefix}...") {
            return format!("{prefix}{RANDOM}");
        }
    }
    word
}

/// Whether the command parses. With `whole`, required arguments must be present too.
fn judge(command: &[String], whole: bool) -> Result<(), String> {
    let mut tree = Cli::command();
    tree.build();
    let is_left_out = |word: &String| word == "…" || word == "...";
    let whole = whole
        && !command
            .iter()
            .any(|word| word.contains(['…', '<', '$']) && filled(word) == *word);
    let arguments = std::iter::once("attesto".to_owned())
        .chain(
            command
                .iter()
                .filter(|word| !is_left_out(word))
                .map(|word| filled(word)),
        )
        .map(OsString::from);
    let arguments = colon_aliases::expand_colon_aliases(arguments, &tree);
    match Cli::command().try_get_matches_from(arguments) {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(()),
            ErrorKind::InvalidSubcommand | ErrorKind::UnknownArgument => Err(error.to_string()),
            _ if whole => Err(error.to_string()),
            _ => Ok(()),
        },
    }
}

#[test]
fn every_documented_command_parses() {
    let mut count = 0;
    for (name, text) in pages() {
        let (blocks, outside) = blocks(&text);
        let shell = |language: &str| ["sh", "console", "bash", ""].contains(&language);
        let shells = blocks.into_iter().filter(|(language, _)| shell(language));
        let lines: Vec<String> = shells
            .flat_map(|(_, block)| {
                let joined = block.replace("\\\n", " ");
                joined.lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect();
        let commands = lines.iter().flat_map(|line| ours(&words(line)));
        for command in commands {
            count += 1;
            if let Err(problem) = judge(&command, true) {
                panic!(
                    "{}: attesto {}: {problem}",
                    name.display(),
                    command.join(" ")
                );
            }
        }
        // In a sentence a command may be named without its arguments.
        for span in spans(&outside) {
            for command in ours(&words(&span)) {
                count += 1;
                if let Err(problem) = judge(&command, false) {
                    panic!("{}: `{span}`: {problem}", name.display());
                }
            }
        }
    }
    assert!(count > 80, "only {count} commands were found");
}

/// Advice in messages and comments names commands, and flags that these have.
#[test]
fn every_command_in_a_message_parses() {
    let source = source();
    let spans = source
        .lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2));
    let (mut count, mut problems) = (0, Vec::new());
    // Alerts have placeholders of their own.
    let ours_alone = |span: &&str| span.starts_with("attesto ") && !span.contains("{{");
    for span in spans.filter(ours_alone) {
        for command in ours(&words(span)) {
            count += 1;
            if let Err(problem) = judge(&command, false) {
                problems.push(format!("`{span}`: {problem}"));
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(count > 60, "only {count} commands were found");
}

#[test]
fn an_invalid_documented_command_is_found() {
    let ours = |line: &str| ours(&words(line)).concat().join(" ");
    for (line, command) in [
        ("$ attesto key list t # all", "key list t"),
        (
            "A=1 B='x y' attesto serve --port 1 | head",
            "serve --port 1",
        ),
        (
            "docker compose exec attesto attesto tenant list",
            "tenant list",
        ),
        ("docker build -t attesto --build-arg X=1 .", ""),
        ("printf %s \"$X\" | attesto audit list t", "audit list t"),
        ("cd attesto", ""),
        ("attesto key list t 2>/dev/null", "key list t"),
    ] {
        assert_eq!(ours(line), command, "{line}");
    }
    let refused = |line: &str| judge(&words(line), true).is_err();
    assert!(refused("key destroy key_…") && refused("key list tenant_… --all"));
    assert!(refused("key list") && refused("tenant create --nam x"));
    assert!(!refused("key list <tenant>") && !refused("key:revoke key_…"));
}

/// Blocks that are neither shell nor JSON, and the test that checks them.
const OTHERS: [(&str, &str, &str); 8] = [
    (
        "docs/bi.md",
        "sql",
        "readonly: a role for statistics asks them",
    ),
    (
        "docs/integrate.md",
        "sql",
        "reference_receiver, histories: Postgres runs it",
    ),
    (
        "docs/migrating.md",
        "csv",
        "verify_batch: the command reads it",
    ),
    (
        "docs/webhooks.md",
        "http",
        "runbooks: a delivery has these headers",
    ),
    (
        "docs/webhooks.md",
        "python",
        "runbooks: it believes a delivery",
    ),
    (
        "docs/ARCHITECTURE.md",
        "mermaid",
        "docs: the files in it are there",
    ),
    // Not checked.
    (
        "README.md",
        "mermaid",
        "a picture of what stands around Attesto",
    ),
    (
        "docs/monitoring.md",
        "yaml",
        "a setting of Prometheus, which is not here",
    ),
];

#[test]
fn every_block_is_run_or_checked() {
    let mut others = BTreeSet::new();
    for (name, text) in pages() {
        for (language, _) in blocks(&text).0 {
            match language.as_str() {
                // `runbooks` runs every page that has one; `every_json_block_matches_the_api`
                // checks all of it.
                "sh" | "console" | "json" => {}
                language => {
                    others.insert((name.display().to_string(), language.to_owned()));
                }
            }
        }
    }
    let known = OTHERS.map(|(page, language, _)| (page.to_owned(), language.to_owned()));
    assert_eq!(others, known.into());
}

/// Each matches the OpenAPI description, a running server or its log.
#[test]
fn every_json_block_matches_the_api() {
    let description = attesto::app::openapi_document();
    for (name, text) in pages() {
        let name = name.display().to_string();
        // Generated from the description, or compared with `attesto dev`, by the tests `openapi`
        // and `dev_command`.
        if ["docs/api.md", "README.md", "docs/quickstart.md"].contains(&name.as_str()) {
            continue;
        }
        for (_, block) in blocks(&text).0.iter().filter(|(it, _)| it == "json") {
            let told: serde_json::Value = serde_json::from_str(block).unwrap();
            let schema = if told.get("signedAppTransaction").is_some() {
                "apple.AppTransactionRequest"
            } else if told.get("signedTransaction").is_some() {
                "apple.VerifyRequest"
            } else if told.get("offerId").is_some() {
                "apple.OfferRequest"
            } else if told.get("deliveryStatus").is_some() {
                "apple.ConsumptionRequest"
            } else if told.get("pendingRefundToken").is_some() {
                "google.RefundReviewRequest"
            } else if told.get("purchaseToken").is_some() {
                "google.AcknowledgeRequest"
            } else if told.get("valid").is_some() {
                "ErrorBody"
            } else if told.get("event").is_some() && name == "docs/events.md" {
                // Compared with a delivery by `runbooks`.
                let word = told["event"].as_str().unwrap();
                assert!(
                    EventType::ALL.iter().any(|known| known.as_str() == word),
                    "{word}"
                );
                continue;
            } else if told.get("msg").is_some() && name == "docs/operations.md" {
                // Compared with a log line by `checks`.
                continue;
            } else {
                panic!("{name}: nothing says whether this is right: {block}");
            };
            let schema = &description["components"]["schemas"][schema];
            let objections = objections(schema, &told, &description);
            assert!(objections.is_empty(), "{name}: {objections:#?}");
        }
    }
}

#[test]
fn every_json_block_parses() {
    let mut count = 0;
    for (name, text) in pages() {
        let (blocks, _) = blocks(&text);
        for (language, block) in blocks {
            let mut texts = Vec::new();
            if language == "json" {
                texts.push(block);
            } else {
                // The body of `curl -d`, if the shell substitutes nothing in it.
                for word in block.replace("\\\n", " ").lines().flat_map(words) {
                    if word.starts_with('{') && word.ends_with('}') && !word.contains('$') {
                        texts.push(word);
                    }
                }
            }
            for text in texts {
                count += 1;
                if let Err(problem) = serde_json::from_str::<serde_json::Value>(&text) {
                    panic!("{}: {problem}: {text}", name.display());
                }
            }
        }
    }
    assert!(count > 10, "only {count} were found");
}

/// A variable that is set in a block is a setting, unless the block itself uses it.
#[test]
fn every_documented_variable_is_a_setting() {
    let mut count = 0;
    for (name, text) in pages() {
        for (_, block) in blocks(&text).0.iter().filter(|(it, _)| it == "sh") {
            for line in block.lines() {
                let line = line.strip_prefix("export ").unwrap_or(line);
                let variable = line.split('=').next().unwrap();
                let is_one = |it: char| it.is_ascii_uppercase() || it == '_';
                if variable == line || !variable.chars().all(is_one) {
                    continue;
                }
                count += 1;
                let plain = variable.strip_suffix("_FILE").unwrap_or(variable);
                let is_used = block.contains(&format!("${variable}"));
                // Settings of the example receivers.
                let is_known =
                    find_setting(plain).is_some() || variable == "ATTESTO_WEBHOOK_SECRET";
                assert!(is_known || is_used, "{}: {variable}", name.display());
            }
        }
    }
    assert!(count > 8, "only {count} were found");
}

/// All source files as one text.
fn source() -> String {
    fn collect(folder: &Path, found: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else {
                // Certificates are binary.
                found.push_str(&String::from_utf8_lossy(&std::fs::read(path).unwrap()));
            }
        }
    }
    let mut found = String::new();
    for folder in [
        "src",
        "migrations",
        "docs/receivers",
        "docs/deploy",
        "docs/monitoring",
    ] {
        collect(&root().join(folder), &mut found);
    }
    for file in ["Dockerfile", "docker-compose.yml", "bin/deploy"] {
        found.push_str(&std::fs::read_to_string(root().join(file)).unwrap());
    }
    found
}

/// Names of other programs on the pages.
const NAMES_OF_OTHERS: [&str; 21] = [
    // Names in receipts and other services.
    "verifyReceipt",
    "cancellation_date_ms",
    "cancellation_reason",
    "pending_renewal_info",
    "cancelReason",
    "expiryTimeMillis",
    "INITIAL_PURCHASE",
    "PRODUCT_CHANGE",
    "BILLING_ISSUE",
    "SUBSCRIPTION_PAUSED",
    "SUBSCRIPTION_EXTENDED",
    "NON_RENEWING_PURCHASE",
    // What other programs read their proxy from.
    "HTTPS_PROXY",
    "NO_PROXY",
    // Settings of Google Cloud, Postgres and PgBouncer.
    "iam.allowedPolicyMemberDomains",
    "checkpoint_timeout",
    "log_statement",
    "wal_compression",
    "max_wal_size",
    "synchronous_standby_names",
    "default_pool_size",
];

/// Settings, fields, log names, metrics, columns: every name with an underscore exists in the
/// source.
#[test]
fn every_documented_name_exists_in_the_source() {
    let source = source();
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let mut names: BTreeSet<&str> = source.split(|letter| !is_name(letter)).collect();
    names.extend(NAMES_OF_OTHERS);
    // Generated from the names of variants.
    names.extend(OutcomeClass::VARIANTS.iter().map(|class| class.as_str()));
    let in_snakes = |name: &str| {
        let letter = |letter: char| match letter {
            'A'..='Z' => format!("_{}", letter.to_ascii_lowercase()),
            letter => letter.to_string(),
        };
        name.chars().map(letter).collect::<String>()
    };
    let mut unknown = BTreeSet::new();
    let mut used: BTreeSet<&str> = BTreeSet::new();
    let mut count = 0;
    for (page, text) in pages() {
        for span in spans(&blocks(&text).1) {
            let is_one = span.chars().all(|letter| is_name(letter) || letter == '.');
            let several = span.contains('_') || span.contains(|it: char| it.is_ascii_uppercase());
            let all_capitals = !span.contains('_') && !span.contains(char::is_lowercase);
            let last = span.rsplit('.').next().unwrap();
            if !is_one || !several || all_capitals || !span.starts_with(char::is_alphabetic) {
                continue;
            }
            count += 1;
            used.extend(NAMES_OF_OTHERS.iter().filter(|it| **it == span));
            let known = [span.as_str(), last, &in_snakes(last)];
            if !known.iter().any(|it| names.contains(it)) {
                unknown.insert(format!("{}: {span}", page.display()));
            }
        }
    }
    assert!(count > 300, "only {count} were found");
    assert!(unknown.is_empty(), "these are nowhere else: {unknown:#?}");
    let unused: Vec<_> = NAMES_OF_OTHERS
        .iter()
        .filter(|it| !used.contains(*it))
        .collect();
    assert!(unused.is_empty(), "{unused:?} are on no page any more");
}

/// The error messages in the documentation can be found by searching for them.
#[test]
fn every_documented_start_error_exists() {
    let pages = pages();
    let page = &pages[Path::new("docs/troubleshooting.md")];
    let (_, section) = page.split_once("## It does not start").unwrap();
    let rows = section.split("\n\nIt starts").next().unwrap();
    let (source, mut count) = (source(), 0);
    for row in rows.lines().filter(|line| line.starts_with("| `")) {
        let said = row.split('`').nth(1).unwrap();
        // That one is a message of Postgres.
        for part in said
            .split('…')
            .filter(|_| !said.contains("prepared statement"))
        {
            let part = part.trim();
            assert!(source.contains(part), "nobody says {part:?}");
            count += 1;
        }
    }
    assert!(count > 5, "{count}");
}

/// The first cells of a page's tables, without their backticks.
pub(crate) fn first_cells(text: &str) -> BTreeSet<String> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split_once('`'))
        .map(|(cell, _)| cell.to_owned())
        .collect()
}

/// The words in capitals in a source file that start like this.
fn codes(file: &str, start: &str) -> BTreeSet<String> {
    let source = std::fs::read_to_string(root().join(file)).unwrap();
    // Tests contain words that are no codes.
    let source = source.split("#[cfg(test)]").next().unwrap();
    source
        .split(start)
        .skip(1)
        .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split_once('"'))
        .map(|(word, _)| word.to_owned())
        .filter(|word| {
            let letters = |letter: char| letter.is_ascii_uppercase() || letter == '_';
            word.len() > 5 && word.chars().all(letters)
        })
        .collect()
}

#[test]
fn every_error_code_is_documented_with_its_fix() {
    let pages = pages();
    let page = &pages[Path::new("docs/errors.md")];
    let (no_verdict, refusals) = page.split_once("## The store's \"no\"").unwrap();
    let problems = codes("src/http/problem.rs", "=>");
    assert!(problems.len() >= 12, "{problems:?}");
    assert_eq!(first_cells(no_verdict), problems);
    for row in no_verdict.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let code = cells[1].trim_matches('`');
        let known = ErrorCode::ALL.into_iter().find(|it| it.as_str() == code);
        assert_eq!(cells[2], known.unwrap().status().as_str(), "{code}");
    }

    let mut known = BTreeSet::new();
    for file in [
        "src/stores/apple/action_error.rs",
        "src/stores/apple/app_transaction.rs",
        "src/stores/apple/error.rs",
        "src/stores/google/error_response.rs",
        "src/stores/google/refund_review.rs",
    ] {
        known.extend(codes(file, "Self::rejection("));
    }
    let told = first_cells(refusals.split("## Exit codes").next().unwrap());
    assert!(told.len() >= 8);
    assert_eq!(told, known);
}

#[test]
fn every_delivery_outcome_is_documented() {
    let pages = pages();
    let page = &pages[Path::new("docs/webhooks.md")];
    let (_, table) = page.split_once("| outcome | meaning |").unwrap();
    let rows = table.lines().take_while(|line| !line.starts_with('`'));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let told: BTreeSet<String> = cells.flat_map(spans).collect();
    let known = OutcomeClass::VARIANTS.iter();
    let known: BTreeSet<String> = known.map(|class| class.as_str().to_owned()).collect();
    assert_eq!(told, known);

    let (_, table) = page.split_once("| `state` | because |").unwrap();
    let table = table.split("\n\n").next().unwrap();
    let states = [
        EndpointState::Active,
        EndpointState::Throttled,
        EndpointState::Open,
        EndpointState::Paused,
    ];
    let states = states.map(|state| state.as_str().to_owned());
    assert_eq!(first_cells(table), states.into());
}

#[test]
fn every_event_type_is_documented() {
    let pages = pages();
    let words: BTreeSet<String> = EventType::ALL
        .iter()
        .map(|word| word.as_str().to_owned())
        .collect();
    let page = &pages[Path::new("docs/events.md")];
    let table = page.split_once("## The words").unwrap().1;
    let table = table.split_once("## Reasons").unwrap().0;
    assert_eq!(first_cells(table), words);

    // Integrators decide by the state: their page names only events that ask for something else, all of those.
    let integrate = &pages[Path::new("docs/integrate.md")];
    let (_, outside) = blocks(integrate);
    let asking = section(integrate, "## 3. Listen for what happens afterwards");
    let rows = table_rows(asking).into_iter();
    let asking: BTreeSet<String> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(spans)
        .collect();
    for word in words.iter().filter(|word| {
        word.ends_with("_request") || word.ends_with("_review") || word.ends_with("_due")
    }) {
        assert!(asking.contains(word), "{word}");
    }
    for span in spans(&outside) {
        let is_event = ["subscription.", "product.", "purchase.", "app."]
            .iter()
            .any(|start| span.starts_with(start));
        assert!(!is_event || words.contains(&span), "{span} is no event");
    }
}

#[test]
fn integrators_are_given_one_upsert() {
    let page = pages().remove(Path::new("docs/integrate.md")).unwrap();
    assert_eq!(page.to_lowercase().matches("on conflict").count(), 1);
}
