//! Tokens: what is asked for, with what, and how often.

use std::sync::{Arc, Mutex};

use cricket::image::registry::session::Session;
use cricket::image::{Credentials, ImageErrorKind};

use super::fixture::{Content, basic, descriptor, kind, session};
use super::mock::{Mock, Reply, Seen};

/// A registry with its token server; every token is good for `uses` requests.
async fn registry(uses: usize) -> Mock {
    let mut content = Content::default();
    content.add_image("1", &[10]);
    content.blobs.insert(descriptor(b"config").digest.to_string(), b"config".to_vec());
    let left = Arc::new(Mutex::new(0));
    Mock::start(move |seen: &Seen| {
        let mut left = left.lock().expect("no panic");
        if seen.path.starts_with("/token") {
            *left = uses;
            return token(seen);
        }
        if seen.header("authorization") == Some("Bearer good") && *left > 0 {
            *left -= 1;
            return content.answer(seen);
        }
        let host = seen.header("host").unwrap_or_default();
        let challenge =
            format!("Bearer realm=\"http://{host}/token\",service=\"s\",scope=\"repository:a/b:pull,push\"");
        Reply::new(401, "").header("www-authenticate", challenge)
    })
    .await
}

fn token(seen: &Seen) -> Reply {
    let by_password = seen.method == "GET" && seen.header("authorization") == Some("Basic dXNlcjpzZWNyZXQ=");
    let by_identity = seen.method == "POST" && seen.body.contains("grant_type=refresh_token");
    match (by_password, by_identity) {
        (true, _) => Reply::new(200, r#"{"token":"good","expires_in":60}"#),
        (_, true) => Reply::new(200, r#"{"access_token":"good"}"#),
        _ => Reply::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#),
    }
}

async fn session_with(mock: &Mock, credentials: Option<Credentials>) -> Arc<Session> {
    session(&format!("server = {:?}", mock.url()), credentials).await
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_for_pulling_only() {
    let mock = registry(100).await;
    let session = session_with(&mock, basic("user", "secret")).await;
    session.resolve().await.expect("a manifest");
    session.config(&descriptor(b"config")).await.expect("a config");
    let tokens: Vec<_> = mock.seen().into_iter().filter(|seen| seen.path.starts_with("/token")).collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].path, "/token?service=s&scope=repository%3Aa%2Fb%3Apull&account=user");
    assert_eq!(mock.seen().len(), 4, "one challenge, one token, two documents");
}

#[tokio::test]
async fn a_token_that_ends_early_is_asked_for_again() {
    let mock = registry(1).await;
    let session = session_with(&mock, basic("user", "secret")).await;
    session.resolve().await.expect("a manifest");
    session.config(&descriptor(b"config")).await.expect("a config");
    assert_eq!(mock.count("/token"), 2);
}

#[tokio::test]
async fn identity_tokens_are_exchanged() {
    for credentials in [Some(Credentials::IdentityToken("a&b".to_owned())), basic("<token>", "a&b")] {
        let mock = registry(100).await;
        session_with(&mock, credentials).await.resolve().await.expect("a manifest");
        let asked = mock.seen().into_iter().find(|seen| seen.method == "POST").expect("an exchange");
        let form =
            "service=s&scope=repository%3Aa%2Fb%3Apull&grant_type=refresh_token&client_id=cricket&refresh_token=a%26b";
        assert_eq!((asked.path.as_str(), asked.body.as_str()), ("/token", form));
        assert_eq!(asked.header("authorization"), None);
    }
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let mock = registry(100).await;
    // As good as one that was asked for.
    let warm = session_with(&mock, basic("user", "secret")).await;
    warm.resolve().await.expect("a manifest");
    let session = session_with(&mock, Some(Credentials::RegistryToken("good".to_owned()))).await;
    session.resolve().await.expect("a manifest");
    assert_eq!(mock.count("/token"), 1);
}

#[tokio::test]
async fn row_27_other_credentials_open_nothing_that_was_opened_before() {
    let mock = registry(100).await;
    session_with(&mock, basic("user", "secret")).await.resolve().await.expect("a manifest");
    for credentials in [None, basic("user", "wrong"), Some(Credentials::RegistryToken("bad".to_owned()))] {
        let session = session_with(&mock, credentials).await;
        let error = session.resolve().await.expect_err("refused");
        assert_eq!(kind(error.clone()), ImageErrorKind::Unauthorized, "{error}");
        assert_eq!(kind(session.current_digest().await.expect_err("refused")), ImageErrorKind::Unauthorized);
    }
}

#[tokio::test]
async fn credentials_of_another_kind_are_not_sent() {
    let mock = Mock::start(|_: &Seen| Reply::new(401, "").header("www-authenticate", "Basic realm=\"r\"")).await;
    let session = session_with(&mock, Some(Credentials::IdentityToken("secret".to_owned()))).await;
    let error = session.resolve().await.expect_err("refused");
    assert_eq!(kind(error), ImageErrorKind::Unauthorized);
    assert!(mock.seen().iter().all(|seen| seen.header("authorization").is_none()));
}
