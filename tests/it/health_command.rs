//! `attesto health`, the health check of the container.

use tokio::process::Command;

use crate::world::attesto::World;
use crate::world::receiver::Receiver;

struct Ran {
    exit: Option<i32>,
    text: String,
    errors: String,
}

/// In an empty environment, as in the image: no shell, no variable, no file.
async fn health(words: &[&str], environment: &[(&str, &str)]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_attesto"))
        .arg("health")
        .args(words)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .await
        .expect("the binary runs");
    Ran {
        exit: output.status.code(),
        text: String::from_utf8(output.stdout).expect("text"),
        errors: String::from_utf8(output.stderr).expect("text"),
    }
}

#[tokio::test]
async fn health_reports_a_running_and_an_unready_server() {
    let world = World::new().await;
    let here = world.url("/");
    let port = here.trim_end_matches('/').rsplit_once(':').unwrap().1;
    // As the health check of the image runs it.
    let ran = health(&[], &[("PORT", port)]).await;
    assert_eq!((ran.exit, ran.errors.as_str()), (Some(0), ""));
    let said: serde_json::Value = serde_json::from_str(&ran.text).unwrap();
    assert_eq!(said["status"], "ok");
    assert_eq!(said["version"], attesto::VERSION);
    assert_eq!(said["url"], format!("http://127.0.0.1:{port}/health"));
    for url in [
        here.clone(),
        world.url("/health"),
        world.url("/health/?x=1"),
    ] {
        assert_eq!(health(&["--url", &url], &[]).await.exit, Some(0), "{url}");
    }
    let ran = health(&["--ready", "--output", "table", "--url", &here], &[]).await;
    let ready = format!("ready (version {})\n", attesto::VERSION);
    assert_eq!((ran.exit, ran.text), (Some(0), ready), "{}", ran.errors);

    // The database stops; the process keeps running.
    world.database().close_connections().await;
    assert_eq!(health(&["--url", &here], &[]).await.exit, Some(0));
    let ran = health(&["--ready", "--url", &here], &[]).await;
    assert_eq!((ran.exit, ran.text.as_str()), (Some(1), ""));
    assert!(ran.errors.contains("503: db: fail: "), "{}", ran.errors);
    assert_eq!(ran.errors.lines().count(), 1);
    world.end().await;
}

#[tokio::test]
async fn health_fails_without_a_server_with_a_foreign_server_and_with_wrong_arguments() {
    let ran = health(&["--url", "http://127.0.0.1:1"], &[]).await;
    assert_eq!((ran.exit, ran.text.as_str()), (Some(1), ""));
    assert!(ran.errors.contains("refused"), "{}", ran.errors);

    let hi = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    let stranger = Receiver::answering(hi).await;
    let ran = health(&["--url", &stranger.url()], &[]).await;
    assert_eq!(ran.exit, Some(1));
    assert!(ran.errors.contains("not Attesto"), "{}", ran.errors);
    let silent = Receiver::answering(b"").await;
    let ran = health(&["--timeout", "1", "--url", &silent.url()], &[]).await;
    assert!(
        ran.errors.contains("no answer within 1 s"),
        "{}",
        ran.errors
    );

    for (words, environment) in [
        (vec!["--url", "ftp://127.0.0.1"], vec![]),
        (vec!["--url", "http://ada:s3cret@127.0.0.1"], vec![]),
        (vec!["--url", "nonsense"], vec![]),
        (vec!["--timeout", "0"], vec![]),
        (vec![], vec![("PORT", "0")]),
        (vec![], vec![("PORT", "x")]),
    ] {
        let ran = health(&words, &environment).await;
        assert_eq!((ran.exit, ran.text.as_str()), (Some(2), ""), "{words:?}");
        assert!(!ran.errors.contains("s3cret"), "{}", ran.errors);
    }
}
