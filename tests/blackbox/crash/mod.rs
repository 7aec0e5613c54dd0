//! Every point at which something may be cut short, in every call that changes something: what was answered is true,
//! what was not is done or absent, the same call again ends well, and nothing is left at the end.
//!
//! In CI a few points of each kind; `scripts/crash` walks all of them, by every action (CRICKET_CRASH_WALK=all).

mod walk;

use cricket::sys::crash::Point;

use crate::node::Node;
use walk::Walk;

/// Of all points, in CI one of so many for each action.
const SOME: usize = 6;

/// Where the processes of a pod are cut short: the pod is lost, nothing else.
fn is_of_a_pod(point: Point) -> bool {
    ["supervisor.", "creator."].iter().any(|who| point.name().starts_with(who))
}

/// Whoever does it.
fn writes_records(point: Point) -> bool {
    point.name().starts_with("record.")
}

/// What a single thread that holds a pod may not do without the pod's end.
fn kills_a_pod(point: Point, action: &str) -> bool {
    point.name().starts_with("supervisor.") && matches!(action, "kill" | "panic")
}

/// Points and actions that the environment asks for.
fn wanted(action: &str, offset: usize) -> Vec<(Point, usize)> {
    let all = Point::ALL.iter().flat_map(|point| (1..=turns(*point)).map(|turn| (*point, turn)));
    match std::env::var("CRICKET_CRASH_WALK").ok().as_deref() {
        None => all.skip(offset).step_by(SOME).collect(),
        Some("all") => all.collect(),
        Some(name) => {
            let (point, only) = name.split_once(' ').unwrap_or((name, action));
            all.filter(|(p, _)| p.name() == point && only == action).collect()
        }
    }
}

/// How often a walk comes there.
fn turns(point: Point) -> usize {
    match point {
        Point::RecordWritten | Point::RecordRenamed => 12,
        Point::PodEnded | Point::PodDisconnected | Point::PodUnsnapshot | Point::PodRemoved => 2,
        Point::SnapshotRecorded | Point::ContainerRecorded | Point::ContainerAnswered => 3,
        _ => 1,
    }
}

async fn walk_all(action: &str, offset: usize) {
    let points = wanted(action, offset);
    if points.is_empty() {
        return;
    }
    let mut node = Node::start_with_crash_points().await;
    let mut wrong = Vec::new();
    // Once without a crash: what a walk leaves then is what it may leave.
    Walk::new(&mut node, None, action).await.run().await.expect("nothing is cut short");
    for point in points {
        if let Err(error) = Walk::new(&mut node, Some(point), action).await.run().await {
            wrong.push(format!("{} {action}, turn {}: {error}", point.0.name(), point.1));
            eprintln!("{wrong:?}");
            node.clean_up().await;
        }
    }
    assert!(wrong.is_empty(), "{} walks went wrong:\n{}", wrong.len(), wrong.join("\n"));
    node.stop_and_account().await;
}

#[tokio::test]
async fn who_dies_anywhere_has_told_the_truth_and_leaves_nothing() {
    walk_all("kill", 0).await;
}

#[tokio::test]
async fn a_step_that_fails_anywhere_is_told_and_leaves_nothing() {
    walk_all("fail", 2).await;
}

#[tokio::test]
async fn a_panic_anywhere_is_one_failed_call() {
    walk_all("panic", 4).await;
}
