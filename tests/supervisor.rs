//! A pod's process, black-box over its own protocol: no daemon, no image service. Needs root of a user namespace with a
//! range of ids (or of the machine) and a static busybox; where these are missing a test says so and passes.

mod pod;

use pod::{Fixture, Output};

use cricket::proto::supervisor as wire;
use cricket::proto::supervisor::request::Op;
use cricket::proto::supervisor::{ErrorKind, NamespaceMode};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

macro_rules! fixture {
    ($sandbox:expr) => {
        match Fixture::new($sandbox) {
            Some(fixture) => fixture,
            None => return,
        }
    };
}

fn own() -> wire::SandboxSpec {
    wire::SandboxSpec { hostname: "pod".into(), pid: NamespaceMode::Container.into(), ..Default::default() }
}

#[test]
fn a_container_runs_writes_its_log_and_leaves_its_exit_code() {
    let mut pod = fixture!(own());
    let container = pod.container(&["sh", "-c", "echo out; echo err >&2; hostname; exit 3"]);
    let reply = pod.create(&container).expect("created");
    assert!(reply.pid > 0 && reply.created_at > 0);
    pod.start(&container).expect("started");
    let exit = pod.wait_exit(&container);
    assert_eq!((exit.exit_code, exit.signal, exit.reason.as_str()), (3, 0, "Error"));
    let log = pod.log(&container);
    for line in [" stdout F out\n", " stderr F err\n", " stdout F pod\n"] {
        assert!(log.contains(line), "{log}");
    }
    let record = pod.exit_record(&container);
    assert_eq!((record["exit_code"].as_i64(), record["version"].as_i64()), (Some(3), Some(1)));
    pod.remove(&container).expect("removed");
    assert!(pod.hello().containers.is_empty());
}

#[test]
fn a_missing_program_is_the_images_fault_and_nothing_is_left() {
    let mut pod = fixture!(own());
    let container = pod.container(&["/no/such/program"]);
    let error = pod.create(&container).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::BadImage, "{}", error.message);
    assert!(error.message.contains("/no/such/program"), "{}", error.message);
    assert!(pod.hello().containers.is_empty());
    assert_eq!(pod.descendants(), 0);
}

#[test]
fn a_program_that_cannot_be_executed_is_a_start_error() {
    let mut pod = fixture!(own());
    pod.file("broken", b"not a program", 0o755);
    let container = pod.container(&["/broken"]);
    pod.create(&container).expect("created");
    let error = pod.start(&container).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::BadImage, "{}", error.message);
    let exit = pod.wait_exit(&container);
    assert_eq!((exit.exit_code, exit.reason.as_str()), (126, "StartError"));
}

#[test]
fn a_dev_that_is_a_symbolic_link_is_refused_and_its_target_untouched() {
    let mut pod = fixture!(own());
    let outside = pod.outside();
    pod.replace_with_link("dev", &outside);
    let container = pod.container(&["true"]);
    let error = pod.create(&container).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::BadImage, "{}", error.message);
    assert_eq!(std::fs::read_dir(outside).expect("there").count(), 0);
}

#[test]
fn an_exec_has_the_containers_ids_capabilities_filter_and_limits() {
    let mut pod = fixture!(own());
    let container = pod.sleeper();
    let output = pod.exec(&container, &["sh", "-c", "cat /proc/self/status; ulimit -n; id; pwd; echo $FOO; exit 7"]);
    assert_eq!(output.exit_code, 7, "{output:?}");
    let text = &output.stdout;
    for line in [
        "CapInh:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "Seccomp:\t2",
        "NoNewPrivs:\t1",
        "CapEff:\t0000000000000000",
        "CapBnd:\t00000000a80425fb",
        "SigIgn:\t0000000000000000",
        "SigBlk:\t0000000000000000",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(text.contains("\n1023\nuid=1000 gid=1001 groups=1001,1002\n/work\nbar\n"), "{text}");
    let again = pod.exec(&container, &["grep", "Seccomp:", "/proc/self/status"]);
    assert_eq!(again.stdout, "Seccomp:\t2\n");
    assert_eq!(pod.exec(&container, &["ls", "/proc/self/fd"]).stdout, "0\n1\n2\n3\n");
}

/// With and without `no_new_privs` the filter gets in at different moments; capabilities must be gone either way.
#[test]
fn a_filter_holds_the_first_process_and_execs_and_is_compiled_once() {
    let mut pod = fixture!(own());
    let look =
        "grep -E 'Cap(Eff|Prm|Inh|Bnd|Amb)|NoNewPrivs|Seccomp:' /proc/self/status; ln -s a /work/link 2>&1; true";
    for no_new_privileges in [true, false] {
        let mut container = pod.container(&["sh", "-c", &format!("{look}; sleep 9999")]);
        container.no_new_privileges = no_new_privileges;
        pod.create(&container).expect("created");
        pod.start(&container).expect("started");
        let within = pod.exec(&container, &["sh", "-c", look]).stdout;
        pod.wait_for("the first process's words", |pod| pod.log(&container).contains("not supported"));
        let log = pod.log(&container);
        let grown = format!("NoNewPrivs:\t{}", u8::from(no_new_privileges));
        for line in [
            "CapInh:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "CapBnd:\t00000000a80425fb",
            "CapAmb:\t0000000000000000",
            "Seccomp:\t2",
            "Operation not supported",
            &grown,
        ] {
            assert!(log.contains(line), "first process, {line}: {log}");
            assert!(within.contains(line), "exec, {line}: {within}");
        }
    }
    assert_eq!(std::fs::read_dir(pod.seccomp_store()).expect("a store").count(), 1);
}

#[test]
fn an_exec_of_a_missing_program_is_refused_and_says_which() {
    let mut pod = fixture!(own());
    let container = pod.sleeper();
    let error = pod.try_exec(&container, &["no-such"]).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::BadImage);
    assert!(error.message.contains("no-such"), "{}", error.message);
}

#[test]
fn an_exec_ends_although_its_child_holds_the_pipe() {
    let mut pod = fixture!(own());
    let container = pod.sleeper();
    let exit = pod.exec_status(&container, &["sh", "-c", "sleep 9999 & exit 4"]);
    assert_eq!(exit.exit_code, 4);
}

#[test]
fn signalling_an_exec_reaches_its_whole_session() {
    let mut pod = fixture!(own());
    let container = pod.sleeper();
    let id = pod.begin_exec(&container, &["sh", "-c", "sleep 9999 & wait"]).expect("runs");
    pod.wait_for("the child", |pod| pod.descendants() >= 3);
    pod.call(Op::SignalExec(wire::SignalExec { exec_id: id.clone(), signal: SIGKILL })).expect("signalled");
    assert_eq!(pod.wait_exec(&id).signal, SIGKILL);
    pod.wait_for("only the container's own process", |pod| pod.descendants() == 1);
}

#[test]
fn a_terminal_of_an_exec_is_one_and_has_the_size_asked_for() {
    let mut pod = fixture!(own());
    let container = pod.sleeper();
    let output = pod.exec_terminal(&container, &["sh", "-c", "tty; stty size; exit 5"], 33, 77);
    assert_eq!(output.exit_code, 5, "{output:?}");
    assert!(output.stdout.contains("/dev/pts/0\r\n33 77\r\n"), "{output:?}");
}

#[test]
fn a_terminal_of_a_container_is_logged_attached_and_resized() {
    let mut pod = fixture!(own());
    let container = pod.container(&["sh", "-c", "tty; read line; stty size; echo got $line"]).with_terminal();
    pod.create(&container).expect("created");
    let attached = pod.attach(&container);
    pod.start(&container).expect("started");
    pod.call(Op::ResizeTerminal(wire::ResizeTerminal {
        container_id: container.id.clone(),
        exec_id: String::new(),
        rows: 11,
        columns: 22,
    }))
    .expect("resized");
    attached.write("hello\n");
    assert_eq!(pod.wait_exit(&container).exit_code, 0);
    let seen = attached.read_all();
    assert!(seen.contains("/dev/pts/0\r\n") && seen.contains("11 22\r\ngot hello\r\n"), "{seen:?}");
    assert!(pod.log(&container).contains("got hello"), "{}", pod.log(&container));
}

#[test]
fn standard_input_reaches_the_container_and_ends_when_it_is_closed() {
    let mut pod = fixture!(own());
    let container = pod.container(&["cat"]).with_stdin();
    pod.create(&container).expect("created");
    pod.start(&container).expect("started");
    let attached = pod.attach(&container);
    attached.write("one\ntwo\n");
    drop(attached);
    pod.call(Op::CloseStdin(wire::CloseStdin { container_id: container.id.clone() })).expect("closed");
    assert_eq!(pod.wait_exit(&container).exit_code, 0);
    assert!(pod.log(&container).contains("stdout F two\n"));
}

#[test]
fn a_signal_stops_a_container() {
    let mut pod = fixture!(own());
    let container = pod.sleeper();
    pod.signal(&container, SIGTERM, false).expect("sent");
    pod.signal(&container, SIGKILL, true).expect("sent");
    let exit = pod.wait_exit(&container);
    assert_eq!((exit.exit_code, exit.signal), (137, SIGKILL));
    pod.signal(&container, SIGKILL, true).expect("what is gone is gone");
}

#[test]
fn containers_of_a_shared_pid_namespace_see_each_other_below_an_init_of_ours() {
    let mut pod = fixture!(wire::SandboxSpec { pid: NamespaceMode::Pod.into(), ..own() });
    let first = pod.container(&["sleep", "4321"]).with_pid(NamespaceMode::Pod);
    pod.create(&first).expect("created");
    pod.start(&first).expect("started");
    let second = pod.container(&["sh", "-c", "ps; sleep 1234 & exit 0"]).with_pid(NamespaceMode::Pod);
    pod.create(&second).expect("created");
    pod.start(&second).expect("started");
    pod.wait_exit(&second);
    let log = pod.log(&second);
    assert!(log.contains("sleep 4321") && log.contains("cricket-init"), "{log}");
    pod.wait_for("the second container's orphan to be gone", |pod| pod.descendants() == 2);
}

#[test]
fn a_container_joins_the_pid_namespace_of_another() {
    let mut pod = fixture!(own());
    let target = pod.sleeper();
    let debugger = pod.container(&["ps"]).with_pid(NamespaceMode::Target).with_target(&target.id);
    pod.create(&debugger).expect("created");
    pod.start(&debugger).expect("started");
    pod.wait_exit(&debugger);
    assert!(pod.log(&debugger).contains("sleep 9999"), "{}", pod.log(&debugger));
}

#[test]
fn killing_the_supervisor_leaves_nothing() {
    for mode in [NamespaceMode::Container, NamespaceMode::Pod] {
        let mut pod = fixture!(wire::SandboxSpec { pid: mode.into(), ..own() });
        let running = pod.container(&["sh", "-c", "sleep 9999 & sleep 9999"]).with_pid(mode);
        pod.create(&running).expect("created");
        pod.start(&running).expect("started");
        let created = pod.container(&["sleep", "9999"]).with_pid(mode);
        pod.create(&created).expect("created");
        pod.begin_exec(&running, &["sh", "-c", "sleep 9999 & sleep 9999"]).expect("runs");
        let everybody = pod.family();
        assert!(everybody.len() >= 5, "{everybody:?}");
        pod.kill_supervisor();
        pod.wait_for("everybody to be gone", |_| everybody.iter().all(|&pid| !pod::is_alive(pid)));
    }
}

#[test]
fn leftovers_of_a_pod_on_the_nodes_pid_namespace_are_found_by_their_records() {
    let mut pod = fixture!(wire::SandboxSpec { pid: NamespaceMode::Node.into(), ..own() });
    let container = pod.container(&["sh", "-c", "setsid sleep 9999 & sleep 9999"]).with_pid(NamespaceMode::Node);
    pod.create(&container).expect("created");
    pod.start(&container).expect("started");
    pod.wait_for("the child", |pod| pod.descendants() >= 2);
    let everybody = pod.family();
    pod.kill_supervisor();
    cricket::executor::leftovers::kill(pod.state_dir()).expect("records");
    pod.wait_for("everybody to be gone", |_| everybody.iter().all(|&pid| !pod::is_alive(pid)));
}

#[test]
fn a_second_daemon_finds_the_whole_state_and_hears_events() {
    let mut pod = fixture!(own());
    let container = pod.sleeper();
    let mut second = pod.second_daemon();
    let state = &second.hello().containers[0];
    assert_eq!((state.container_id.as_str(), state.phase()), (container.id.as_str(), wire::ContainerPhase::Running));
    pod.signal(&container, SIGKILL, true).expect("sent");
    assert_eq!(second.wait_exit(&container).signal, SIGKILL);
    assert_eq!(pod.wait_exit(&container).signal, SIGKILL);
}

#[test]
fn a_shutdown_kills_waits_records_and_answers() {
    let mut pod = fixture!(own());
    let first = pod.sleeper();
    let second = pod.sleeper();
    let everybody = pod.family();
    pod.call(Op::Shutdown(wire::Shutdown { grace_ms: 0 })).expect("shut down");
    pod.wait_for("the supervisor to be gone", |_| everybody.iter().all(|&pid| !pod::is_alive(pid)));
    for container in [first, second] {
        assert_eq!(pod.exit_record(&container)["signal"].as_i64(), Some(i64::from(SIGKILL)));
    }
}

#[test]
fn a_connection_into_the_pod_reaches_what_listens_there() {
    let mut pod = fixture!(own());
    let container = pod.container(&["nc", "-l", "-p", "7777", "-e", "echo", "hello"]);
    pod.create(&container).expect("created");
    pod.start(&container).expect("started");
    let mut answer = None;
    pod.wait_for("somebody to listen", |pod| {
        answer = pod.connect_port(7777).ok();
        answer.is_some()
    });
    assert_eq!(pod::read_to_end(answer.expect("connected")), "hello\n");
    assert_eq!(pod.connect_port(7778).expect_err("nobody").kind(), ErrorKind::FailedPrecondition);
    let network = pod.network();
    assert!(network.interfaces.iter().any(|i| i.name == "lo" && i.rx_bytes > 0), "{network:?}");
}

#[test]
fn only_sysctls_of_the_pods_own_namespaces_are_set() {
    let mut good = own();
    good.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
    let mut pod = fixture!(good);
    let container = pod.sleeper();
    let read = pod.exec(&container, &["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"]);
    assert_eq!(read.stdout, "0\n");
    let mut bad = own();
    bad.sysctls.insert("kernel.core_pattern".into(), "|/evil".into());
    let error = Fixture::refused(bad).expect("refused");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn a_creation_that_does_not_end_is_given_up_and_leaves_nothing() {
    let mut pod = fixture!(own());
    let container = pod.container(&["true"]).with_timeout_ms(1);
    let error = pod.create(&container).expect_err("late");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{}", error.message);
    pod.wait_for("everything to be gone", |pod| pod.descendants() == 0);
    assert!(pod.hello().containers.is_empty());
}

#[test]
fn a_working_directory_on_a_descriptor_is_inside_the_root_or_refused() {
    let mut pod = fixture!(own());
    for number in 3..30 {
        let up = &["sh", "-c", "pwd; cd ../../../../../..; pwd; ls ."];
        let container = pod.container(up).with_cwd(&format!("/proc/self/fd/{number}"));
        if pod.create(&container).is_err() {
            continue;
        }
        pod.start(&container).expect("started");
        pod.wait_exit(&container);
        let log = pod.log(&container);
        assert!(log.contains("F /\n") && log.contains("F work\n") && !log.contains("unreachable"), "{number}: {log}");
    }
    assert_eq!(pod.descendants(), 0);
}

#[test]
fn a_cgroup_holds_freezes_and_kills_a_container_and_goes_with_it() {
    let Some(cgroup) = pod::make_pod_cgroup() else { return };
    let name = cgroup.strip_prefix("/sys/fs/cgroup").expect("below").display().to_string();
    let mut pod = fixture!(wire::SandboxSpec { cgroup: name.clone(), pid: NamespaceMode::Node.into(), ..own() });
    let path = format!("/{name}/container");
    let container =
        pod.container(&["sh", "-c", "setsid sleep 9999 & sleep 9999"]).with_cgroup(&path).with_pid(NamespaceMode::Node);
    let reply = pod.create(&container).expect("created");
    assert!(reply.not_enforced.iter().any(|limit| limit.contains("67108864")), "{reply:?}");
    pod.start(&container).expect("started");
    let read = |file: &str| std::fs::read_to_string(cgroup.join(file)).unwrap_or_default();
    let id = pod.begin_exec(&container, &["sleep", "9999"]).expect("runs");
    pod.wait_for("three processes", |_| read("container/cgroup.procs").lines().count() == 3);
    // A pod that has said nothing needs nobody to write it.
    assert_eq!(read("supervisor/cgroup.procs").lines().count(), 1);
    let pause = |paused| Op::Pause(wire::Pause { container_id: container.id.clone(), paused });
    pod.call(pause(true)).expect("paused");
    pod.wait_for("the freeze", |_| read("container/cgroup.events").contains("frozen 1"));
    pod.call(pause(false)).expect("goes on");
    pod.signal(&container, SIGKILL, true).expect("sent");
    assert_eq!(pod.wait_exit(&container).signal, SIGKILL);
    assert_eq!(pod.wait_exec(&id).signal, SIGKILL);
    pod.remove(&container).expect("removed");
    assert!(!cgroup.join("container").exists());
    drop(pod);
    // Whoever was killed is in it until the kernel is done with him.
    pod::eventually("the cgroup is empty", || {
        let _ = std::fs::remove_dir(cgroup.join("supervisor"));
        std::fs::remove_dir(&cgroup).is_ok()
    });
}

#[test]
fn a_shared_mount_is_shared_inside() {
    let mut pod = fixture!(own());
    let outside = pod.outside();
    let container = pod.container(&["cat", "/proc/self/mountinfo"]).with_shared(&outside);
    pod.create(&container).expect("created");
    pod.start(&container).expect("started");
    pod.wait_exit(&container);
    let log = pod.log(&container);
    assert!(log.lines().any(|line| line.contains(" /shared ") && line.contains(" shared:")), "{log}");
}

#[test]
fn a_hundred_execs_leave_no_descriptor() {
    let mut pod = fixture!(own());
    let container = pod.sleeper();
    let Output { exit_code, .. } = pod.exec(&container, &["true"]);
    assert_eq!(exit_code, 0);
    let before = pod.descriptors();
    for _ in 0..100 {
        pod.exec_status(&container, &["true"]);
    }
    assert_eq!(pod.descriptors(), before);
}

/// Not a test of behaviour: prints what things cost. `--ignored --nocapture`, with a release build.
#[test]
#[ignore = "a measurement"]
fn what_it_costs() {
    let mut pod = fixture!(own());
    pod.measure();
}
