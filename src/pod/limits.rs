//! Limits of a cgroup that is there already: what a request asks for, as contents of cgroup v2 files.
//!
//! A new container gets its limits from the runtime library, by the same arithmetic. Writing here is for changes, and
//! for pods' own cgroups. A file that is missing (its controller is not ours here) is told, never passed over in
//! silence.

use std::fs;
use std::io;
use std::path::Path;

use crate::pod::error::{PodError, quoted};
use crate::proto::cri;

/// Range of `cpu.weight`, and of the shares that CRI speaks of.
const WEIGHT: (u64, u64) = (1, 10_000);
const SHARES: (u64, u64) = (2, 262_144);
/// The kernel's period of a quota, in microseconds.
const DEFAULT_PERIOD: i64 = 100_000;
/// No limit, in the kernel's word.
const UNLIMITED: &str = "max";

/// A file of a cgroup and what is written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) file: String,
    pub(crate) value: String,
}

/// What `change` asks for, over what was asked for before: a zero or an empty text leaves things as they are.
pub(crate) fn merge(
    before: &cri::LinuxContainerResources,
    change: &cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    let number = |before: i64, change: i64| if change == 0 { before } else { change };
    let text = |before: &String, change: &String| if change.is_empty() { before.clone() } else { change.clone() };
    let mut huge_pages = before.hugepage_limits.clone();
    huge_pages.retain(|known| !change.hugepage_limits.iter().any(|new| new.page_size == known.page_size));
    huge_pages.extend(change.hugepage_limits.iter().cloned());
    let mut unified = before.unified.clone();
    unified.extend(change.unified.iter().map(|(key, value)| (key.clone(), value.clone())));
    cri::LinuxContainerResources {
        cpu_period: number(before.cpu_period, change.cpu_period),
        cpu_quota: number(before.cpu_quota, change.cpu_quota),
        cpu_shares: number(before.cpu_shares, change.cpu_shares),
        memory_limit_in_bytes: number(before.memory_limit_in_bytes, change.memory_limit_in_bytes),
        oom_score_adj: number(before.oom_score_adj, change.oom_score_adj),
        cpuset_cpus: text(&before.cpuset_cpus, &change.cpuset_cpus),
        cpuset_mems: text(&before.cpuset_mems, &change.cpuset_mems),
        hugepage_limits: huge_pages,
        unified,
        memory_swap_limit_in_bytes: number(before.memory_swap_limit_in_bytes, change.memory_swap_limit_in_bytes),
    }
}

/// What a pod as a whole may use: its containers' share and what running it costs beside. A limit that the containers
/// have not got is none: what running costs limits nobody.
pub(crate) fn whole(
    containers: &cri::LinuxContainerResources,
    overhead: &cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    let sum = |own: i64, more: i64| if own > 0 { own.saturating_add(more.max(0)) } else { own };
    let period =
        |wish: &cri::LinuxContainerResources| if wish.cpu_period > 0 { wish.cpu_period } else { DEFAULT_PERIOD };
    // As much processor time in the containers' period as the overhead has in its own.
    let quota = i128::from(overhead.cpu_quota.max(0)) * i128::from(period(containers)) / i128::from(period(overhead));
    let both = match overhead.memory_swap_limit_in_bytes {
        swap if swap > 0 => swap,
        _ => overhead.memory_limit_in_bytes,
    };
    cri::LinuxContainerResources {
        cpu_quota: sum(containers.cpu_quota, i64::try_from(quota).unwrap_or(i64::MAX)),
        cpu_shares: sum(containers.cpu_shares, overhead.cpu_shares),
        memory_limit_in_bytes: sum(containers.memory_limit_in_bytes, overhead.memory_limit_in_bytes),
        memory_swap_limit_in_bytes: sum(containers.memory_swap_limit_in_bytes, both),
        ..containers.clone()
    }
}

/// Refuses what no kernel would take, before anything is changed.
pub(crate) fn check(wish: &cri::LinuxContainerResources) -> Result<(), PodError> {
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_'));
    if let Some(key) = wish.unified.keys().find(|key| !plain(key) || !key.contains('.') || key.starts_with("cgroup.")) {
        return Err(PodError::invalid(format!("{:?} is no limit of a cgroup", quoted(key))));
    }
    if let Some(limit) = wish.hugepage_limits.iter().find(|limit| !plain(&limit.page_size)) {
        return Err(PodError::invalid(format!("{:?} is no size of a huge page", quoted(&limit.page_size))));
    }
    let set = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-'));
    if let Some(bad) = [&wish.cpuset_cpus, &wish.cpuset_mems].into_iter().find(|text| !set(text)) {
        return Err(PodError::invalid(format!("{:?} is no set of processors or memory nodes", quoted(bad))));
    }
    let (memory, swap) = (wish.memory_limit_in_bytes, wish.memory_swap_limit_in_bytes);
    if memory > 0 && swap > 0 && swap < memory {
        let message = format!("the limit of memory and swap, {swap}, is below that of memory, {memory}");
        return Err(PodError::invalid(message));
    }
    Ok(())
}

/// The files, in the order in which they are written.
pub(crate) fn settings(wish: &cri::LinuxContainerResources) -> Vec<Setting> {
    let mut list = Vec::new();
    let mut put = |file: &str, value: String| list.push(Setting { file: file.to_owned(), value });
    if wish.cpu_shares > 0 {
        put("cpu.weight", weight(wish.cpu_shares.unsigned_abs()).to_string());
    }
    if wish.cpu_quota != 0 || wish.cpu_period > 0 {
        let period = if wish.cpu_period > 0 { wish.cpu_period } else { DEFAULT_PERIOD };
        let quota = if wish.cpu_quota > 0 { wish.cpu_quota.to_string() } else { UNLIMITED.to_owned() };
        put("cpu.max", format!("{quota} {period}"));
    }
    for (file, set) in [("cpuset.cpus", &wish.cpuset_cpus), ("cpuset.mems", &wish.cpuset_mems)] {
        if !set.is_empty() {
            put(file, set.clone());
        }
    }
    if let Some(swap) = swap(wish) {
        put("memory.swap.max", swap);
    }
    if wish.memory_limit_in_bytes != 0 {
        put("memory.max", bytes(wish.memory_limit_in_bytes));
    }
    for limit in &wish.hugepage_limits {
        for file in ["max", "rsvd.max"] {
            put(&format!("hugetlb.{}.{file}", limit.page_size), limit.limit.to_string());
        }
    }
    let mut unified: Vec<_> = wish.unified.iter().collect();
    unified.sort();
    unified.into_iter().for_each(|(file, value)| put(file, value.clone()));
    list
}

fn bytes(limit: i64) -> String {
    if limit < 0 { UNLIMITED.to_owned() } else { limit.to_string() }
}

/// CRI's limit is of memory and swap together, the kernel's of swap alone.
fn swap(wish: &cri::LinuxContainerResources) -> Option<String> {
    match (wish.memory_limit_in_bytes, wish.memory_swap_limit_in_bytes) {
        (_, 0) => None,
        (_, both) if both < 0 => Some(UNLIMITED.to_owned()),
        (memory, both) if memory > 0 => Some((both - memory).max(0).to_string()),
        _ => None,
    }
}

/// As the runtime library has it, so that a changed container is like one made anew.
fn weight(shares: u64) -> u64 {
    if shares <= SHARES.0 {
        return WEIGHT.0;
    }
    if shares >= SHARES.1 {
        return WEIGHT.1;
    }
    // Fits three points: 2 is 1, 1024 is 100, 262144 is 10000.
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10_f64.powf(exponent).ceil() as u64).clamp(WEIGHT.0, WEIGHT.1)
}

/// Writes them; answers a sentence for each that this cgroup has no file for. An error: the kernel refused one, and
/// those before it are in force. Blocking.
pub(crate) fn apply(cgroup: &Path, settings: &[Setting]) -> Result<Vec<String>, PodError> {
    let mut missing = Vec::new();
    for Setting { file, value } in settings {
        match write(&cgroup.join(file), value) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && cgroup.is_dir() => {
                missing.push(format!("{file} is not enforced: the cgroup {} has no such file", cgroup.display()));
            }
            Err(error) => {
                let path = cgroup.join(file);
                return Err(PodError::io(format_args!("write {:?} to {}", quoted(value), path.display()), &error));
            }
        }
    }
    Ok(missing)
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    use std::io::Write;
    // Never made: in a cgroup a file is there or it is not.
    fs::OpenOptions::new().write(true).truncate(true).open(path)?.write_all(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> cri::LinuxContainerResources {
        cri::LinuxContainerResources {
            cpu_period: 50_000,
            cpu_quota: 25_000,
            cpu_shares: 1024,
            memory_limit_in_bytes: 64 << 20,
            memory_swap_limit_in_bytes: 80 << 20,
            cpuset_cpus: "0-1".into(),
            hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
            unified: [("pids.max".to_owned(), "20".to_owned())].into(),
            ..Default::default()
        }
    }

    fn pairs(wish: &cri::LinuxContainerResources) -> Vec<(String, String)> {
        settings(wish).into_iter().map(|s| (s.file, s.value)).collect()
    }

    #[test]
    fn a_wish_becomes_the_kernels_files() {
        let expected = [
            ("cpu.weight", "100"),
            ("cpu.max", "25000 50000"),
            ("cpuset.cpus", "0-1"),
            ("memory.swap.max", "16777216"),
            ("memory.max", "67108864"),
            ("hugetlb.2MB.max", "4194304"),
            ("hugetlb.2MB.rsvd.max", "4194304"),
            ("pids.max", "20"),
        ];
        assert_eq!(pairs(&wish()), expected.map(|(file, value)| (file.to_owned(), value.to_owned())));
        assert_eq!(pairs(&cri::LinuxContainerResources::default()), []);
        let unlimited = cri::LinuxContainerResources { cpu_quota: -1, memory_limit_in_bytes: -1, ..Default::default() };
        let expected = [("cpu.max", "max 100000"), ("memory.max", "max")];
        assert_eq!(pairs(&unlimited), expected.map(|(file, value)| (file.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_pods_limits_are_its_containers_and_its_overhead() {
        let overhead = cri::LinuxContainerResources {
            cpu_quota: 10_000,
            cpu_shares: 24,
            memory_limit_in_bytes: 16 << 20,
            ..Default::default()
        };
        let sum = whole(&wish(), &overhead);
        assert_eq!((sum.cpu_quota, sum.cpu_period, sum.cpu_shares), (30_000, 50_000, 1048), "a tenth of a processor");
        assert_eq!((sum.memory_limit_in_bytes, sum.memory_swap_limit_in_bytes), (80 << 20, 96 << 20));
        assert_eq!(pairs(&whole(&cri::LinuxContainerResources::default(), &overhead)), [], "nothing is limited");
        assert_eq!(whole(&wish(), &Default::default()), wish());
    }

    #[test]
    fn no_swap_at_all_is_written_as_zero() {
        let wish = cri::LinuxContainerResources { memory_swap_limit_in_bytes: 64 << 20, ..wish() };
        assert!(pairs(&wish).contains(&("memory.swap.max".to_owned(), "0".to_owned())));
    }

    #[test]
    fn shares_become_weights_between_their_ends() {
        for (shares, expected) in [(1, 1), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn a_change_leaves_what_it_does_not_name() {
        let change = cri::LinuxContainerResources {
            memory_limit_in_bytes: 128 << 20,
            memory_swap_limit_in_bytes: 128 << 20,
            unified: [("pids.max".to_owned(), "30".to_owned()), ("memory.low".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        let merged = merge(&wish(), &change);
        assert_eq!((merged.cpu_quota, merged.cpuset_cpus.as_str()), (25_000, "0-1"));
        assert_eq!((merged.memory_limit_in_bytes, merged.unified["pids.max"].as_str()), (128 << 20, "30"));
        assert_eq!((merged.unified.len(), merged.hugepage_limits.len()), (2, 1));
    }

    #[test]
    fn what_leads_out_of_the_cgroup_is_refused() {
        for key in ["../memory.max", "memory", "cgroup.procs", "cgroup.kill", "a/b.c", ""] {
            let wish = cri::LinuxContainerResources {
                unified: [(key.to_owned(), "1".to_owned())].into(),
                ..Default::default()
            };
            assert!(check(&wish).is_err(), "{key}");
        }
        assert!(check(&cri::LinuxContainerResources { cpuset_cpus: "0\n1".into(), ..Default::default() }).is_err());
        assert!(check(&cri::LinuxContainerResources { memory_swap_limit_in_bytes: 1, ..wish() }).is_err());
        assert!(check(&wish()).is_ok());
    }

    #[test]
    fn a_file_that_is_missing_is_told_and_never_made() {
        let dir = std::env::temp_dir().join(format!("cricket-limits-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("made");
        fs::write(dir.join("memory.max"), "max\n").expect("written");
        let missing = apply(&dir, &settings(&wish())).expect("applied");
        assert_eq!(fs::read_to_string(dir.join("memory.max")).expect("read"), (64 << 20).to_string());
        assert_eq!(missing.len(), 7, "{missing:?}");
        assert!(!dir.join("cpu.max").exists());
        fs::remove_dir_all(&dir).expect("removed");
        assert!(apply(&dir, &settings(&wish())).is_err(), "the cgroup is gone");
    }
}
