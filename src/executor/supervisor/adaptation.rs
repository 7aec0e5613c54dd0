//! What this machine and this pod make of a container's specification: limits that nothing here enforces are taken out
//! and named, and the PID namespace is the one that the request means.

use std::path::PathBuf;

use super::fault::{Fault, Result};
use super::runtime::{Order, oci};
use super::sources::Moved;
use super::user_namespace::UserNamespace;

/// Where a container is that has no cgroup (see `cgroup::stand_in`).
const STAND_IN_CGROUP: &str = "/";

/// Adapts the specification. Answers what is not enforced.
pub fn adapt(spec: &mut oci::Spec, order: &Order<'_>) -> Result<Vec<String>> {
    let linux = spec.linux_mut().as_mut().ok_or_else(|| Fault::invalid("the container's spec has no linux section"))?;
    let not_enforced = adapt_limits(linux, order);
    adapt_pid_namespace(linux, order)?;
    adapt_user_namespace(linux, order);
    move_sources(spec, order);
    if let Some(process) = spec.process_mut() {
        // Set by the creator on itself, within what may be set.
        process.set_oom_score_adj(None);
    }
    Ok(not_enforced)
}

fn adapt_limits(linux: &mut oci::Linux, order: &Order<'_>) -> Vec<String> {
    let has = |name: &str| order.controllers.iter().flatten().any(|controller| controller == name) && order.limited;
    let mut missing = Vec::new();
    if let Some(resources) = linux.resources_mut() {
        if resources.memory().is_some() && !has("memory") {
            missing.extend(memory_limits(resources));
            resources.set_memory(None);
        }
        if resources.cpu().is_some() {
            missing.extend(cpu_limits(resources, has("cpu"), has("cpuset")));
        }
        if resources.pids().is_some() && !has("pids") {
            missing.push("the limit of processes: the pids controller is not delegated".to_owned());
            resources.set_pids(None);
        }
        if resources.block_io().is_some() && !has("io") {
            missing.push("block device limits: the io controller is not delegated".to_owned());
            resources.set_block_io(None);
        }
        if !has("hugetlb") {
            let limits = resources.hugepage_limits().iter().flatten();
            // Kubelets send a limit of nothing of each size where a container asks for none.
            if limits.into_iter().any(|pages| pages.limit() > 0) {
                missing.push("the limit of huge pages: the hugetlb controller is not delegated".to_owned());
            }
            resources.set_hugepage_limits(None);
        }
    }
    if !order.limited {
        if linux.resources().as_ref().and_then(|r| r.unified().as_ref()).is_some_and(|u| !u.is_empty()) {
            missing.push("cgroup v2 settings: no cgroup v2 is delegated".to_owned());
        }
        linux.set_resources(None);
        linux.set_cgroups_path(Some(PathBuf::from(STAND_IN_CGROUP)));
    }
    missing
}

fn memory_limits(resources: &oci::LinuxResources) -> Option<String> {
    let limit = resources.memory().as_ref()?.limit().filter(|&limit| limit > 0)?;
    Some(format!("the memory limit of {limit} bytes: the memory controller is not delegated"))
}

fn cpu_limits(resources: &mut oci::LinuxResources, cpu: bool, cpuset: bool) -> Vec<String> {
    let mut missing = Vec::new();
    let Some(limits) = resources.cpu_mut() else { return missing };
    if !cpuset && (limits.cpus().is_some() || limits.mems().is_some()) {
        missing.push("the set of processors: the cpuset controller is not delegated".to_owned());
        limits.set_cpus(None);
        limits.set_mems(None);
    }
    if !cpu && *limits != oci::LinuxCpu::default() {
        if limits.quota().is_some_and(|quota| quota > 0) || limits.shares().is_some() {
            missing.push("the share of processor time: the cpu controller is not delegated".to_owned());
        }
        resources.set_cpu(None);
    }
    missing
}

/// The pod has made it, with its ids: the runtime only joins.
fn adapt_user_namespace(linux: &mut oci::Linux, order: &Order<'_>) {
    let path = order.user_namespace.map(UserNamespace::path);
    for namespace in linux.namespaces_mut().iter_mut().flatten() {
        if namespace.typ() == oci::LinuxNamespaceType::User {
            namespace.set_path(path.clone());
        }
    }
    linux.set_uid_mappings(None).set_gid_mappings(None);
}

fn move_sources(spec: &mut oci::Spec, order: &Order<'_>) {
    let Some(mounts) = spec.mounts_mut() else { return };
    for Moved { number, place, .. } in order.moved {
        if let Some(mount) = mounts.get_mut(*number) {
            mount.set_source(Some(place.clone()));
        }
    }
    for mount in mounts {
        mount.set_uid_mappings(None).set_gid_mappings(None);
    }
}

fn adapt_pid_namespace(linux: &mut oci::Linux, order: &Order<'_>) -> Result<()> {
    let namespaces = linux.namespaces_mut().get_or_insert_default();
    let wanted_path = order.pid_namespace.clone();
    let found = namespaces.iter().find(|namespace| namespace.typ() == oci::LinuxNamespaceType::Pid);
    if found.map(|namespace| namespace.path().clone()) == order.own_pid_namespace.then(|| wanted_path.clone()) {
        return Ok(());
    }
    namespaces.retain(|namespace| namespace.typ() != oci::LinuxNamespaceType::Pid);
    if order.own_pid_namespace {
        let mut namespace = oci::LinuxNamespaceBuilder::default().typ(oci::LinuxNamespaceType::Pid);
        if let Some(path) = wanted_path {
            namespace = namespace.path(path);
        }
        namespaces.push(namespace.build().map_err(Fault::because("cannot describe the PID namespace"))?);
    }
    Ok(())
}
