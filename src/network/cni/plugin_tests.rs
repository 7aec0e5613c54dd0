//! Hostile plugins: shell scripts that do what no plugin should.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::*;
use crate::sys::process::ProcessId;

/// A plugin that ends in time needs a fraction of this, also on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// A script that goes when the test does.
struct Script(PathBuf);

impl Script {
    fn new(name: &str, body: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cricket-plugin-{name}-{}", std::process::id()));
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        Self(path)
    }

    fn call(&self, patience: Duration) -> Call<'_> {
        Call {
            plugin: "hostile",
            command: "ADD",
            program: &self.0,
            environment: vec![("CNI_IFNAME", "eth0".to_owned())],
            input: b"{\"name\":\"n\"}".to_vec(),
            passed: None,
            holder: None,
            namespaces: &[],
            patience,
        }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn run(name: &str, body: &str) -> Result<Vec<u8>, CniError> {
    Script::new(name, body).call(PATIENCE).run()
}

fn error_of(name: &str, body: &str) -> String {
    run(name, body).expect_err(name).to_string()
}

/// Largest size of this process so far.
fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

#[test]
fn a_plugin_hears_its_configuration_and_variables_and_is_heard() {
    let output = run("good", "echo \"$CNI_COMMAND $CNI_IFNAME $NOTIFY_SOCKET$(cat)\"").expect("a good plugin");
    assert_eq!(String::from_utf8(output).expect("text"), "ADD eth0 {\"name\":\"n\"}\n");
}

#[test]
fn a_plugin_that_hangs_is_killed_with_its_children_when_its_time_is_over() {
    let pid_file = std::env::temp_dir().join(format!("cricket-plugin-child-{}", std::process::id()));
    let body = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
    let script = Script::new("hangs", &body);
    let started = Instant::now();
    let error = script.call(Duration::from_secs(1)).run().expect_err("it hangs");
    assert!(matches!(error, CniError::Deadline { .. }), "{error}");
    assert!(error.to_string().contains("network.cni_timeout_seconds"), "{error}");
    assert!(started.elapsed() < PATIENCE);
    let child: i32 = fs::read_to_string(&pid_file).expect("it got that far").trim().parse().expect("a number");
    let deadline = Instant::now() + PATIENCE;
    while ProcessId::of(child).is_ok() {
        assert!(Instant::now() < deadline, "the plugin's child lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
    fs::remove_file(pid_file).expect("removed");
}

#[test]
fn a_plugin_that_prints_a_gigabyte_is_killed_and_memory_stays_flat() {
    let before = peak_bytes();
    let error = error_of("prints", "head -c 1000000000 /dev/zero");
    assert!(error.contains("printed more than 1048576 bytes"), "{error}");
    let error = error_of("logs", "head -c 1000000000 /dev/zero >&2");
    assert!(error.contains("logged more than"), "{error}");
    let grown = peak_bytes() - before;
    assert!(grown < 32 << 20, "memory grew by {grown} bytes");
}

#[test]
fn a_plugin_that_leaves_a_child_at_the_pipe_is_not_waited_for() {
    let started = Instant::now();
    let output = run("forks", "sleep 1000 & echo '{\"ips\":[]}'").expect("it ended well");
    assert_eq!(output, b"{\"ips\":[]}\n");
    let output = run("forks-away", "setsid sleep 21 & exit 0").expect("it ended well");
    assert!(output.is_empty());
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn what_a_failing_plugin_says_is_passed_on() {
    let document =
        r#"printf '%s' '{"cniVersion":"1.0.0","code":11,"msg":"try later","details":"the agent\nis away"}'; exit 1"#;
    let error = run("refuses", document).expect_err("an error document");
    assert!(error.is_temporary());
    let text = error.to_string();
    assert_eq!(text, "the CNI plugin hostile failed (ADD): try later: the agent is away (code 11)");
    for (body, expected) in [
        ("exit 3", "exit status: 3 and said nothing"),
        ("echo no such bridge >&2; exit 1", "said: no such bridge"),
        ("echo rubbish; exit 1", "said: rubbish"),
        ("kill -9 $$", "signal: 9"),
        (r#"echo '{"msg":"no code"}'; exit 1"#, "no code (code 0)"),
        (r#"echo '{"code":7}'; exit 1"#, "it gave no reason (code 7)"),
        (r#"printf '%s' '{"code":7,"msg":"a\u001b[2Jb"}'; exit 1"#, "a[2Jb (code 7)"),
    ] {
        let error = error_of("fails", body);
        assert!(error.contains(expected), "{body}: {error}");
    }
    let long = error_of("long", "head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1");
    assert!(long.len() < 2000, "{}", long.len());
}

#[test]
fn an_error_document_with_exit_code_0_is_an_error() {
    let error = error_of("lies", r#"echo '{"cniVersion":"1.0.0","code":100,"msg":"no bridge"}'"#);
    assert!(error.contains("no bridge (code 100)"), "{error}");
}

#[test]
fn a_plugin_that_reads_nothing_or_closes_everything_is_still_understood() {
    let script = Script::new("deaf", "exec <&-; echo '{}'");
    let mut call = script.call(PATIENCE);
    call.input = vec![b' '; 4 << 20];
    assert_eq!(call.run().expect("it ended well"), b"{}\n");
    assert!(run("mute", "exec >&- 2>&-; sleep 0.2").expect("it ended well").is_empty());
}

#[test]
fn a_plugin_is_killed_when_its_pod_ends() {
    let mut pod = Command::new("sleep").arg("1000").spawn().expect("a process");
    let holder = ProcessId::of(pod.id() as i32).expect("it runs").open().expect("a descriptor").expect("it runs");
    let script = Script::new("orphan", "sleep 1000");
    let mut call = script.call(PATIENCE);
    call.holder = Some(holder.as_fd());
    let killer = std::thread::spawn(move || {
        pod.kill().expect("our child");
        pod.wait().expect("our child");
    });
    assert!(matches!(call.run().expect_err("its pod ended"), CniError::PodEnded { .. }));
    killer.join().expect("it ended");
}

#[test]
fn a_plugin_that_is_no_program_is_named() {
    let script = Script::new("broken", "");
    fs::write(&script.0, "\x7fELF").expect("written");
    let error = script.call(PATIENCE).run().expect_err("not a program").to_string();
    assert!(error.contains("cricket-plugin-broken"), "{error}");
}
