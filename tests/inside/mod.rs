//! Tests in user, network and mount namespaces of their own, where they are root.

use std::process::{Command, Stdio};

/// Set in the copy of the test that runs inside the namespaces.
const INSIDE: &str = "CRICKET_TEST_INSIDE";
/// What is done first there.
const READY: &str = "ip link set lo up && sysctl -qw net.ipv4.ping_group_range='0 0'";

/// Runs `work` in namespaces of the test's own, by running the test `name` once more.
pub fn inside<F: Future<Output = ()>>(name: &str, work: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let ready = Command::new("sh").args(["-c", READY]).status().expect("sh runs");
        assert!(ready.success(), "{READY}: {ready}");
        return runtime.block_on(work());
    }
    let exe = std::env::current_exe().expect("the test's own path");
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "--"])
        .arg(exe)
        .args(["--exact", name, "--nocapture"])
        // Its result is this test's, and is counted once.
        .stdout(Stdio::null())
        .env(INSIDE, "1")
        .status()
        .expect("unshare runs");
    assert!(status.success(), "{name} inside the namespaces: {status}");
}
