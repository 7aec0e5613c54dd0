//! The host's resolv.conf after it has changed (a laptop in another network): pods that have a copy of it get the new
//! one, in place, unless somebody in the pod has written into it since.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::network::outbound::Resolvers;
use crate::pod::context::Context;
use crate::pod::files;

/// The host's.
const FILE: &str = "/etc/resolv.conf";
/// Whoever writes it writes more than once.
const SETTLE: Duration = Duration::from_millis(100);
/// After inotify was refused, because the user has no more instances or watches.
const RETRY: Duration = Duration::from_secs(60);
/// The thread does nothing that needs more.
const STACK_BYTES: usize = 128 << 10;

/// Starts the thread that follows it; it ends with the daemon.
pub(crate) fn follow(context: &Arc<Context>) {
    let resolvers = context.networks.resolvers();
    let context = Arc::downgrade(context);
    let work = move || {
        let mut known = files::of_the_node(resolvers);
        while let Err(error) = watch(&context, resolvers, &mut known) {
            tracing::warn!(%error, "changes of {FILE} do not reach pods that run: tried again in a minute");
            std::thread::sleep(RETRY);
        }
    };
    let started = std::thread::Builder::new().name("resolver".into()).stack_size(STACK_BYTES).spawn(work);
    if let Err(error) = started {
        tracing::warn!(%error, "changes of {FILE} do not reach pods that run");
    }
}

/// Until the daemon ends. What changed while nobody watched is seen at the start.
fn watch(context: &Weak<Context>, resolvers: Option<Resolvers>, known: &mut String) -> nix::Result<()> {
    loop {
        if context.strong_count() == 0 {
            return Ok(());
        }
        // Anew each time: the link may lead elsewhere now.
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        let flags = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE;
        for directory in directories() {
            inotify.add_watch(&directory, flags | AddWatchFlags::IN_DELETE)?;
        }
        let Some(context) = context.upgrade() else { return Ok(()) };
        // Pods may go on asking at the same address: then it is the way out that asks another resolver.
        context.networks.follow_resolver();
        let now = files::of_the_node(resolvers);
        if now != *known {
            renew(&context, known, &now);
            *known = now;
            continue;
        }
        drop(context);
        while !inotify.read_events()?.iter().any(|event| event.name.as_deref().is_some_and(is_its_name)) {}
        std::thread::sleep(SETTLE);
    }
}

/// Where the name stands, and where the file does that it leads to.
fn directories() -> Vec<PathBuf> {
    let real = fs::canonicalize(FILE).ok();
    let mut found: Vec<PathBuf> =
        [Some(PathBuf::from(FILE)), real].into_iter().flatten().filter_map(|p| Some(p.parent()?.to_owned())).collect();
    found.dedup();
    found
}

fn is_its_name(name: &std::ffi::OsStr) -> bool {
    let real = fs::canonicalize(FILE).ok();
    Path::new(FILE).file_name() == Some(name) || real.as_deref().and_then(Path::file_name) == Some(name)
}

fn renew(context: &Context, old: &str, new: &str) {
    for view in context.table.views().iter().filter(|view| view.ready) {
        if !files::has_the_nodes_resolver(&view.record.config) {
            continue;
        }
        let path = context.layout.pod_state(&view.record.id).join(files::RESOLV_CONF);
        // In place: containers have this very file mounted.
        if fs::read_to_string(&path).is_ok_and(|text| text == old)
            && let Err(error) = fs::write(&path, new)
        {
            tracing::warn!(pod = %view.record.id, %error, "the pod keeps the host's old resolv.conf");
        }
    }
}
