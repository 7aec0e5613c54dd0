//! The log over real pipes and files: split lines, rotation, full disks, slow clients.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::format::LINE_LIMIT;
use super::*;

const DEADLINE: Duration = Duration::from_secs(60);

/// A directory for logs, removed at the end; on a file system of its own when it is to become full.
struct Logs {
    path: PathBuf,
    mounted: bool,
}

impl Logs {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cricket-log-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Self { path, mounted: false }
    }

    /// `None` where this process may not mount.
    fn small(name: &str, bytes: usize) -> Option<Self> {
        let mut logs = Self::new(name);
        let options = format!("size={bytes},mode=0755");
        let path = logs.path.clone();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path).status();
        logs.mounted = mounted.is_ok_and(|status| status.success());
        logs.mounted.then_some(logs)
    }

    fn log(&self, scratch: &mut Scratch) -> ContainerLog {
        let path = self.path.join("0.log");
        ContainerLog::open(LogPath::new(path.to_str().expect("text"), "").expect("good"), scratch).expect("open")
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path.join(name)).expect("read")
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        }
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn pipe() -> (OwnedFd, File) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    (reader, File::from(writer))
}

/// What a supervisor's loop does, until `done` says so.
fn drive(log: &mut ContainerLog, scratch: &mut Scratch, mut done: impl FnMut(&mut ContainerLog, &mut Scratch) -> bool) {
    let started = Instant::now();
    while !done(log, scratch) {
        assert!(started.elapsed() < DEADLINE, "too long: {log:?}");
        let streams = Stream::ALL.map(|stream| log.wants_read(stream).then_some(stream));
        let streams: Vec<Stream> = streams.into_iter().flatten().collect();
        let ready: Vec<Stream> = {
            let sources = streams.iter().filter_map(|stream| log.source(*stream));
            let mut polled: Vec<PollFd<'_>> = sources.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            let timeout = log.wake_at().map_or(Duration::from_millis(20), |at| at.duration_since(Instant::now()));
            let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() };
            rustix::event::poll(&mut polled, Some(&timeout)).expect("polled");
            streams.iter().zip(&polled).filter(|(_, fd)| !fd.revents().is_empty()).map(|(stream, _)| *stream).collect()
        };
        ready.into_iter().for_each(|stream| log.on_readable(stream, scratch));
        log.on_wake(scratch);
        if scratch.give_back_at().is_some_and(|at| at <= Instant::now()) {
            scratch.give_back();
        }
    }
}

/// The log's text without the times, which are checked.
fn contents(log: &str) -> Vec<String> {
    log.lines()
        .map(|line| {
            let (stamp, rest) = line.split_at(30);
            let format = time::format_description::well_known::Rfc3339;
            time::OffsetDateTime::parse(stamp, &format).expect("a time");
            rest[1..].to_owned()
        })
        .collect()
}

#[test]
fn both_streams_end_up_in_one_file_and_a_tail_is_written_at_the_end() {
    let logs = Logs::new("both");
    let mut scratch = Scratch::new().expect("memory");
    let mut log = logs.log(&mut scratch);
    let ((out, mut stdout), (err, mut stderr)) = (pipe(), pipe());
    log.add_source(Stream::Stdout, out).expect("added");
    log.add_source(Stream::Stderr, err).expect("added");
    stdout.write_all(b"one\ntwo").expect("written");
    drive(&mut log, &mut scratch, |_, _| logs.text("0.log").ends_with("one\n"));
    stderr.write_all(b"oops\n").expect("written");
    drop((stdout, stderr));
    drive(&mut log, &mut scratch, |log, _| log.is_finished());
    log.finish(&mut scratch);
    assert!(log.is_finished() && log.source(Stream::Stdout).is_none());
    let mut lines = contents(&logs.text("0.log"));
    lines.sort();
    assert_eq!(lines, ["stderr F oops", "stdout F one", "stdout P two"]);
}

#[test]
fn what_a_container_wrote_before_it_ended_is_read_though_another_process_has_its_pipe() {
    let logs = Logs::new("left");
    let mut scratch = Scratch::new().expect("memory");
    let mut log = logs.log(&mut scratch);
    let (out, mut stdout) = pipe();
    log.add_source(Stream::Stdout, out).expect("added");
    stdout.write_all(b"last words").expect("written");
    log.finish(&mut scratch);
    assert!(log.is_finished());
    assert_eq!(contents(&logs.text("0.log")), ["stdout P last words"]);
    drop(stdout);
}

#[test]
fn a_line_writer_loses_nothing_over_rotation() {
    const LINES: usize = 30_000;
    let logs = Logs::new("rotation");
    let mut scratch = Scratch::new().expect("memory");
    let mut log = logs.log(&mut scratch);
    let (out, mut stdout) = pipe();
    log.add_source(Stream::Stdout, out).expect("added");
    let writer = std::thread::spawn(move || {
        (0..LINES).for_each(|number| writeln!(stdout, "line {number}").expect("written"));
    });
    let mut rotations = 0;
    drive(&mut log, &mut scratch, |log, scratch| {
        if std::fs::metadata(logs.path.join("0.log")).expect("there").len() > 100_000 {
            rotations += 1;
            std::fs::rename(logs.path.join("0.log"), logs.path.join(format!("{rotations}.old"))).expect("renamed");
            log.reopen(scratch).expect("reopened");
            assert!(logs.path.join("0.log").exists(), "the new file is there at once");
        }
        log.is_finished()
    });
    writer.join().expect("written");
    let mut text: String = (1..=rotations).map(|number| logs.text(&format!("{number}.old"))).collect();
    text += &logs.text("0.log");
    assert!(rotations > 3);
    let expected = (0..LINES).map(|number| format!("stdout F line {number}"));
    assert!(contents(&text).into_iter().eq(expected));
}

#[test]
fn a_full_disk_holds_the_container_back_and_nothing_is_torn_or_lost() {
    let Some(logs) = Logs::small("full", 1 << 20) else { return };
    let ballast = logs.path.join("ballast");
    std::fs::write(&ballast, vec![0; 700_000]).expect("written");
    let mut scratch = Scratch::new().expect("memory");
    let mut log = logs.log(&mut scratch);
    let (out, mut stdout) = pipe();
    log.add_source(Stream::Stdout, out).expect("added");
    let writer = std::thread::spawn(move || {
        (0..6_000).for_each(|number| writeln!(stdout, "line {number:>60}").expect("written"));
    });
    let mut trouble = None;
    drive(&mut log, &mut scratch, |log, _| {
        trouble = log.take_trouble();
        trouble.is_some()
    });
    assert!(trouble.is_some_and(|text| text.contains("No space left") && text.contains("0.log")));
    assert!(!log.wants_read(Stream::Stdout) && !log.is_finished());
    assert!(logs.text("0.log").ends_with('\n'), "no line is torn while the disk is full");
    let full = logs.text("0.log").len();
    log.finish(&mut scratch);
    assert!(!log.is_finished() && !writer.is_finished(), "the writer waits");
    drop(log);
    // Once more, and this time there is room in the end.
    let mut scratch = Scratch::new().expect("memory");
    let mut log = logs.log(&mut scratch);
    let (out, mut stdout) = pipe();
    log.add_source(Stream::Stdout, out).expect("added");
    let other = std::thread::spawn(move || {
        (0..2_000).for_each(|number| writeln!(stdout, "again {number:>60}").expect("written"));
    });
    drive(&mut log, &mut scratch, |log, _| log.take_trouble().is_some());
    std::fs::remove_file(&ballast).expect("removed");
    let mut over = None;
    drive(&mut log, &mut scratch, |log, _| {
        over = over.take().or_else(|| log.take_trouble());
        log.is_finished()
    });
    other.join().expect("written");
    assert_eq!(over.as_deref(), Some(""));
    let expected = (0..2_000).map(|number| format!("stdout F again {number:>60}"));
    let text = logs.text("0.log");
    assert!(contents(&text[full..]).into_iter().filter(|line| line.contains("again")).eq(expected));
    assert!(writer.join().is_err(), "its log is gone");
}

#[test]
fn one_endless_line_is_split_in_flat_memory() {
    const LENGTH: usize = 64 << 20;
    let logs = Logs::new("endless");
    let mut scratch = Scratch::new().expect("memory");
    let mut log = logs.log(&mut scratch);
    let (out, mut stdout) = pipe();
    log.add_source(Stream::Stdout, out).expect("added");
    let writer = std::thread::spawn(move || {
        let chunk = vec![b'x'; 1 << 20];
        (0..LENGTH >> 20).for_each(|_| stdout.write_all(&chunk).expect("written"));
    });
    let before = resident_bytes();
    let mut most = before;
    drive(&mut log, &mut scratch, |log, _| {
        most = most.max(resident_bytes());
        log.is_finished()
    });
    writer.join().expect("written");
    // Other tests run in this process; the line alone would be 64 MiB.
    assert!(most - before < LENGTH / 2, "{before} then {most}");
    let text = logs.text("0.log");
    assert_eq!(text.lines().count(), LENGTH / LINE_LIMIT);
    assert!(text.lines().all(|line| line.len() == 40 + LINE_LIMIT && line[30..].starts_with(" stdout P x")));
}

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: usize = text.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("a number");
    pages * rustix::param::page_size()
}

#[test]
fn an_attached_client_gets_what_comes_from_then_on_and_the_end() {
    let logs = Logs::new("attach");
    let mut scratch = Scratch::new().expect("memory");
    let mut log = logs.log(&mut scratch);
    let (out, mut stdout) = pipe();
    log.add_source(Stream::Stdout, out).expect("added");
    stdout.write_all(b"before\n").expect("written");
    drive(&mut log, &mut scratch, |_, _| !logs.text("0.log").is_empty());
    let (reader, writer) = pipe();
    log.attach(Some(writer.into()), None).expect("attached");
    stdout.write_all(b"after\ntail").expect("written");
    drop(stdout);
    drive(&mut log, &mut scratch, |log, _| log.is_finished());
    let mut copy = String::new();
    File::from(reader).read_to_string(&mut copy).expect("ended");
    assert_eq!(copy, "after\ntail");
    let (reader, writer) = pipe();
    log.attach(Some(writer.into()), None).expect("a stream that has ended");
    assert_eq!(File::from(reader).read(&mut [0; 8]).expect("ended at once"), 0);
}

#[test]
fn without_a_log_output_is_read_and_reopening_is_refused() {
    let mut scratch = Scratch::new().expect("memory");
    let mut log = ContainerLog::open(None, &mut scratch).expect("open");
    let (out, mut stdout) = pipe();
    log.add_source(Stream::Stdout, out).expect("added");
    let writer = std::thread::spawn(move || stdout.write_all(&vec![b'x'; 1 << 20]).expect("written"));
    drive(&mut log, &mut scratch, |log, _| log.is_finished());
    writer.join().expect("written");
    assert!(matches!(log.reopen(&mut scratch), Err(LogError::NoLog)));
    assert!(!Path::new("/0.log").exists());
}
