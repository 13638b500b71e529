//! `attesto health`, the health check of the container.

use crate::world::attesto::World;
use crate::world::receiver::Receiver;
use crate::world::shell::{Ran, Shell};

/// In an empty environment, as in the image: no shell, no variable, no file.
async fn health(words: &[&str], environment: &[(&str, &str)]) -> Ran {
    let shell = Shell::default().set_all(environment.iter().copied());
    shell.run_async(&[&["health"], words].concat(), "").await
}

#[tokio::test]
async fn health_reports_a_running_and_an_unready_server() {
    let world = World::new().await;
    let here = world.url("/");
    let port = here.trim_end_matches('/').rsplit_once(':').unwrap().1;
    // As the health check of the image runs it.
    let ran = health(&[], &[("PORT", port)]).await;
    assert_eq!((ran.exit, ran.complained.as_str()), (0, ""));
    let said = ran.json();
    assert_eq!(said["status"], "ok");
    assert_eq!(said["version"], attesto::VERSION);
    assert_eq!(said["url"], format!("http://127.0.0.1:{port}/health"));
    for url in [
        here.clone(),
        world.url("/health"),
        world.url("/health/?x=1"),
    ] {
        assert_eq!(health(&["--url", &url], &[]).await.exit, 0, "{url}");
    }
    let ran = health(&["--ready", "--output", "table", "--url", &here], &[]).await;
    let ready = format!("ready (version {})\n", attesto::VERSION);
    assert_eq!((ran.exit, ran.said), (0, ready), "{}", ran.complained);

    // The database stops; the process keeps running.
    world.database().close_connections().await;
    assert_eq!(health(&["--url", &here], &[]).await.exit, 0);
    let ran = health(&["--ready", "--url", &here], &[]).await;
    assert_eq!((ran.exit, ran.said.as_str()), (1, ""));
    assert!(
        ran.complained.contains("503: db: fail: "),
        "{}",
        ran.complained
    );
    assert_eq!(ran.complained.lines().count(), 1);
    world.end().await;
}

#[tokio::test]
async fn health_fails_without_a_server_with_a_foreign_server_and_with_wrong_arguments() {
    let ran = health(&["--url", "http://127.0.0.1:1"], &[]).await;
    assert_eq!((ran.exit, ran.said.as_str()), (1, ""));
    assert!(ran.complained.contains("refused"), "{}", ran.complained);

    let hi = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    let stranger = Receiver::answering(hi).await;
    let ran = health(&["--url", &stranger.url()], &[]).await;
    assert_eq!(ran.exit, 1);
    assert!(ran.complained.contains("not Attesto"), "{}", ran.complained);
    let silent = Receiver::answering(b"").await;
    let ran = health(&["--timeout", "1", "--url", &silent.url()], &[]).await;
    assert!(
        ran.complained.contains("no answer within 1 s"),
        "{}",
        ran.complained
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
        assert_eq!((ran.exit, ran.said.as_str()), (2, ""), "{words:?}");
        assert!(!ran.complained.contains("s3cret"), "{}", ran.complained);
    }
}
