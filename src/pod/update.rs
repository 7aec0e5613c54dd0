//! Other limits for what runs already. Each function is one piece of work of the pod's task.
//!
//! The record goes first: it says that a change is `pending`, then the kernel is told, then the record says that it is
//! done. A daemon that starts meanwhile finds what is pending and finishes it. What the kernel refuses leaves record
//! and limits as they were.

use std::path::PathBuf;
use std::sync::Arc;

use crate::pod::context::{Context, blocking, reach};
use crate::pod::error::PodError;
use crate::pod::record::{ContainerRecord, PodRecord};
use crate::pod::{cgroup, limits, resources};
use crate::proto::cri::{self, LinuxContainerResources};
use crate::store;
use crate::sys::crash::Point;

/// What cannot be changed in a process that runs already.
const SCORE_STAYS: &str =
    "the oom_score_adj of a running container stays what it was: it is set when the container is made";

fn resources_of(record: &ContainerRecord) -> LinuxContainerResources {
    record.config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default()
}

/// Changes a container's limits; the record that is answered is durable.
pub(crate) async fn container(
    context: Arc<Context>,
    pod: Arc<PodRecord>,
    record: Arc<ContainerRecord>,
    change: LinuxContainerResources,
) -> Result<ContainerRecord, PodError> {
    let before = resources_of(&record);
    let wish = limits::merge(&before, &change);
    limits::check(&wish)?;
    let directory = pod.cgroup.as_ref().map(|_| cgroup::directory(&record.cgroup));
    blocking(move || {
        let path = context.layout.container_record(&record.pod, &record.id);
        store::write(&path, &ContainerRecord { pending: Some(wish.clone()), ..(*record).clone() })?;
        reach(Point::UpdatePending)?;
        match carry_out(&context, &record, directory, &before, &wish) {
            Ok(done) => {
                reach(Point::UpdateApplied)?;
                store::write(&path, &done)?;
                Ok(done)
            }
            Err(error) => {
                store::write(&path, &*record)?;
                Err(error)
            }
        }
    })
    .await
}

fn carry_out(
    context: &Context,
    record: &ContainerRecord,
    directory: Option<PathBuf>,
    before: &LinuxContainerResources,
    wish: &LinuxContainerResources,
) -> Result<ContainerRecord, PodError> {
    let cgroups = &context.node.cgroups;
    let (_, old) = resources::resolve(before, cgroups);
    let (_, mut lost) = resources::resolve(wish, cgroups);
    if let Some(directory) = directory {
        let missing = limits::apply(&directory, &enforceable(wish, &cgroups.controllers)).inspect_err(|_| {
            // Those that were written before the one that the kernel refused.
            let _ = limits::apply(&directory, &enforceable(before, &cgroups.controllers));
        })?;
        lost.extend(missing);
    }
    if wish.oom_score_adj != before.oom_score_adj {
        lost.push(SCORE_STAYS.to_owned());
    }
    for limit in &lost {
        tracing::warn!(container = %record.id, "{limit}");
    }
    let mut done = ContainerRecord { pending: None, ..record.clone() };
    done.config.linux.get_or_insert_default().resources = Some(wish.clone());
    // What the creation could not do besides limits still holds.
    done.not_enforced.retain(|known| !old.contains(known) && !lost.contains(known) && known != SCORE_STAYS);
    done.not_enforced.extend(lost);
    Ok(done)
}

/// Settings of controllers that are ours; `resources::resolve` tells of the others.
fn enforceable(wish: &LinuxContainerResources, controllers: &[String]) -> Vec<limits::Setting> {
    let mut settings = limits::settings(wish);
    settings.retain(|setting| controllers.iter().any(|c| setting.file.split('.').next() == Some(c)));
    settings
}

/// Finishes at start what a daemon that ended had begun.
pub(crate) fn finish(context: &Context, pod: &PodRecord, record: ContainerRecord) -> ContainerRecord {
    let Some(wish) = record.pending.clone() else { return record };
    let directory = pod.cgroup.as_ref().map(|_| cgroup::directory(&record.cgroup));
    let done = carry_out(context, &record, directory, &resources_of(&record), &wish).unwrap_or_else(|error| {
        tracing::warn!(container = %record.id, %error, "a change of limits that was under way is given up");
        ContainerRecord { pending: None, ..record.clone() }
    });
    let path = context.layout.container_record(&record.pod, &record.id);
    if let Err(error) = store::write(&path, &done) {
        tracing::warn!(container = %record.id, %error, "a change of limits was not written down");
    }
    done
}

/// Changes what a pod as a whole may use. The cgroup of a client that named it is the client's to limit (a kubelet has
/// done so before it tells); one of ours is limited here.
pub(crate) async fn pod(
    context: Arc<Context>,
    record: Arc<PodRecord>,
    overhead: Option<LinuxContainerResources>,
    wish: Option<LinuxContainerResources>,
) -> Result<PodRecord, PodError> {
    let linux = record.config.linux.clone().unwrap_or_default();
    let merged = |before: &Option<LinuxContainerResources>, change: Option<LinuxContainerResources>| match change {
        Some(change) => Some(limits::merge(before.as_ref().unwrap_or(&Default::default()), &change)),
        None => before.clone(),
    };
    let (overhead, wish) = (merged(&linux.overhead, overhead), merged(&linux.resources, wish));
    for resources in [&overhead, &wish].into_iter().flatten() {
        limits::check(resources)?;
    }
    let mut changed = (*record).clone();
    changed.config.linux = Some(cri::LinuxPodSandboxConfig { overhead, resources: wish, ..linux });
    blocking(move || {
        let path = context.layout.pod_record(&record.id);
        store::write(&path, &changed)?;
        limit_pod(&context, &changed).inspect_err(|_| drop(store::write(&path, &*record)))?;
        Ok(changed)
    })
    .await
}

/// Limits the pod's cgroup to what its record says, if it is ours, and says what is not enforced. Blocking.
pub(crate) fn limit_pod(context: &Context, pod: &PodRecord) -> Result<(), PodError> {
    let cgroups = &context.node.cgroups;
    let Some(linux) = &pod.config.linux else { return Ok(()) };
    let Some(containers) = &linux.resources else { return Ok(()) };
    let wish = limits::whole(containers, &linux.overhead.clone().unwrap_or_default());
    let mut lost = resources::resolve(&wish, cgroups).1;
    if let Some(cgroup) = pod.cgroup.as_ref().filter(|_| linux.cgroup_parent.is_empty()) {
        lost.extend(limits::apply(&cgroup::directory(cgroup), &enforceable(&wish, &cgroups.controllers))?);
    }
    for limit in &lost {
        match cgroups.root {
            Some(_) => tracing::warn!(pod = %pod.id, "{limit}"),
            // The daemon has said at its start that none is enforced; a kubelet asks for some with every pod.
            None => tracing::debug!(pod = %pod.id, "{limit}"),
        }
    }
    Ok(())
}
