//! The daemon's side against a supervisor of the test's own: answers out of order, descriptors, deadlines, hangups.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::thread::JoinHandle;

use super::*;
use crate::executor::protocol::{MESSAGE_LIMIT, accept, listen, receive, send, set_nonblocking};
use wire::event::Event as Kind;

/// A pod's run-time directory of its own, removed at the end.
struct StateDir(PathBuf);

impl StateDir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cricket-client-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The other end: accepts one daemon, answers its hello, then does as the test says, in a thread.
fn fake(directory: &Path, version: u32, act: impl FnOnce(&OwnedFd) + Send + 'static) -> JoinHandle<()> {
    let listener = listen(directory, SUPERVISOR_SOCKET).expect("bound");
    std::thread::spawn(move || serve(&listener, version, act))
}

fn serve(listener: &OwnedFd, version: u32, act: impl FnOnce(&OwnedFd)) {
    let socket = accept(listener).expect("accepted").expect("our own user");
    set_nonblocking(&socket, false).expect("blocking");
    let (id, op, _) = next(&socket).expect("a request");
    assert!(matches!(op, Op::Hello(wire::Hello { version: PROTOCOL_VERSION })));
    let hello = wire::HelloReply { version, pid: 42, pod_id: "p".into(), ..Default::default() };
    answer(&socket, id, Answer::Hello(hello), &[]);
    act(&socket);
}

fn next(socket: &OwnedFd) -> Result<(u64, Op, Vec<OwnedFd>), ProtocolError> {
    let Received { message, descriptors } = receive::<wire::Request>(socket, &mut vec![0; MESSAGE_LIMIT])?;
    Ok((message.id, message.op.expect("an operation"), descriptors))
}

fn answer(socket: &OwnedFd, id: u64, result: Answer, descriptors: &[BorrowedFd<'_>]) {
    let reply = wire::Reply { id, result: Some(result) };
    let message = Some(wire::from_supervisor::Message::Reply(reply));
    send(socket, &wire::FromSupervisor { message }, descriptors).expect("answered");
}

fn tell(socket: &OwnedFd, kind: Kind) {
    let message = Some(wire::from_supervisor::Message::Event(wire::Event { event: Some(kind) }));
    send(socket, &wire::FromSupervisor { message }, &[]).expect("told");
}

fn start(container: &str) -> Op {
    Op::StartContainer(wire::StartContainer { container_id: container.to_owned() })
}

fn exec_exit(number: usize) -> Kind {
    Kind::ExecExited(wire::ExecExit { exec_id: number.to_string(), ..Default::default() })
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe")
}

#[tokio::test]
async fn replies_find_their_requests_in_any_order() {
    let directory = StateDir::new("order");
    let other = fake(&directory.0, PROTOCOL_VERSION, |socket| {
        let requests: Vec<_> = (0..3).map(|_| next(socket).expect("a request")).collect();
        for (id, op, _) in requests.into_iter().rev() {
            let Op::StartContainer(start) = op else { panic!("{op:?}") };
            let error = wire::Error { kind: wire::ErrorKind::NotFound.into(), message: start.container_id };
            answer(socket, id, Answer::Error(error), &[]);
        }
    });
    let (supervisor, hello) = Supervisor::connect(&directory.0).await.expect("connected");
    assert_eq!((supervisor.pid(), hello.pod_id.as_str()), (42, "p"));
    let calls = ["a", "b", "c"].map(|name| supervisor.call(start(name)));
    let [a, b, c] = calls;
    let (a, b, c) = tokio::join!(a, b, c);
    for (result, name) in [(a, "a"), (b, "b"), (c, "c")] {
        match result {
            Err(ExecutorError::Refused { kind: wire::ErrorKind::NotFound, message }) => assert_eq!(message, name),
            other => panic!("{other:?}"),
        }
    }
    other.join().expect("the other end");
}

#[tokio::test]
async fn nobody_listening_and_a_supervisor_that_dies_are_gone() {
    let directory = StateDir::new("gone");
    assert!(matches!(Supervisor::connect(&directory.0).await, Err(ExecutorError::Gone)));
    let other = fake(&directory.0, PROTOCOL_VERSION, |socket| {
        next(socket).expect("a request, never answered");
    });
    let (supervisor, _) = Supervisor::connect(&directory.0).await.expect("connected");
    let mut events = supervisor.take_events().expect("the first time");
    assert!(supervisor.take_events().is_none());
    assert!(matches!(supervisor.call(start("a")).await, Err(ExecutorError::Gone)));
    assert!(matches!(supervisor.call(start("b")).await, Err(ExecutorError::Gone)));
    assert!(events.recv().await.is_none());
    other.join().expect("the other end");
    assert!(matches!(Supervisor::connect(&directory.0).await, Err(ExecutorError::Gone)));
}

#[tokio::test]
async fn a_supervisor_of_another_major_version_is_refused_by_name() {
    let directory = StateDir::new("version");
    let other = fake(&directory.0, PROTOCOL_VERSION + 1000, |_| {});
    match Supervisor::connect(&directory.0).await {
        Err(ExecutorError::Refused { kind: wire::ErrorKind::FailedPrecondition, message }) => {
            assert!(message.contains("pod p speaks protocol 2000"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    other.join().expect("the other end");
}

#[tokio::test]
async fn descriptors_travel_both_ways_and_are_closed_here_once_sent() {
    let directory = StateDir::new("descriptors");
    let other = fake(&directory.0, PROTOCOL_VERSION, |socket| {
        let (id, op, descriptors) = next(socket).expect("an exec");
        assert!(matches!(op, Op::Exec(_)) && descriptors.len() == 3);
        let [_stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(descriptors).expect("three");
        File::from(stdout).write_all(b"out").expect("written");
        drop(stderr);
        answer(socket, id, Answer::Exec(wire::ExecReply { pid: 9 }), &[]);
        let (id, _, descriptors) = next(socket).expect("an exec with a terminal");
        assert!(descriptors.is_empty());
        let (reader, _writer) = pipe();
        answer(socket, id, Answer::Exec(wire::ExecReply { pid: 10 }), &[reader.as_fd()]);
    });
    let (supervisor, _) = Supervisor::connect(&directory.0).await.expect("connected");
    let ((stdin, _keep), (out, stdout), (_err, stderr)) = (pipe(), pipe(), pipe());
    let stdio = Stdio { stdin, stdout, stderr };
    let (reply, terminal) = supervisor.exec(wire::Exec::default(), Some(stdio)).await.expect("run");
    assert!(reply.pid == 9 && terminal.is_none());
    let mut said = String::new();
    File::from(out).read_to_string(&mut said).expect("end of file: no copy of the write end is left here");
    assert_eq!(said, "out");
    let request = wire::Exec { tty: true, ..Default::default() };
    let (reply, terminal) = supervisor.exec(request, None).await.expect("run");
    assert!(reply.pid == 10 && terminal.is_some());
    other.join().expect("the other end");
}

#[tokio::test]
async fn a_reply_with_descriptors_that_nobody_asked_for_is_refused() {
    let directory = StateDir::new("surplus");
    let other = fake(&directory.0, PROTOCOL_VERSION, |socket| {
        let (id, _, _) = next(socket).expect("a request");
        answer(socket, id, Answer::Done(wire::Done::default()), &[socket.as_fd()]);
    });
    let (supervisor, _) = Supervisor::connect(&directory.0).await.expect("connected");
    let refused = supervisor.call(start("a")).await;
    assert!(matches!(refused, Err(ExecutorError::Refused { kind: wire::ErrorKind::Internal, .. })), "{refused:?}");
    other.join().expect("the other end");
}

#[tokio::test]
async fn events_that_nobody_reads_yet_hold_back_no_reply_and_none_is_lost() {
    const MANY: usize = 1000;
    let directory = StateDir::new("events");
    let other = fake(&directory.0, PROTOCOL_VERSION, |socket| {
        for number in 0..MANY {
            tell(socket, exec_exit(number));
            let trouble = wire::LogTrouble { container_id: "c".into(), message: number.to_string() };
            tell(socket, Kind::LogTrouble(trouble));
        }
        let (id, _, _) = next(socket).expect("a request");
        answer(socket, id, Answer::Done(wire::Done::default()), &[]);
        tell(socket, exec_exit(MANY));
    });
    let (supervisor, _) = Supervisor::connect(&directory.0).await.expect("connected");
    supervisor.call(start("a")).await.expect("answered although no event was read");
    other.join().expect("the other end, which then hangs up");
    let mut events = supervisor.take_events().expect("the events");
    let mut exits = Vec::new();
    let mut last_trouble = String::new();
    while let Some(event) = events.recv().await {
        match event.event.expect("a kind") {
            Kind::ExecExited(exit) => exits.push(exit.exec_id),
            Kind::LogTrouble(trouble) => last_trouble = trouble.message,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(exits, (0..=MANY).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(last_trouble, (MANY - 1).to_string());
}

#[tokio::test]
async fn a_call_that_is_dropped_is_forgotten_and_its_late_reply_is_closed() {
    let directory = StateDir::new("dropped");
    let (go, wait) = std::sync::mpsc::channel();
    let (reader, writer) = pipe();
    let other = fake(&directory.0, PROTOCOL_VERSION, move |socket| {
        let (id, _, _) = next(socket).expect("a request");
        wait.recv().expect("the caller has gone");
        answer(socket, id, Answer::Done(wire::Done::default()), &[writer.as_fd()]);
        drop(writer);
        let (id, _, _) = next(socket).expect("another");
        answer(socket, id, Answer::Done(wire::Done::default()), &[]);
    });
    let (supervisor, _) = Supervisor::connect(&directory.0).await.expect("connected");
    let call = supervisor.connect_port(80);
    assert!(tokio::time::timeout(Duration::from_millis(50), call).await.is_err());
    go.send(()).expect("sent");
    supervisor.call(start("b")).await.expect("the connection goes on");
    let mut rest = Vec::new();
    File::from(reader).read_to_end(&mut rest).expect("the late descriptor is closed");
    other.join().expect("the other end");
}

#[tokio::test]
async fn a_deadline_is_kept_when_no_answer_comes() {
    let (ours, _theirs) = protocol::pair().expect("a pair");
    let connection = Connection::<wire::FromSupervisor>::open(ours, None).expect("open");
    let request = wire::Request { id: 1, op: Some(start("a")) };
    let deadline = Duration::from_millis(30);
    let result = connection.exchange(1, &request, Vec::new(), deadline).await;
    assert!(matches!(result, Err(ExecutorError::Timeout(waited)) if waited == deadline));
}

/// Not a test but the other end of the next one: what this very binary does when it is started as
/// `BINARY supervise` with an empty environment, as a template is.
#[test]
fn supervise_as_a_fake_template() {
    if std::env::vars_os().next().is_some() || std::env::args().nth(1).as_deref() != Some("supervise") {
        return;
    }
    let socket = dup_template_socket();
    let mut children = Vec::new();
    while let Ok(received) = receive::<wire::SpawnRequest>(&socket, &mut vec![0; MESSAGE_LIMIT]) {
        let (request, [listener]) = received.expect::<1>().expect("the listener");
        let sandbox = request.sandbox.expect("a sandbox");
        if sandbox.pod_id == "die" {
            std::process::exit(0);
        }
        let error = (sandbox.pod_id == "refuse").then(|| wire::Error { kind: 0, message: "no".to_owned() });
        if error.is_none() {
            children.push(std::thread::spawn(move || {
                serve(&listener, PROTOCOL_VERSION, |socket| while next(socket).is_ok() {});
            }));
        }
        send(&socket, &wire::SpawnReply { id: request.id, pid: 42, error }, &[]).expect("answered");
    }
}

fn dup_template_socket() -> OwnedFd {
    let path = format!("/proc/self/fd/{}", protocol::TEMPLATE_SOCKET);
    assert!(std::fs::read_link(path).expect("the socket").to_string_lossy().starts_with("socket:"));
    crate::sys::spawn::inherited(protocol::TEMPLATE_SOCKET).expect("the socket")
}

#[tokio::test]
async fn a_template_spawns_refuses_and_is_started_again_when_it_died() {
    let directories: Vec<_> = (0..5).map(|number| StateDir::new(&format!("template-{number}"))).collect();
    let sandbox = |number: usize, pod_id: &str| wire::SandboxSpec {
        pod_id: pod_id.to_owned(),
        state_dir: directories[number].0.to_string_lossy().into_owned(),
        ..Default::default()
    };
    let executable = std::env::current_exe().expect("ourselves");
    let template = Template::start(TemplateOptions { executable, namespaces: Vec::new() }).await.expect("started");
    let (first, second) = tokio::join!(template.spawn(sandbox(0, "a")), template.spawn(sandbox(1, "b")));
    assert_eq!((first.expect("spawned").pid(), second.expect("spawned").pid()), (42, 42));
    let refused = template.spawn(sandbox(2, "refuse")).await;
    assert!(matches!(refused, Err(ExecutorError::Refused { message, .. }) if message == "no"));
    assert!(!directories[2].0.join(SUPERVISOR_SOCKET).exists());
    let died = template.spawn(sandbox(3, "die")).await;
    assert!(matches!(died, Err(ExecutorError::Refused { message, .. }) if message.contains("died again")));
    template.spawn(sandbox(4, "c")).await.expect("by another template");
}
