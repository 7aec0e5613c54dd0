//! Transfers over connections that break, stall, and come from hosts with and without ranges.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cricket::image::ImageErrorKind;
use cricket::image::registry::error::RegistryError;
use cricket::image::registry::session::Session;
use cricket::image::registry::transfer;
use tokio::io::AsyncReadExt;

use super::fixture::{descriptor, kind, noise, ranged, session};
use super::mock::{Body, Mock, Reply, Seen};

async fn read(session: Arc<Session>, blob: &[u8]) -> Result<Vec<u8>, RegistryError> {
    let (mut reader, failure) = transfer::blob(session, descriptor(blob));
    let mut bytes = Vec::new();
    match reader.read_to_end(&mut bytes).await {
        Ok(_) => Ok(bytes),
        Err(_) => Err(failure.take().expect("a reason")),
    }
}

fn server(mock: &Mock) -> String {
    format!("server = {:?}", mock.url())
}

#[tokio::test]
async fn a_registry_that_resets_at_random_places_is_read_to_the_end_and_nothing_twice() {
    let blob = noise(1, 3_000_000);
    let (content, cuts) = (blob.clone(), Mutex::new(noise(2, 4096).into_iter()));
    let mock = Mock::start(move |seen: &Seen| {
        let reply = ranged(seen, &content);
        let Body::Whole(rest) = &reply.body else { panic!("a whole body") };
        let random = cuts.lock().expect("no panic").next().map_or(1, usize::from);
        let cut = 1 + random * random * 7;
        let body = if cut < rest.len() { Body::Reset(rest.clone(), cut) } else { Body::Whole(rest.clone()) };
        reply.body(body)
    })
    .await;
    let session = session(&server(&mock), None).await;
    assert_eq!(read(session, &blob).await.expect("the blob"), blob);
    let starts: Vec<_> = mock.seen().iter().map(Seen::range_start).collect();
    assert!(starts.len() > 10 && starts.is_sorted(), "{starts:?}");
    assert!(mock.seen().iter().skip(1).all(|seen| seen.header("range").is_some_and(|r| r.ends_with("-2999999"))));
}

#[tokio::test]
async fn a_host_without_ranges_is_read_again_past_what_is_here() {
    let blob = noise(3, 500_000);
    let content = blob.clone();
    let tries = Mutex::new(0);
    let mock = Mock::start(move |_: &Seen| {
        let mut tries = tries.lock().expect("no panic");
        *tries += 1;
        let body = match *tries {
            1 => Body::Reset(content.clone(), 100_000),
            2 => Body::Stall(content.clone(), 300_000),
            _ => Body::Whole(content.clone()),
        };
        Reply::new(200, "").body(body)
    })
    .await;
    let session = session(&server(&mock), None).await;
    assert_eq!(read(session, &blob).await.expect("the blob"), blob);
    assert_eq!(mock.seen().len(), 3);
}

#[tokio::test]
async fn another_part_than_the_asked_one_is_refused() {
    let blob = noise(4, 100_000);
    for range in
        ["bytes 0-99999/100000", "bytes 60000-99999/100000", "bytes 50000-80000/100000", "bytes 50000-99999/7", ""]
    {
        let content = blob.clone();
        let mock = Mock::start(move |seen: &Seen| match seen.header("range") {
            None => Reply::new(200, "").body(Body::Stall(content.clone(), 50_000)),
            Some(_) => Reply::new(206, &content[50_000..]).header("content-range", range),
        })
        .await;
        let error = read(session(&server(&mock), None).await, &blob).await.expect_err(range);
        assert_eq!(kind(error), ImageErrorKind::BadImage, "{range}");
    }
}

#[tokio::test]
async fn an_endless_blob_ends_at_its_size_and_a_wrong_length_is_no_blob() {
    let mock = Mock::start(|_: &Seen| Reply::new(200, "").body(Body::Endless)).await;
    let zeros = vec![0; 1_000_000];
    assert_eq!(read(session(&server(&mock), None).await, &zeros).await.expect("the blob"), zeros);
    let mock = Mock::start(|_: &Seen| Reply::new(200, vec![0; 999_999])).await;
    let error = read(session(&server(&mock), None).await, &zeros).await.expect_err("too short");
    assert_eq!(kind(error), ImageErrorKind::BadImage);
}

#[tokio::test]
async fn a_registry_that_never_sends_a_byte_is_given_up() {
    let blob = noise(5, 1000);
    let content = blob.clone();
    let mock = Mock::start(move |_: &Seen| Reply::new(200, "").body(Body::Stall(content.clone(), 0))).await;
    let begun = Instant::now();
    let error = read(session(&server(&mock), None).await, &blob).await.expect_err("no bytes");
    assert_eq!(kind(error.clone()), ImageErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("no byte within 500ms"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(mock.seen().len(), 4);
}

#[tokio::test]
async fn another_host_goes_on_where_a_mirror_gave_up() {
    let blob = noise(6, 200_000);
    let (first, second) = (blob.clone(), blob.clone());
    let mirror = Mock::start(move |seen: &Seen| match seen.header("range") {
        None => Reply::new(200, "").body(Body::Stall(first.clone(), 120_000)),
        Some(_) => Reply::new(503, ""),
    })
    .await;
    let upstream = Mock::start(move |seen: &Seen| ranged(seen, &second)).await;
    let hosts = format!("server = {:?}\n[host.{:?}]\n", upstream.url(), mirror.url());
    assert_eq!(read(session(&hosts, None).await, &blob).await.expect("the blob"), blob);
    assert_eq!(upstream.seen().iter().map(Seen::range_start).collect::<Vec<_>>(), [120_000]);
}

#[tokio::test]
async fn dropping_the_reader_closes_the_connection() {
    let ended = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&ended);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
        let _ =
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nx").await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        told.notify_one();
    });
    let session = session(&format!("server = \"http://{address}\""), None).await;
    let (mut reader, _) = transfer::blob(session, descriptor(&[0; 1000]));
    assert_eq!(reader.read_u8().await.expect("a byte"), b'x');
    drop(reader);
    tokio::time::timeout(Duration::from_secs(5), ended.notified()).await.expect("the connection ends");
}
