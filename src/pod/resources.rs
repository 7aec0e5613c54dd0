//! Limits: from CRI's resources to the specification's. What this machine cannot enforce is left out and told.

use std::path::{Path, PathBuf};

use crate::pod::cgroup;
use crate::pod::error::PodError;
use crate::pod::spec::oci;
use crate::proto::cri;
use crate::rootless::Cgroups;

/// The pod's cgroup as an absolute path from the cgroup file system's root; none where there is none for us. A parent
/// that the client names is meant as the client sees it, from the top of the node's.
pub(crate) fn pod_cgroup(cgroups: &Cgroups, parent: &str, pod_id: &str) -> Result<Option<PathBuf>, PodError> {
    let named = (!parent.is_empty()).then(|| checked_parent(parent)).transpose()?;
    let Some(root) = &cgroups.root else { return Ok(None) };
    Ok(Some(named.unwrap_or_else(|| cgroup::path(root).join(cgroup::OWN_PARENT).join(pod_id))))
}

/// Refused where it is no path, also on a machine that has no use for it: a wish is right or wrong by itself.
fn checked_parent(parent: &str) -> Result<PathBuf, PodError> {
    let parent = crate::pod::paths::on_node("the cgroup parent", &format!("/{}", expand_slice(parent)))?;
    match parent.parent() {
        Some(_) => Ok(parent),
        None => Err(PodError::invalid("the cgroup parent is the root of all")),
    }
}

/// `a-b.slice` is `a.slice/a-b.slice` in the file system.
fn expand_slice(parent: &str) -> String {
    let Some(stem) = parent.strip_suffix(".slice").filter(|s| !s.contains('/') && !s.is_empty() && *s != "-") else {
        return parent.trim_start_matches('/').to_owned();
    };
    let mut path = String::new();
    for (end, _) in stem.match_indices('-').filter(|(at, _)| *at > 0) {
        path.push_str(&format!("{}.slice/", &stem[..end]));
    }
    path + parent
}

/// The container's cgroup: its last part is the id that cAdvisor looks for.
pub(crate) fn container_cgroup(pod: &Path, container_id: &str) -> PathBuf {
    let slice = pod.extension().is_some_and(|e| e == "slice");
    pod.join(if slice { format!("cri-cricket-{container_id}.scope") } else { container_id.to_owned() })
}

/// The limits that can be set, and a sentence for each that cannot.
pub(crate) fn resolve(
    wish: &cri::LinuxContainerResources,
    cgroups: &Cgroups,
) -> (Option<oci::LinuxResources>, Vec<String>) {
    let mut lost = Vec::new();
    let mut has = |controller: &str, limit: &str, asked: bool| {
        let there = cgroups.root.is_some() && cgroups.controllers.iter().any(|c| c == controller);
        if asked && !there {
            lost.push(format!("{limit} is not enforced: the cgroup controller {controller} is not ours"));
        }
        asked && there
    };
    let mut resources = oci::LinuxResources::default();
    resources.set_devices(None);
    let mut any = false;
    let asks_cpu = wish.cpu_shares > 0 || wish.cpu_quota > 0 || wish.cpu_period > 0;
    let asks_set = !wish.cpuset_cpus.is_empty() || !wish.cpuset_mems.is_empty();
    let (cpu, cpuset) = (has("cpu", "the cpu limit", asks_cpu), has("cpuset", "the cpu set", asks_set));
    if cpu || cpuset {
        resources.set_cpu(Some(cpu_limits(wish, cpu, cpuset)));
        any = true;
    }
    if has("memory", "the memory limit", wish.memory_limit_in_bytes > 0) {
        let mut memory = oci::LinuxMemory::default();
        let swap = Some(wish.memory_swap_limit_in_bytes).filter(|s| *s > 0);
        memory.set_limit(Some(wish.memory_limit_in_bytes)).set_swap(swap);
        resources.set_memory(Some(memory));
        any = true;
    }
    let pages: Vec<_> = wish.hugepage_limits.iter().filter(|l| l.limit > 0 || has_hugetlb(cgroups)).collect();
    if has("hugetlb", "the huge page limit", !pages.is_empty()) {
        resources.set_hugepage_limits(Some(pages.into_iter().map(huge_pages).collect()));
        any = true;
    }
    let mut unified = wish.unified.clone();
    let (memory, both) = (wish.memory_limit_in_bytes, wish.memory_swap_limit_in_bytes);
    if memory > 0 && memory == both && cgroups.controllers.iter().any(|c| c == "memory") {
        // No swap at all: the runtime library takes the difference, a zero, for no wish.
        unified.entry("memory.swap.max".to_owned()).or_insert_with(|| "0".to_owned());
    }
    unified.retain(|key, _| {
        let controller = key.split('.').next().unwrap_or_default();
        controller == "cgroup" || has(controller, key, true)
    });
    if !unified.is_empty() {
        resources.set_unified(Some(unified));
        any = true;
    }
    (any.then_some(resources), lost)
}

fn has_hugetlb(cgroups: &Cgroups) -> bool {
    cgroups.controllers.iter().any(|c| c == "hugetlb")
}

fn cpu_limits(wish: &cri::LinuxContainerResources, cpu: bool, cpuset: bool) -> oci::LinuxCpu {
    let positive = |value: i64| u64::try_from(value).ok().filter(|v| cpu && *v > 0);
    let text = |value: &String| Some(value.clone()).filter(|v| cpuset && !v.is_empty());
    let mut limits = oci::LinuxCpu::default();
    limits
        .set_shares(positive(wish.cpu_shares))
        .set_period(positive(wish.cpu_period))
        .set_quota(Some(wish.cpu_quota).filter(|q| cpu && *q != 0))
        .set_cpus(text(&wish.cpuset_cpus))
        .set_mems(text(&wish.cpuset_mems));
    limits
}

fn huge_pages(limit: &cri::HugepageLimit) -> oci::LinuxHugepageLimit {
    let mut huge = oci::LinuxHugepageLimit::default();
    huge.set_page_size(limit.page_size.clone()).set_limit(i64::try_from(limit.limit).unwrap_or(i64::MAX));
    huge
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroups(controllers: &[&str]) -> Cgroups {
        Cgroups {
            root: Some("/sys/fs/cgroup/user.slice".into()),
            controllers: controllers.iter().map(|c| (*c).to_owned()).collect(),
            missing: Vec::new(),
        }
    }

    #[test]
    fn cgroups_are_absolute_and_below_what_is_ours() {
        let table = [
            ("", "/user.slice/cricket/ID"),
            ("/kubepods/pod1", "/kubepods/pod1"),
            ("kubepods", "/kubepods"),
            ("a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice"),
        ];
        for (parent, expected) in table {
            let got = pod_cgroup(&cgroups(&[]), parent, "ID").expect("a path").expect("there");
            assert_eq!(got, PathBuf::from(expected), "{parent}");
        }
        for bad in ["../../x", "/", "/../../", "/kubepods/../../x"] {
            for machine in [cgroups(&[]), Cgroups::default()] {
                assert!(pod_cgroup(&machine, bad, "ID").is_err(), "{bad}");
            }
        }
        assert_eq!(pod_cgroup(&Cgroups::default(), "/kubepods", "ID").expect("fine"), None);
    }

    #[test]
    fn the_containers_cgroup_ends_with_its_id() {
        assert_eq!(container_cgroup(Path::new("/kubepods/pod1"), "ID"), PathBuf::from("/kubepods/pod1/ID"));
        let scope = container_cgroup(Path::new("/a.slice"), "ID");
        assert_eq!(scope, PathBuf::from("/a.slice/cri-cricket-ID.scope"));
    }

    #[test]
    fn a_limit_without_its_controller_is_left_out_and_told() {
        let wish = cri::LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 20,
            unified: [("pids.max".to_owned(), "10".to_owned())].into(),
            ..Default::default()
        };
        let (limits, lost) = resolve(&wish, &cgroups(&["cpu"]));
        let limits = limits.expect("some");
        assert_eq!(limits.cpu().as_ref().expect("cpu").shares(), Some(512));
        assert!(limits.memory().is_none() && limits.unified().is_none());
        assert_eq!(lost.len(), 2, "{lost:?}");
        let no_swap = cri::LinuxContainerResources { memory_swap_limit_in_bytes: 1 << 20, ..wish };
        let limits = resolve(&no_swap, &cgroups(&["memory"])).0.expect("some");
        assert_eq!(limits.unified().as_ref().expect("one")["memory.swap.max"], "0");
        assert_eq!(resolve(&cri::LinuxContainerResources::default(), &cgroups(&[])), (None, Vec::new()));
    }
}
