//! The deployment files: their settings exist and have valid values, and their ports, paths,
//! commands and timeouts match the server.
//!
//! The files are read as lines of text: each has its own format, but the settings look alike in all
//! of them. `bin/check-deploy` checks their syntax with the proper tools.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use attesto::config::definitions::{SETTINGS, SettingKind, find_setting};
use attesto::config::{AppSettings, RawSettings};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::world::folder::Folder;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    let read = std::fs::read_to_string(root().join(name));
    read.unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What follows `start` in each line that begins with it, ignoring blanks and the dash of a list.
fn after<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
    text.lines()
        .filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(start))
        .map(str::trim)
        .collect()
}

/// The one value of that name, without its quotes.
fn only<'a>(text: &'a str, start: &str) -> &'a str {
    let found = after(text, start);
    assert_eq!(found.len(), 1, "{start}: {found:?}");
    found[0].trim_matches('"')
}

/// The seconds in `40s`, `40` or `1m`.
fn seconds(text: &str) -> u64 {
    let text = text.trim_matches('"');
    match text.strip_suffix('m') {
        Some(minutes) => minutes.parse::<u64>().unwrap() * 60,
        None => text.strip_suffix('s').unwrap_or(text).parse().unwrap(),
    }
}

fn is_variable(name: &str) -> bool {
    let letters = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    name.len() > 1 && name.bytes().all(letters) && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// The settings that a file sets: names of variables, with their values if the file contains them.
fn given(file: &str) -> BTreeMap<String, String> {
    /// Not settings of Attesto: variables of another program, of the image itself, or of the build.
    const OTHERS: [&str; 10] = [
        "POSTGRES_PASSWORD_FILE",
        "VERSION",
        "REVISION",
        "PROFILE",
        "PATH",
        "SQLX_OFFLINE",
        "CARGO_TERM_COLOR",
        "SSL_CERT_FILE",
        "RUST_VERSION",
        "BUILD_IMAGE",
    ];
    let text = read(file);
    let mut found = BTreeMap::new();
    let mut lines = text.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        if line.starts_with('#') {
            continue;
        }
        // `- name: X` and the line after it; `X: value`, `X = "value"`, `X=value`, with the
        // prefixes of the format.
        let (name, value) = if let Some(name) = line.strip_prefix("- name: ") {
            let next = lines.peek().copied().unwrap_or_default();
            (name, next.strip_prefix("value:").unwrap_or_default())
        } else {
            let start = ["Environment=", "ENV "].iter();
            let line = start.fold(line, |line, start| line.strip_prefix(start).unwrap_or(line));
            let line = line.trim_end_matches(" \\");
            let at = line.find([':', '=']).unwrap_or(line.len());
            (line[..at].trim(), line.get(at + 1..).unwrap_or_default())
        };
        if is_variable(name) && !OTHERS.contains(&name) {
            let value = value.trim().trim_matches('"');
            // `${LOG_LEVEL:-info}` of a compose file.
            let value = match value.strip_prefix("${") {
                Some(inside) => {
                    inside
                        .trim_end_matches('}')
                        .split_once(":-")
                        .unwrap_or_default()
                        .1
                }
                None => value,
            };
            found.insert(name.to_owned(), value.to_owned());
        }
    }
    found
}

/// Attesto accepts these settings; values that name files get real files.
fn assert_taken(file: &str, given: &BTreeMap<String, String>) {
    let folder = Folder::new();
    let secret = |name: &str, content: &str| {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let url = secret("url", "postgres://attesto@localhost/attesto");
    let key = secret("key", &STANDARD.encode([7; 32]));
    let mut variables = BTreeMap::from([
        ("DATABASE_URL_FILE".to_owned(), url.clone()),
        ("ATTESTO_ENCRYPTION_KEY_FILE".to_owned(), key.clone()),
    ]);
    for (name, value) in given {
        let setting = find_setting(name.strip_suffix("_FILE").unwrap_or(name));
        let setting = setting.unwrap_or_else(|| panic!("{file}: {name} is no setting"));
        assert!(
            !name.ends_with("_FILE") || setting.kind == SettingKind::Secret,
            "{file}: {name} is no secret, and has no file"
        );
        if setting.kind == SettingKind::Secret {
            assert!(
                name.ends_with("_FILE"),
                "{file}: {name} stands there itself"
            );
        } else {
            variables.insert(name.clone(), value.clone());
        }
    }
    let lookup = |name: &str| variables.get(name).map(OsString::from);
    if let Err(problems) = AppSettings::parse(&RawSettings::new([], &lookup)) {
        panic!("{file}: {problems:?}");
    }
}

/// The sections of `.env.example`: the heading, and the first setting of each.
const SECTIONS: [(&str, &str); 10] = [
    ("Where it listens", "PORT"),
    ("The database", "DATABASE_URL"),
    ("What seals secrets", "ATTESTO_ENCRYPTION_KEY"),
    ("How it behaves", "ATTESTO_ENV"),
    ("Limits and caches", "RATE_LIMIT_PER_SECOND"),
    ("Deliveries", "WEBHOOK_DISPATCHER_DISABLED"),
    ("Operation", "ENABLE_VALIDATION_AUDIT_LOG"),
    ("Apple", "APPLE_PRODUCTION_URL"),
    ("Google", "GOOGLE_PLAY_URL"),
    ("Both stores", "UPSTREAM_TIMEOUT_SECONDS"),
];

/// `.env.example`, generated from the settings.
fn env_example() -> String {
    let mut text = "\
# Every setting of Attesto with its default. Copy this file to .env, which is never committed, and remove the # from what
# you change. `attesto serve --help` lists the same settings as flags.
#
# Each secret can come from a file instead: NAME_FILE=/run/secrets/name. Only one of the two may be set.
"
    .to_owned();
    for setting in SETTINGS.iter() {
        let name = setting.name;
        if let Some((heading, _)) = SECTIONS.iter().find(|(_, first)| *first == name) {
            writeln!(text, "\n### {heading}").unwrap();
        }
        // A secret is documented at its flag, which names a file.
        let help = setting.help.strip_prefix("A file with ");
        let help = help.unwrap_or(setting.help);
        let (first, rest) = help.split_at(1);
        // The values of `LOG_LEVEL` and the like are placeholders.
        let first = match setting.kind {
            SettingKind::Secret => first.to_uppercase(),
            SettingKind::Plain | SettingKind::Switch => first.to_owned(),
        };
        text.push_str(&wrapped_comment(&format!("{first}{rest}")));
        writeln!(text, "#{name}={}", setting.default).unwrap();
        if setting.kind == SettingKind::Secret {
            writeln!(text, "#{name}_FILE=").unwrap();
        }
    }
    text
}

/// An empty line and lines of at most 120 characters that begin with `# `.
fn wrapped_comment(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split(' ') {
        let line = lines.last_mut().unwrap();
        if line.len() + word.len() < 120 {
            write!(line, " {word}").unwrap();
        } else {
            lines.push(format!("# {word}"));
        }
    }
    format!("\n{}\n", lines.join("\n"))
}

#[test]
fn the_example_is_made_from_the_settings() {
    let made = env_example();
    if read(".env.example") != made {
        let new = concat!(env!("CARGO_TARGET_TMPDIR"), "/env.example");
        std::fs::write(new, &made).unwrap();
        panic!(
            ".env.example is not what the settings say. If they are right: cp {new} .env.example"
        );
    }

    // The values that the file states are accepted.
    let defaults = SETTINGS
        .iter()
        .filter(|setting| setting.kind != SettingKind::Secret)
        .map(|setting| (setting.name.to_owned(), setting.default.to_owned()));
    assert_taken(".env.example", &defaults.collect());
}

#[test]
fn every_deployment_file_uses_valid_settings() {
    for (file, some) in [
        ("docker-compose.yml", "DATABASE_URL_FILE"),
        ("docs/deploy/compose/replicas.yml", "DATABASE_URL_FILE"),
        (
            "docs/deploy/compose/simulated.yml",
            "WEBHOOK_ALLOW_PRIVATE_CALLBACKS",
        ),
        ("fly.toml", "METRICS_ADDRESS"),
        ("docs/deploy/fly.staging.toml", "LOG_LEVEL"),
        (
            "docs/deploy/kubernetes/deployment.yaml",
            "ATTESTO_ENCRYPTION_KEY_FILE",
        ),
        (
            "docs/deploy/systemd/attesto.service",
            "ATTESTO_ENCRYPTION_KEY_FILE",
        ),
        ("Dockerfile", "ATTESTO_ENV"),
    ] {
        let given = given(file);
        assert!(
            given.contains_key(some),
            "{file} is not read well: {given:?}"
        );
        assert_taken(file, &given);
    }
    // The parts of a compose file belong together: an overlay is merged into its base.
    for overlay in ["replicas", "simulated"] {
        let mut together = given("docker-compose.yml");
        together.extend(given(&format!("docs/deploy/compose/{overlay}.yml")));
        assert_taken(overlay, &together);
    }
}

/// The commands in the comment at the top of a file.
fn head(file: &str) -> Vec<String> {
    let text = read(file);
    let lines = text.lines().filter_map(|line| line.strip_prefix("#     "));
    let lines = lines.map(|line| line.split("    #").next().unwrap_or(line).trim_end());
    lines.map(str::to_owned).collect()
}

/// `bin/check-compose` runs them with a real engine.
#[test]
fn the_deployment_page_repeats_the_commands_of_the_compose_file() {
    let page = read("docs/deployment.md");
    let block = page.split("## Docker Compose").nth(1).unwrap();
    let block = block.split("```sh\n").nth(1).unwrap();
    let block = block.split("```").next().unwrap();
    let lines: Vec<_> = block.lines().collect();
    let head = head("docker-compose.yml");
    assert!(
        lines.starts_with(&head.iter().map(String::as_str).collect::<Vec<_>>()),
        "{lines:#?}\n{head:#?}"
    );
}

#[test]
fn the_compose_file_header_creates_every_secret() {
    for file in ["docker-compose.yml", "docs/deploy/compose/replicas.yml"] {
        let text = read(file);
        let secrets = after(&text, "file: ./secrets/");
        assert!(secrets.len() > 1, "{file}: {secrets:?}");
        let head = head(file).join("\n");
        for secret in secrets {
            assert!(
                head.contains(&format!(">secrets/{secret}")),
                "{file} does not say how secrets/{secret} is made"
            );
        }
        // Attesto itself warns about files that every user may read.
        assert!(head.contains("chmod 600 secrets/"), "{file}");
    }
}

/// While the database is initialised, a temporary server answers on its socket and stops again:
/// migrations must not run against it.
#[test]
fn the_postgres_health_check_uses_the_network() {
    let compose = read("docker-compose.yml");
    for compose in [compose, read("docs/deploy/compose/database.yml")] {
        let asks = after(&compose, r#"test: ["CMD", "pg_isready""#);
        assert_eq!(asks.len(), 1);
        assert!(asks[0].contains("\"--host=127.0.0.1\""), "{asks:?}");
    }
}

/// Without the second URL, features that need a database session would use a pooler that gives them
/// none.
#[test]
fn replicas_use_the_pooler_and_have_a_direct_url() {
    let replicas = read("docs/deploy/compose/replicas.yml");
    assert_eq!(only(&replicas, "pool_mode = "), "transaction");
    let given = given("docs/deploy/compose/replicas.yml");
    assert_eq!(given["DATABASE_URL_FILE"], "/run/secrets/pooled_url");
    assert_eq!(
        given["DATABASE_DIRECT_URL_FILE"],
        "/run/secrets/database_url"
    );
}

/// A `syntax=` line makes builders download an image before the build; without access to its
/// registry nothing can be built.
#[test]
fn the_dockerfile_needs_no_syntax_image() {
    let dockerfile = read("Dockerfile");
    assert!(
        !dockerfile.contains("syntax="),
        "{}",
        dockerfile.lines().next().unwrap()
    );
    // Both base images can be replaced.
    let bases = after(&dockerfile, "FROM ");
    assert_eq!(bases, ["${BUILD_IMAGE} AS build", "${RUNTIME_IMAGE}"]);
}

/// Each platform is built on a machine of its own kind, and produces the binary of the same name.
#[test]
fn releases_are_built_natively_for_every_platform() {
    let release = read(".github/workflows/release.yml");
    let built: Vec<_> = after(&release, "runner: ")
        .into_iter()
        .zip(after(&release, "platform: "))
        .zip(after(&release, "target: "))
        .collect();
    let expected = [
        (("ubuntu-24.04", "linux/amd64"), "x86_64-unknown-linux-gnu"),
        (
            ("ubuntu-24.04-arm", "linux/arm64"),
            "aarch64-unknown-linux-gnu",
        ),
    ];
    assert_eq!(built, expected);
    assert!(release.contains("runs-on: ${{ matrix.runner }}"));
    let page = read("docs/deployment.md");
    for ((_, platform), _) in expected {
        assert!(page.contains(&format!("`{platform}`")), "{platform}");
    }
    // Also the one that is built only here is tested before the release.
    assert!(read("bin/check-arm64").contains("target=aarch64-unknown-linux-gnu"));
    // The base image may have a default command; it is not used.
    assert!(release.contains("docker create attesto:build nothing"));
}

/// The scripts in the workflows exist and are executable, and the one that needs a container engine
/// runs where there is one.
#[test]
fn the_workflows_run_existing_scripts() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut found = Vec::new();
    for file in [
        ".github/workflows/checks.yml",
        ".github/workflows/release.yml",
        ".github/workflows/weekly.yml",
    ] {
        let text = read(file);
        for word in text.split_whitespace() {
            if word.starts_with("bin/") || word.starts_with(".ci/") {
                let mode = std::fs::metadata(root().join(word))
                    .unwrap_or_else(|error| panic!("{file}: {word}: {error}"))
                    .permissions()
                    .mode();
                assert!(mode & 0o111 != 0, "{file}: {word} cannot be run");
                found.push(word.to_owned());
            }
        }
    }
    for needed in [
        ".ci/run",
        "bin/check-deploy",
        "bin/chaos",
        "bin/fuzz",
        "bin/histories",
        "bin/release",
        "bin/deploy",
    ] {
        assert!(
            found.iter().any(|word| word == needed),
            "{needed}: {found:?}"
        );
    }
    let checks = read(".github/workflows/checks.yml");
    let image = checks.split("\n  image:").nth(1).unwrap();
    assert!(image.contains("ATTESTO_IMAGE: attesto:checks\n        run: bin/check-deploy"));
    let deploy = read("bin/check-deploy");
    for script in ["bin/check-compose", "bin/check-systemd"] {
        assert!(deploy.contains(&format!("\n    {script}\n")), "{script}");
    }
}

#[test]
fn fly_health_checks_use_served_paths_at_the_agreed_intervals() {
    for file in ["fly.toml", "docs/deploy/fly.staging.toml"] {
        let text = read(file);
        let text = text.split_once("app = ").unwrap().1;
        assert_eq!(
            only(text, "internal_port = "),
            only(text, "PORT = ").trim_matches('"')
        );
        let checks: Vec<_> = text.split("[[http_service.checks]]").skip(1).collect();
        let facts = |check: &str| {
            ["path = ", "interval = ", "timeout = ", "grace_period = "]
                .map(|name| after(check, name)[0].trim_matches('"').to_owned())
        };
        let checks: Vec<_> = checks.into_iter().map(facts).collect();
        assert_eq!(
            checks,
            [
                ["/health", "30s", "5s", "10s"],
                ["/ready", "60s", "10s", "30s"]
            ],
            "{file}"
        );
        let metrics = text.split_once("[metrics]").unwrap().1;
        let port = after(metrics, "port = ")[0];
        assert!(
            only(text, "METRICS_ADDRESS = ").ends_with(&format!(":{port}")),
            "{file}"
        );
        assert_eq!(after(metrics, "path = ")[0], "\"/metrics\"");
        assert_eq!(only(text, "release_command = "), "migrate");
        assert_eq!(only(text, "strategy = "), "rolling");
        assert_eq!(only(text, "memory = "), "512mb");
        assert!(seconds(only(text, "kill_timeout = ")) > grace());
        let dockerfile = root()
            .join(file)
            .with_file_name(only(text, "dockerfile = "));
        assert!(dockerfile.is_file(), "{}", dockerfile.display());
    }
}

/// The two differ only where they must.
#[test]
fn staging_differs_from_production_only_in_size() {
    let lines = |file: &str| -> Vec<String> {
        let text = read(file);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let own = [
            "app =",
            "dockerfile =",
            "min_machines_running =",
            "cpus =",
            "LOG_LEVEL =",
        ];
        let lines = lines.filter(|line| !own.iter().any(|own| line.trim().starts_with(own)));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(lines("fly.toml"), lines("docs/deploy/fly.staging.toml"));
}

fn grace() -> u64 {
    seconds(find_setting("SHUTDOWN_GRACE_SECONDS").unwrap().default)
}

#[test]
fn every_stop_timeout_exceeds_the_shutdown_time() {
    let compose = read("docker-compose.yml");
    for patience in after(&compose, "stop_grace_period:") {
        assert!(seconds(patience) > grace());
    }
    let kubernetes = read("docs/deploy/kubernetes/deployment.yaml");
    assert!(seconds(only(&kubernetes, "terminationGracePeriodSeconds:")) > grace());
    let systemd = read("docs/deploy/systemd/attesto.service");
    assert!(seconds(only(&systemd, "TimeoutStopSec=")) > grace());
}

#[test]
fn ports_probes_and_commands_match_the_service() {
    let dockerfile = read("Dockerfile");
    let port = find_setting("PORT").unwrap().default;
    assert_eq!(only(&dockerfile, "EXPOSE "), port);
    assert_eq!(given("Dockerfile")["PORT"], port);
    assert_eq!(only(&dockerfile, "USER "), "65532:65532");
    let check = only(&dockerfile, "HEALTHCHECK ");
    assert!(
        check.ends_with(r#"CMD ["/usr/local/bin/attesto", "health"]"#),
        "{check}"
    );

    let compose = read("docker-compose.yml");
    assert!(
        compose.contains(&format!(":8080}}:{port}\"")),
        "the published port"
    );
    assert!(compose.contains(r#"test: ["CMD", "/usr/local/bin/attesto", "health"]"#));

    let kubernetes = read("docs/deploy/kubernetes/deployment.yaml");
    assert_eq!(after(&kubernetes, "containerPort:"), [port, "9091"]);
    let probes: Vec<_> = kubernetes
        .split("Probe:\n")
        .skip(1)
        .map(|probe| after(probe, "httpGet:")[0])
        .collect();
    let asks = |path| format!("{{ path: {path}, port: http }}");
    assert_eq!(probes, [asks("/health"), asks("/health"), asks("/ready")]);
    assert_eq!(after(&kubernetes, "args:"), ["[migrate]", "[serve]"]);
    let user = only(&dockerfile, "USER ").split_once(':').unwrap().0;
    assert_eq!(only(&kubernetes, "runAsUser:"), user);
}

/// The build context has every file the build needs, and no untracked file.
#[test]
fn the_image_is_built_from_tracked_files() {
    let ignore = read(".dockerignore");
    let kept = after(&ignore, "!");
    for name in &kept {
        assert!(root().join(name).exists(), "{name}");
    }
    assert!(ignore.lines().any(|line| line == "*"));
    for needed in [
        "src",
        "migrations",
        ".sqlx",
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE",
    ] {
        assert!(kept.contains(&needed), "{needed}");
    }
    // Cargo refuses a manifest whose target files are missing, so the dependency layer must create
    // all of them.
    let manifest = read("Cargo.toml");
    for target in after(&manifest, "path = ") {
        let folder = target.trim_matches('"').split('/').next().unwrap();
        assert!(kept.contains(&folder), "{target} is not in .dockerignore");
    }
}

/// Cargo refuses a manifest whose target files are missing. The dependency layer has only the files
/// that the Dockerfile creates.
#[test]
fn the_dependency_layer_has_every_cargo_target() {
    let file = read("Dockerfile");
    let from = file.find("mkdir -p src/db").unwrap();
    let script = file[from..].split("cargo build").next().unwrap();
    let folder = Folder::new();
    let manifest = read("Cargo.toml");
    std::fs::write(folder.join("Cargo.toml"), &manifest).unwrap();
    let script = format!("set -euo pipefail; {}", script.replace("\\\n", " "));
    let ran = Command::new("bash")
        .args(["-c", script.trim_end()])
        .current_dir(&*folder)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{ran:?}");

    let mut targets = vec![
        "src/main.rs".to_owned(),
        "src/lib.rs".to_owned(),
        "src/db/build.rs".to_owned(),
    ];
    for section in manifest.split("\n[[").skip(1) {
        let section = section.split("\n[").next().unwrap();
        let quoted = |key: &str| {
            after(section, key)
                .first()
                .map(|value| value.trim_matches('"').to_owned())
        };
        let name = quoted("name = ").unwrap();
        targets.push(quoted("path = ").unwrap_or_else(|| format!("benches/{name}.rs")));
    }
    assert!(targets.len() > 6, "{targets:?}");
    for target in targets {
        assert!(folder.join(&target).exists(), "{target}");
    }
}

fn git(folder: &Path, words: &[&str]) {
    let git = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(words)
        .output();
    let git = git.expect("git runs");
    assert!(
        git.status.success(),
        "{}",
        String::from_utf8_lossy(&git.stderr)
    );
}

/// Exit code and error output.
fn check_secrets(folder: &Path) -> (Option<i32>, String) {
    let script = root().join("bin/check-secrets");
    let ran = Command::new(script)
        .arg(folder)
        .output()
        .expect("a shell runs");
    (ran.status.code(), String::from_utf8(ran.stderr).unwrap())
}

#[test]
fn files_with_secrets_are_refused_by_the_commit_check() {
    let folder = Folder::new();
    git(&folder, &["init", "-q"]);
    std::fs::write(folder.join(".env.example"), "#PORT=8080\n").unwrap();
    std::fs::write(folder.join("notes.md"), "attesto_live_… and whsec_…\n").unwrap();
    git(&folder, &["add", "-A"]);
    assert_eq!(check_secrets(&folder), (Some(0), String::new()));

    for name in [
        ".env",
        "deep/.env.production",
        "SubscriptionKey_2X9R4HXF34.p8",
        "secrets/encryption_key",
        "service-account.json",
        "tls.key",
    ] {
        let path: PathBuf = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "x").unwrap();
        git(&folder, &["add", "-A"]);
        let (exit, said) = check_secrets(&folder);
        assert_eq!(exit, Some(1), "{name}");
        assert!(said.starts_with(&format!("{name}: ")), "{said}");
        std::fs::remove_file(&path).unwrap();
    }
    let random = "Ab1".repeat(14) + "x";
    for text in [
        format!("-----BEGIN {}PRIVATE {}-----", "EC ", "KEY"),
        format!("-----BEGIN PRIVATE {}-----", "KEY"),
        format!("key = attesto_live_{random}"),
        format!("\"whsec_{random}=\""),
        format!("postgres://attesto:{random}@db/attesto"),
    ] {
        std::fs::write(folder.join("notes.md"), &text).unwrap();
        git(&folder, &["add", "-A"]);
        let (exit, said) = check_secrets(&folder);
        assert_eq!(exit, Some(1), "{text}");
        assert!(
            said.starts_with("notes.md: ") && !said.contains(&random),
            "{said}"
        );
    }
}

/// `mise run …` uses only existing scripts and existing commands of Attesto.
#[test]
fn every_mise_task_runs_an_existing_script() {
    let tasks = read("mise.toml");
    for name in [
        "dev",
        "test",
        "check",
        "bench",
        "chaos",
        "histories",
        "cli",
        "\"db:up\"",
        "\"db:migrate\"",
        "deploy",
        "release",
    ] {
        assert!(tasks.contains(&format!("[tasks.{name}]")), "{name}");
    }
    let runs = after(&tasks, "run = ");
    assert_eq!(runs.len(), tasks.matches("[tasks.").count());
    for run in runs {
        let script = run.trim_matches('"').split(' ').next().unwrap();
        assert!(
            ["cargo", "docker"].contains(&script) || root().join(script).is_file(),
            "{script}"
        );
    }
    // `db:up` starts the database that `db:migrate` uses, with files of the repository alone.
    assert!(tasks.contains("docker compose --file docs/deploy/compose/database.yml up"));
    let url = "postgres://attesto@127.0.0.1:5432/attesto?sslmode=disable";
    assert!(tasks.contains(&format!("get_env(name='DATABASE_URL', default='{url}')")));
    assert!(
        head("docs/deploy/compose/database.yml").contains(&format!("export DATABASE_URL='{url}'"))
    );
    let database = read("docs/deploy/compose/database.yml");
    assert!(database.contains(r#"- "${DATABASE_PUBLISH:-127.0.0.1:5432}:5432""#));
    assert!(!database.contains("file: ./"));
}

/// README describes settings in more detail than `--help`, some of them together; this test checks
/// the defaults it states.
#[test]
fn readme_has_every_setting_with_its_default() {
    let readme = read("README.md");
    let rows = readme.lines().filter(|line| line.starts_with("| `"));
    let mut found = BTreeMap::new();
    for row in rows {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let names = cells[1].split('`').filter(|name| is_variable(name));
        let names: Vec<_> = names.collect();
        let defaults: Vec<_> = cells[2]
            .split(", ")
            .map(|it| it.trim_matches('`'))
            .collect();
        for (at, name) in names.iter().enumerate() {
            let own = defaults.get(at).filter(|_| defaults.len() == names.len());
            found.insert((*name).to_owned(), own.map(|it| (*it).to_owned()));
        }
        // Settings described in the row of another one.
        for name in cells[3].split('`').filter(|name| is_variable(name)) {
            found.entry(name.to_owned()).or_insert(None);
        }
    }
    for setting in SETTINGS.iter() {
        let name = setting.name;
        let Some(default) = found.get(name) else {
            panic!(
                "add {name} to the table of settings in README.md: {}",
                setting.help
            );
        };
        // The defaults of LOG_FORMAT and the store URLs are described in words.
        let is_worded = name == "LOG_FORMAT" || setting.default.starts_with("https://");
        if let (Some(default), false) = (default, is_worded || setting.default.is_empty()) {
            assert_eq!(default, setting.default, "README.md: {name}");
        }
    }
}

/// What `bin/release` reads and writes, committed in a repository of its own.
struct ReleaseRepository {
    folder: Folder,
}

impl ReleaseRepository {
    fn new() -> Self {
        let repository = Self {
            folder: Folder::new(),
        };
        let files = [
            "bin/release",
            "bin/lib/machine.sh",
            "Cargo.toml",
            "Cargo.lock",
            "fuzz/Cargo.lock",
            "README.md",
            "docs/api.md",
            "docs/webhooks.md",
        ];
        for name in files {
            let to = repository.folder.join(name);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(root().join(name), to).unwrap();
        }
        let version = env!("CARGO_PKG_VERSION");
        let changelog = format!(
            "# Changelog\n\n## Unreleased\n\n## {version} (2020-01-01)\n\n- See [Events](docs/events.md).\n"
        );
        std::fs::write(repository.folder.join("CHANGELOG.md"), changelog).unwrap();
        repository.run("git", &["init", "--quiet"]).unwrap();
        repository.commit("Begin");
        repository
    }

    /// What it printed. `Err`: it failed.
    fn run(&self, program: &str, words: &[&str]) -> Result<String, String> {
        let ran = Command::new(program)
            .args(words)
            .current_dir(&*self.folder)
            .env_remove("GITHUB_REPOSITORY")
            .envs(["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"].map(|name| (name, "A developer")))
            .envs(["GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"].map(|name| (name, "dev@example.com")))
            .envs(["GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"].map(|name| (name, "/dev/null")))
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if ran.status.success() {
            Ok(text(&ran.stdout))
        } else {
            Err(text(&ran.stderr))
        }
    }

    fn release(&self, words: &[&str]) -> Result<String, String> {
        self.run("bin/release", words)
    }

    fn commit(&self, message: &str) {
        self.run("git", &["add", "--all"]).unwrap();
        self.run("git", &["commit", "--quiet", "--message", message])
            .unwrap();
    }

    /// Writes something under the changelog's heading of what is not released.
    fn note_change(&self, change: &str) {
        let path = self.folder.join("CHANGELOG.md");
        let text = std::fs::read_to_string(&path).unwrap();
        let noted = text.replacen("## Unreleased", &format!("## Unreleased\n\n{change}"), 1);
        assert_ne!(noted, text);
        std::fs::write(path, noted).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).unwrap()
    }
}

#[test]
fn a_release_has_its_version_in_every_file_that_names_one() {
    let repository = ReleaseRepository::new();
    let version = env!("CARGO_PKG_VERSION");
    // The files are as a release leaves them, so that the next one finds what it replaces.
    repository.release(&["--check", version]).unwrap();
    repository.note_change("- [Something](docs/events.md) is new.");
    let refused = repository.release(&["91.2.3"]).unwrap_err();
    assert!(refused.contains("that no commit has"), "{refused}");
    repository.commit("Add something");

    repository.release(&["91.2.3"]).unwrap();
    repository.release(&["--check", "91.2.3"]).unwrap();
    let tagged = repository.run("git", &["show", "--no-patch", "v91.2.3^{commit}"]);
    assert!(tagged.unwrap().contains("Release 91.2.3"));
    assert_eq!(repository.run("git", &["status", "--short"]).unwrap(), "");
    for (file, line) in [
        ("Cargo.toml", "version = \"91.2.3\""),
        ("fuzz/Cargo.lock", "version = \"91.2.3\""),
        ("README.md", "\"version\": \"91.2.3\""),
        ("docs/api.md", "\"version\": \"91.2.3\""),
        ("docs/webhooks.md", "User-Agent: Attesto/91.2.3"),
    ] {
        assert!(repository.read(file).contains(line), "{file}: {line}");
    }
    let notes = repository.release(&["--notes", "91.2.3"]).unwrap();
    assert_eq!(notes, "- [Something](docs/events.md) is new.\n");
    let changelog = repository.read("CHANGELOG.md");
    let heading = changelog.find("## 91.2.3 (20").unwrap();
    assert!(changelog.find("## Unreleased\n").unwrap() < heading);

    for (wanted, reason) in [
        ("91.2.3", "is there already"),
        ("91.3.0", "says nothing"),
        ("91.3", "A version is like"),
    ] {
        let refused = repository.release(&[wanted]).unwrap_err();
        assert!(refused.contains(reason), "{wanted}: {refused}");
    }
}

/// As that of the first release is.
#[test]
fn a_release_whose_section_is_written_beforehand_keeps_it() {
    let repository = ReleaseRepository::new();
    repository.note_change("## 91.2.3 (2020-02-02)\n\n- Everything.");
    repository.commit("Describe the release");
    repository.release(&["91.2.3"]).unwrap();
    let notes = repository.release(&["--notes", "91.2.3"]).unwrap();
    assert_eq!(notes, "- Everything.\n");
    let changelog = repository.read("CHANGELOG.md");
    assert_eq!(changelog.matches("## 91.2.3").count(), 1);
    assert!(!changelog.contains("2020-02-02"), "the day of the release");

    repository.note_change("- Something else.\n\n## 91.3.0\n\n- Everything.");
    repository.commit("Describe the next release");
    let refused = repository.release(&["91.3.0"]).unwrap_err();
    assert!(refused.contains("is it in 91.3.0 or not"), "{refused}");
    assert_eq!(repository.run("git", &["status", "--short"]).unwrap(), "");
}

#[test]
fn the_notes_of_a_release_link_to_its_own_pages() {
    let repository = ReleaseRepository::new();
    let version = env!("CARGO_PKG_VERSION");
    let words = [
        "GITHUB_REPOSITORY=acme/attesto",
        "bin/release",
        "--notes",
        version,
    ];
    let notes = repository.run("env", &words).unwrap();
    let page = format!("https://github.com/acme/attesto/blob/v{version}/docs/events.md");
    assert_eq!(notes, format!("- See [Events]({page}).\n"));
}
