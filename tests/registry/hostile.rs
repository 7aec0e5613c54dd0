//! Answers that are made to harm, and those that are only unusual.

use std::time::{Duration, Instant};

use cricket::image::manifest::Manifest;
use cricket::image::{ImageError, ImageErrorKind};
use serde_json::json;

use super::fixture::{Content, OCI_INDEX, OCI_MANIFEST, basic, descriptor, kind, session};
use super::mock::{Body, Mock, Reply, Seen};

async fn resolve_error(mock: &Mock) -> ImageError {
    let session = session(&format!("server = {:?}", mock.url()), None).await;
    session.resolve().await.expect_err("no manifest").into()
}

#[tokio::test]
async fn row_26_endless_documents_are_left_after_their_limit() {
    let mock = Mock::start(|_: &Seen| Reply::new(200, "").body(Body::Endless)).await;
    let begun = Instant::now();
    let error = resolve_error(&mock).await;
    assert_eq!(error.kind, ImageErrorKind::BadImage, "{error}");
    let session = session(&format!("server = {:?}", mock.url()), None).await;
    for result in [session.config(&descriptor(b"config")).await, session.manifest(&descriptor(b"manifest")).await] {
        assert_eq!(kind(result.expect_err("endless")), ImageErrorKind::BadImage);
    }
    // Also where a mere error is endless.
    let mock = Mock::start(|_: &Seen| Reply::new(404, "").body(Body::Endless)).await;
    assert_eq!(resolve_error(&mock).await.kind, ImageErrorKind::NotFound);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn row_26_an_endless_token_is_left_after_its_limit() {
    let mock = Mock::start(|seen: &Seen| match seen.path.starts_with("/token") {
        true => Reply::new(200, "").body(Body::Endless),
        false => {
            let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap_or_default());
            Reply::new(401, "").header("www-authenticate", realm)
        }
    })
    .await;
    assert_eq!(resolve_error(&mock).await.kind, ImageErrorKind::BadImage);
}

#[tokio::test]
async fn a_document_with_another_digest_or_size_is_refused() {
    let mock = Mock::start(|_: &Seen| Reply::new(200, "evil")).await;
    let session = session(&format!("server = {:?}", mock.url()), None).await;
    for wanted in [b"good".as_slice(), b"longer", b"sh"] {
        let error = session.config(&descriptor(wanted)).await.expect_err("another digest");
        assert_eq!(kind(error), ImageErrorKind::BadImage);
    }
    let digest = super::fixture::sha256(b"good");
    let hosts = format!("server = {:?}", mock.url());
    let session = super::fixture::session_of(&format!("reg.test/a/b@{digest}"), &hosts, None).await;
    assert_eq!(kind(session.resolve().await.expect_err("another digest")), ImageErrorKind::BadImage);
}

#[tokio::test]
async fn row_25_credentials_stay_with_the_registry_that_redirects() {
    let mut content = Content::default();
    content.add_image("1", &[10]);
    let elsewhere = Mock::start(move |seen: &Seen| content.answer(seen)).await;
    let target = elsewhere.url();
    let registry = Mock::start(move |seen: &Seen| match seen.header("authorization") {
        None => Reply::new(401, "").header("www-authenticate", "Basic realm=\"r\""),
        Some(_) => Reply::new(307, "").header("location", format!("{target}{}", seen.path)),
    })
    .await;
    let hosts = format!("server = {:?}\n[header]\nx-key = \"secret\"\n", registry.url());
    let session = session(&hosts, basic("user", "secret")).await;
    session.resolve().await.expect("a manifest");
    let asked = registry.seen();
    assert_eq!(asked.last().and_then(|seen| seen.header("authorization")), Some("Basic dXNlcjpzZWNyZXQ="));
    assert_eq!(asked[0].header("x-key"), Some("secret"));
    for seen in elsewhere.seen() {
        assert_eq!((seen.header("authorization"), seen.header("x-key"), seen.header("referer")), (None, None, None));
        assert!(seen.header("user-agent").is_some_and(|agent| agent.starts_with("cricket/")));
    }
    assert_eq!(elsewhere.seen().len(), 1);
}

#[tokio::test]
async fn row_25_a_challenge_from_elsewhere_and_what_it_says_are_not_heard() {
    let elsewhere = Mock::start(|_: &Seen| {
        Reply::new(401, r#"{"errors":[{"code":"X","message":"an inner secret"}]}"#)
            .header("www-authenticate", "Basic realm=\"r\"")
    })
    .await;
    let target = elsewhere.url();
    let registry = Mock::start(move |_: &Seen| Reply::new(302, "").header("location", target.clone())).await;
    let session = session(&format!("server = {:?}", registry.url()), basic("user", "secret")).await;
    let error = session.resolve().await.expect_err("refused");
    assert!(!error.to_string().contains("inner secret"), "{error}");
    assert!(elsewhere.seen().iter().all(|seen| seen.header("authorization").is_none()));
}

#[tokio::test]
async fn row_25_a_token_server_without_https_elsewhere_gets_nothing() {
    let elsewhere = Mock::start(|_: &Seen| Reply::new(200, r#"{"token":"t"}"#)).await;
    // The same address by another name is another host.
    let realm = format!("Bearer realm=\"http://localhost:{}/token\"", elsewhere.address.port());
    let registry = Mock::start(move |_: &Seen| Reply::new(401, "").header("www-authenticate", realm.clone())).await;
    let session = session(&format!("server = {:?}", registry.url()), basic("user", "secret")).await;
    let error = session.resolve().await.expect_err("refused");
    assert!(error.to_string().contains("without https"), "{error}");
    assert_eq!(elsewhere.seen().len(), 0);
}

#[tokio::test]
async fn redirects_end() {
    let mock = Mock::start(|seen: &Seen| Reply::new(302, "").header("location", seen.path.clone())).await;
    let error = resolve_error(&mock).await;
    assert_eq!(error.kind, ImageErrorKind::BadImage, "{error}");
    assert_eq!(mock.seen().len(), 6);
}

#[tokio::test]
async fn busy_registries_are_asked_again_and_in_their_time() {
    for status in [429, 503] {
        let tries = std::sync::Mutex::new(0);
        let mock = Mock::start(move |_: &Seen| {
            let mut tries = tries.lock().expect("no panic");
            *tries += 1;
            if *tries < 3 { Reply::new(status, "").header("retry-after", "1") } else { Reply::new(200, "{}") }
        })
        .await;
        let begun = Instant::now();
        let session = session(&format!("server = {:?}", mock.url()), None).await;
        session.resolve().await.expect("the third time");
        assert!(begun.elapsed() >= Duration::from_secs(2), "{status}");
    }
    let mock = Mock::start(|_: &Seen| Reply::new(503, "")).await;
    let error = resolve_error(&mock).await;
    assert_eq!((error.kind, mock.seen().len()), (ImageErrorKind::Unavailable, 4));
    assert!(error.message.starts_with("RegistryUnavailable: "), "{error}");
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_unavailable() {
    let session = session("server = \"http://127.0.0.1:1\"", None).await;
    let error = ImageError::from(session.resolve().await.expect_err("nobody"));
    assert_eq!(error.kind, ImageErrorKind::Unavailable);
    assert!(error.message.contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn row_23_a_manifest_sent_as_an_index_is_refused_and_odd_types_are_not() {
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2, "digest": super::fixture::sha256(b"{}")}});
    for (content_type, is_good) in [
        (OCI_MANIFEST, true),
        ("application/json", true),
        ("text/plain; charset=utf-8", true),
        (OCI_INDEX, false),
        ("application/vnd.docker.distribution.manifest.v2+json", false),
    ] {
        let mut content = Content::default();
        content.add_manifest("1", content_type, &manifest);
        let mock = Mock::start(move |seen: &Seen| content.answer(seen)).await;
        let session = session(&format!("server = {:?}", mock.url()), None).await;
        let document = session.resolve().await.expect("a document");
        let parsed = Manifest::parse(&document.bytes, document.content_type.as_deref());
        assert_eq!(parsed.is_ok(), is_good, "{content_type}");
    }
}

#[tokio::test]
async fn nothing_secret_is_in_any_error() {
    let mock = Mock::start(|_: &Seen| Reply::new(401, "").header("www-authenticate", "Basic realm=\"r\"")).await;
    let session = session(&format!("server = {:?}", mock.url()), basic("user", "hunter2")).await;
    let error = session.resolve().await.expect_err("refused");
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("dXNlcjpodW50ZXIy"), "{shown}");
    assert_eq!(kind(error), ImageErrorKind::Unauthorized);
    // HEAD is no way around.
    assert!(session.current_digest().await.is_err());
}
