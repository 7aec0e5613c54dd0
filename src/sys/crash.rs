//! Points at which a test has this program die, fail, panic or wait: before and after each step that changes something.
//!
//! Builds with debug assertions only; in a release a point is nothing. The variable CRICKET_CRASH_FILE names a file
//! whose one line is `POINT ACTION N`. Who is the Nth to reach the point takes the file away and acts:
//!
//! | action | |
//! |---|---|
//! | `kill` | this process gets SIGKILL |
//! | `fail` | the step fails with EIO |
//! | `full` | the step fails with ENOSPC |
//! | `panic` | the task panics |
//! | `hold` | waits while `FILE.held`, which it makes, is there |

#[cfg(not(debug_assertions))]
use std::io;

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// See the module.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point { $($(#[$doc])* $name,)* }

        impl Point {
            /// Every one, in the order in which a pod's life passes them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As it is written in the file.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

points! {
    /// A layer is unpacked, and not in its place.
    LayerUnpacked = "layer.unpacked",
    /// A layer is in its place.
    LayerInPlace = "layer.in-place",
    /// The config of an image is written, its record is not.
    ImageConfig = "image.config",
    /// The record of an image is written.
    ImageRecorded = "image.recorded",
    /// Directories of a pod are made.
    PodDirectories = "pod.directories",
    /// The template has a request to fork.
    TemplateFork = "template.fork",
    /// A supervisor is in its namespaces, and not recorded.
    SupervisorNamespaces = "supervisor.namespaces",
    /// A supervisor is recorded, and nobody was told.
    SupervisorRecorded = "supervisor.recorded",
    /// The daemon is connected to a pod's supervisor.
    PodSpawned = "pod.spawned",
    /// A pod has its network.
    PodConnected = "pod.connected",
    /// The record of a pod is written.
    PodRecorded = "pod.recorded",
    /// The answer to RunPodSandbox is about to go.
    PodAnswered = "pod.answered",
    /// The record of a snapshot is written.
    SnapshotRecorded = "snapshot.recorded",
    /// A container has its snapshot.
    ContainerSnapshot = "container.snapshot",
    /// A container's bundle is written.
    ContainerBundle = "container.bundle",
    /// The creator is about to call the runtime.
    CreatorBegun = "creator.begun",
    /// The creator has a container that nobody knows of.
    CreatorMade = "creator.made",
    /// The supervisor has a container that the daemon does not know.
    SupervisorCreated = "supervisor.created",
    /// The daemon knows of a container, and has not written it down.
    ContainerMade = "container.made",
    /// The record of a container is written.
    ContainerRecorded = "container.recorded",
    /// The answer to CreateContainer is about to go.
    ContainerAnswered = "container.answered",
    /// The supervisor is asked to let a container run.
    SupervisorStart = "supervisor.start",
    /// A container runs, and its caller was not told.
    ContainerStarted = "container.started",
    /// New limits are pending.
    UpdatePending = "update.pending",
    /// New limits are in force, and the record says that they are pending.
    UpdateApplied = "update.applied",
    /// The supervisor is asked for a new log file.
    SupervisorReopen = "supervisor.reopen",
    /// The log file is a new one, and the caller was not told.
    LogReopened = "log.reopened",
    /// A command was asked for.
    SupervisorExec = "supervisor.exec",
    /// A command runs.
    ExecBegun = "exec.begun",
    /// A container got its stop signal.
    StopSignalled = "stop.signalled",
    /// A container has ended, and its end is not written down.
    SupervisorExited = "supervisor.exited",
    /// The end of a container is written down, and nobody was told.
    SupervisorExitRecorded = "supervisor.exit-recorded",
    /// A stopped container's caller was not told.
    ContainerStopped = "container.stopped",
    /// The supervisor has forgotten a container.
    ContainerForgotten = "container.forgotten",
    /// The snapshots of a container are gone.
    ContainerUnsnapshot = "container.unsnapshot",
    /// Nothing is left of a container, and the caller was not told.
    ContainerRemoved = "container.removed",
    /// The supervisor is asked to end the pod.
    SupervisorShutdown = "supervisor.shutdown",
    /// Nothing runs in a pod that is stopped.
    PodEnded = "pod.ended",
    /// The network of a pod that is stopped or removed is gone.
    PodDisconnected = "pod.disconnected",
    /// A stopped pod's directory at run time is gone, its record says that it runs.
    PodCleared = "pod.cleared",
    /// The record of a pod says that it is stopped.
    PodStopped = "pod.stopped",
    /// The snapshots of a pod's containers are gone.
    PodUnsnapshot = "pod.unsnapshot",
    /// Nothing is left of a pod, and the caller was not told.
    PodRemoved = "pod.removed",
    /// The record of an image is gone, its config is there.
    ImageForgotten = "image.forgotten",
    /// The layers of an image are out of the store, and their files are there.
    ImageCollected = "image.collected",
    /// A record is written under its temporary name.
    RecordWritten = "record.written",
    /// A record is in its place, and its directory is not synced.
    RecordRenamed = "record.renamed",
}

/// The variable that names the file.
pub const VARIABLE: &str = "CRICKET_CRASH_FILE";

/// In front of and behind what may be cut short. Blocks while it holds.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reach(_: Point) -> io::Result<()> {
    Ok(())
}

/// As [`reach`], without blocking.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub async fn pass(_: Point) -> io::Result<()> {
    Ok(())
}

/// What a child needs in its environment to know of the file.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn inherited() -> Option<(&'static str, std::path::PathBuf)> {
    None
}

#[cfg(debug_assertions)]
pub use armed::{inherited, pass, reach};

#[cfg(debug_assertions)]
mod armed {
    use std::fs;
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::{Point, VARIABLE};

    /// How often one who waits looks.
    const GLANCE: Duration = Duration::from_millis(10);

    /// Read once: who clears his environment has asked before.
    fn file() -> Option<&'static Path> {
        static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
        FILE.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from)).as_deref()
    }

    /// See the other build's.
    pub fn inherited() -> Option<(&'static str, PathBuf)> {
        file().map(|file| (VARIABLE, file.to_owned()))
    }

    /// The file by which one is held.
    fn act(point: Point) -> io::Result<Option<PathBuf>> {
        let Some(file) = file() else { return Ok(None) };
        let line = fs::read_to_string(file).unwrap_or_default();
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [name, action, turn] = words[..] else { return Ok(None) };
        if name != point.name() {
            return Ok(None);
        }
        let turn: u32 = turn.parse().unwrap_or(1);
        if turn > 1 {
            // Renamed into its place, for whoever reads it meanwhile.
            let next = file.with_extension("next");
            fs::write(&next, format!("{name} {action} {}", turn - 1))?;
            return fs::rename(&next, file).map(|()| None);
        }
        // Of two who are here at once one acts.
        if fs::remove_file(file).is_err() {
            return Ok(None);
        }
        match action {
            "kill" => Ok(kill_process(getpid(), Signal::KILL).map(|()| None)?),
            "fail" => Err(rustix::io::Errno::IO.into()),
            "full" => Err(rustix::io::Errno::NOSPC.into()),
            "panic" => panic!("at {name}, as a test wishes"),
            "hold" => {
                let held = file.with_extension("held");
                fs::write(&held, name)?;
                Ok(Some(held))
            }
            other => panic!("{VARIABLE}: there is no action {other:?}"),
        }
    }

    /// See the other build's.
    pub fn reach(point: Point) -> io::Result<()> {
        let held = act(point)?;
        while held.as_ref().is_some_and(|held| held.exists()) {
            std::thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// See the other build's.
    pub async fn pass(point: Point) -> io::Result<()> {
        let held = act(point)?;
        while held.as_ref().is_some_and(|held| held.exists()) {
            tokio::time::sleep(GLANCE).await;
        }
        Ok(())
    }
}
