//! hosts.toml at work.

use cricket::image::ImageErrorKind;

use super::fixture::{Content, Directory, descriptor, kind, patience, session};
use super::mock::{Mock, Reply, Seen};
use cricket::image::registry::session::Session;

fn content() -> Content {
    let mut content = Content::default();
    content.add_image("1", &[10]);
    content.blobs.insert(descriptor(b"config").digest.to_string(), b"config".to_vec());
    content
}

async fn good() -> Mock {
    let content = content();
    Mock::start(move |seen: &Seen| content.answer(seen)).await
}

#[tokio::test]
async fn mirrors_come_first_and_are_told_whom_they_stand_for() {
    let (mirror, upstream) = (good().await, good().await);
    let session = session(&format!("server = {:?}\n[host.{:?}]", upstream.url(), mirror.url()), None).await;
    session.resolve().await.expect("a manifest");
    assert_eq!(mirror.seen()[0].path, "/v2/a/b/manifests/1?ns=reg.test");
    assert_eq!(upstream.seen().len(), 0);
}

#[tokio::test]
async fn a_mirror_without_resolve_serves_content_only() {
    let (mirror, upstream) = (good().await, good().await);
    let hosts = format!("server = {:?}\n[host.{:?}]\ncapabilities = [\"pull\"]", upstream.url(), mirror.url());
    let session = session(&hosts, None).await;
    session.resolve().await.expect("a manifest");
    session.config(&descriptor(b"config")).await.expect("a config");
    assert_eq!((mirror.count("manifests"), mirror.count("blobs")), (0, 1));
    assert_eq!((upstream.count("manifests"), upstream.count("blobs")), (1, 0));
}

#[tokio::test]
async fn broken_mirrors_are_passed_over_and_dead_ones_not_asked_again() {
    let missing = Mock::start(|_: &Seen| Reply::new(404, "")).await;
    let busy = Mock::start(|_: &Seen| Reply::new(503, "")).await;
    let lying = Mock::start(|_: &Seen| Reply::new(200, "lies")).await;
    let upstream = good().await;
    let digest = {
        let mut content = Content::default();
        content.add_image("1", &[10])
    };
    let hosts = format!(
        "server = {:?}\n[host.{:?}]\n[host.{:?}]\n[host.{:?}]\n",
        upstream.url(),
        missing.url(),
        busy.url(),
        lying.url()
    );
    let session = super::fixture::session_of(&format!("reg.test/a/b@{digest}"), &hosts, None).await;
    session.resolve().await.expect("a manifest");
    session.config(&descriptor(b"config")).await.expect("a config");
    assert_eq!((missing.seen().len(), busy.seen().len(), lying.seen().len()), (2, 2, 2));
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn the_registry_itself_decides_what_kind_of_failure_it_is() {
    let (missing, busy) =
        (Mock::start(|_: &Seen| Reply::new(404, "")).await, Mock::start(|_: &Seen| Reply::new(503, "")).await);
    let session = session(&format!("server = {:?}\n[host.{:?}]", missing.url(), busy.url()), None).await;
    let error = session.resolve().await.expect_err("nobody has it");
    assert!(error.to_string().contains(&busy.address.to_string()), "{error}");
    assert_eq!(kind(error), ImageErrorKind::NotFound);
}

#[tokio::test]
async fn an_overridden_path_is_the_whole_root() {
    let content = content();
    let mirror = Mock::start(move |seen: &Seen| match seen.path.starts_with("/proxy/cache/a/b/") {
        true => content.answer(seen),
        false => Reply::new(404, ""),
    })
    .await;
    let hosts = format!("server = \"{}/proxy/cache/\"\noverride_path = true", mirror.url());
    session(&hosts, None).await.resolve().await.expect("a manifest");
}

#[tokio::test]
async fn the_default_directory_is_for_names_without_one() {
    let mirror = good().await;
    let directory = Directory::new();
    std::fs::create_dir(directory.0.join("_default")).expect("a directory");
    std::fs::write(directory.0.join("_default/hosts.toml"), format!("server = {:?}", mirror.url())).expect("a file");
    let reference = "unheard.of/a/b:1".parse().expect("a reference");
    let session = Session::open(directory.0.clone(), reference, None, patience()).await.expect("a session");
    session.resolve().await.expect("a manifest");
    assert_eq!(mirror.seen()[0].path, "/v2/a/b/manifests/1?ns=unheard.of");
}

#[tokio::test]
async fn a_proxy_of_the_file_is_asked() {
    let content = content();
    let proxy = Mock::start(move |seen: &Seen| content.answer(seen)).await;
    let session = session(&format!("server = \"http://reg.test\"\nproxy = {:?}", proxy.url()), None).await;
    session.resolve().await.expect("a manifest");
    assert_eq!(proxy.seen()[0].path, "http://reg.test/v2/a/b/manifests/1");
}

#[tokio::test]
async fn a_broken_configuration_is_said_and_not_passed_over() {
    let directory = Directory::with_hosts("server = 5");
    let reference = "reg.test/a/b:1".parse().expect("a reference");
    let opened = Session::open(directory.0.clone(), reference, None, patience()).await;
    let error = opened.map(|_| ()).expect_err("broken");
    assert!(error.to_string().contains("reg.test/hosts.toml"), "{error}");
    assert_eq!(kind(error), ImageErrorKind::Internal);
}

#[tokio::test]
async fn the_environments_proxy_is_asked_but_for_loopback_addresses() {
    let content = content();
    let proxy = Mock::start(move |seen: &Seen| content.answer(seen)).await;
    let child = tokio::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "mirrors::child_behind_a_proxy", "--ignored"])
        .env("http_proxy", proxy.url())
        .output();
    let output = child.await.expect("a child");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let paths: Vec<_> = proxy.seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(paths, ["http://reg.test/v2/a/b/manifests/1"]);
}

#[tokio::test]
#[ignore = "run by the_environments_proxy_is_asked_but_for_loopback_addresses"]
async fn child_behind_a_proxy() {
    session("server = \"http://reg.test\"", None).await.resolve().await.expect("through the proxy");
    let near = good().await;
    session(&format!("server = {:?}", near.url()), None).await.resolve().await.expect("without it");
}
