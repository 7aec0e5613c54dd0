//! The pod's process (`cricket supervise`): one thread, no tokio, an epoll loop. It *is* the sandbox: it lives in the
//! pod's namespaces, is the parent of every container's first process, owns their streams and writes their exit
//! records.
//!
//! ```text
//! template ── fork ──> supervisor ── fork ──> creator ── libcontainer ──> container's init (the supervisor's child)
//! (template)           (sandbox,     │        (creation, runtime)
//!                       pod, reactor)├─ fork ──> exec'd process (joining)
//!                                    └─ fork ──> PID 1 of a shared PID namespace (pod_init)
//! ```
//!
//! The life of a container, as the supervisor sees it:
//!
//! ```text
//! CreateContainer     creator reports      StartContainer        init reaped
//!   ──> CREATING ────────────────> CREATED ─────────────> RUNNING ───────────> EXITED ── RemoveContainer ──> (gone)
//!          │ refused or late: everything undone, (gone)       └─ execve refused: EXITED with StartError
//! ```
//!
//! What dies with a supervisor, and what guards that: each init has SIGKILL as its parent-death signal, set after its
//! last change of credentials and checked against a descriptor of the supervisor, so also a container that was never
//! started goes. A shared PID namespace has an init of ours with the same signal. The signal is lost when a container's
//! *first* process executes a set-user-id program without `no_new_privs`, and the children of an init in the node's PID
//! namespace are nobody's: for both the daemon has records (`crate::executor::leftovers`), and the pod's cgroup where
//! there is one.

mod adaptation;
mod cgroup;
mod compaction;
mod confinement;
mod connection;
mod console;
mod container;
mod creation;
mod creator;
mod credentials;
mod dev_mount;
mod dial;
mod exec;
mod exit;
mod fault;
mod filters;
mod joining;
mod log;
mod network;
mod pod;
mod pod_init;
mod preflight;
mod process_settings;
mod reach;
mod reactor;
mod requests;
mod runtime;
mod runtime_notes;
mod sandbox;
mod seccomp;
mod shutdown;
mod signals;
mod sources;
mod start;
mod sysctl;
pub mod template;
mod user_namespace;
mod volumes;
