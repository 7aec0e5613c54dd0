//! Figures in the words of cAdvisor's metrics. Values are whole numbers, as CRI has them: times are in full seconds.
//!
//! The labels of a pod's own metrics have no container's name, as the field has it, and the pod's id as name.

use std::fs;
use std::path::Path;

use crate::pod::stats::network::{Direction, Interface};
use crate::pod::stats::reading::{Pressure, Reading};
use crate::pod::stats::{ContainerFigures, PodFigures};
use crate::proto::cri;
use crate::proto::cri::MetricType::{self, Counter, Gauge};

const NANOSECONDS_OF_SECOND: u64 = 1_000_000_000;
/// Most descriptors of one process that are looked at.
const DESCRIPTORS_LIMIT: usize = 65_536;
/// Lines of /proc/PID/limits that are told, and their names as labels.
const ULIMITS: [(&str, &str); 3] = [
    ("Max open files", "max_open_files"),
    ("Max processes", "max_processes"),
    ("Max locked memory", "max_locked_memory"),
];

/// The file system that containers write to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Space {
    bytes: u64,
    inodes: u64,
    inodes_free: u64,
}

impl Space {
    /// Of the file system that holds `path`; zeros where it cannot be asked.
    pub(crate) fn of(path: &Path) -> Self {
        let Ok(stat) = rustix::fs::statvfs(path) else { return Self::default() };
        Self { bytes: stat.f_blocks.saturating_mul(stat.f_frsize), inodes: stat.f_files, inodes_free: stat.f_favail }
    }
}

/// Metrics that bear the same labels.
struct Sheet {
    base: [String; 6],
    at: i64,
    list: Vec<cri::Metric>,
}

impl Sheet {
    fn put(&mut self, kind: MetricType, name: &str, extra: &[&str], value: Option<u64>) {
        let Some(value) = value else { return };
        self.list.push(cri::Metric {
            name: name.to_owned(),
            timestamp: self.at,
            metric_type: kind.into(),
            label_values: self.base.iter().cloned().chain(extra.iter().map(|label| (*label).to_owned())).collect(),
            value: Some(cri::UInt64Value { value }),
        });
    }

    fn gauge(&mut self, name: &str, value: Option<u64>) {
        self.put(Gauge, name, &[], value);
    }

    fn counter(&mut self, name: &str, value: Option<u64>) {
        self.put(Counter, name, &[], value);
    }

    fn seconds(&mut self, name: &str, nanoseconds: Option<u64>) {
        self.counter(name, nanoseconds.map(|n| n / NANOSECONDS_OF_SECOND));
    }
}

/// Of a pod and its containers. Reads files of /proc.
pub(crate) fn of_pod(figures: &PodFigures, space: Space) -> cri::PodSandboxMetrics {
    let id = figures.view.record.id.to_string();
    let cgroup = figures.view.record.cgroup.as_ref().map(|path| path.to_string_lossy().into_owned());
    let base = base(figures, "", cgroup.unwrap_or_default(), "", &id);
    let mut sheet = Sheet { base, at: figures.at, list: Vec::new() };
    if let Some(reading) = &figures.reading {
        usage(&mut sheet, reading);
    }
    figures.interfaces.iter().for_each(|interface| traffic(&mut sheet, interface));
    sheet.gauge("container_last_seen", seconds_of(figures.at));
    sheet.gauge("container_start_time_seconds", seconds_of(figures.view.record.created_at));
    cri::PodSandboxMetrics {
        pod_sandbox_id: id,
        metrics: sheet.list,
        container_metrics: figures.containers.iter().map(|c| of_container(figures, c, space)).collect(),
    }
}

fn base(pod: &PodFigures, container: &str, cgroup: String, image: &str, name: &str) -> [String; 6] {
    let metadata = pod.view.record.config.metadata.clone().unwrap_or_default();
    [container.to_owned(), cgroup, image.to_owned(), name.to_owned(), metadata.namespace, metadata.name]
}

fn of_container(pod: &PodFigures, figures: &ContainerFigures, space: Space) -> cri::ContainerMetrics {
    let record = &figures.view.record;
    let name = record.config.metadata.as_ref().map_or("", |m| m.name.as_str());
    let cgroup = match pod.view.record.cgroup {
        Some(_) => record.cgroup.to_string_lossy().into_owned(),
        None => String::new(),
    };
    let base = base(pod, name, cgroup, &record.image_name, record.id.as_str());
    let mut sheet = Sheet { base, at: pod.at, list: Vec::new() };
    if let Some(reading) = &figures.reading {
        usage(&mut sheet, reading);
        processes(&mut sheet, reading, &figures.pids, record.pid);
    }
    if let Some(layer) = &figures.layer {
        let device = layer.fs_id.as_ref().map_or("", |id| id.mountpoint.as_str());
        let value = |value: &Option<cri::UInt64Value>| value.as_ref().map(|v| v.value);
        sheet.put(Gauge, "container_fs_usage_bytes", &[device], value(&layer.used_bytes));
        for (name, value) in [
            ("container_fs_limit_bytes", space.bytes),
            ("container_fs_inodes_total", space.inodes),
            ("container_fs_inodes_free", space.inodes_free),
        ] {
            sheet.put(Gauge, name, &[device], Some(value).filter(|_| space.bytes > 0));
        }
    }
    specification(&mut sheet, &record.config);
    sheet.gauge("container_last_seen", seconds_of(pod.at));
    sheet.gauge("container_start_time_seconds", seconds_of(figures.view.started_at).filter(|at| *at > 0));
    cri::ContainerMetrics { container_id: record.id.to_string(), metrics: sheet.list }
}

fn seconds_of(time: i64) -> Option<u64> {
    Some(u64::try_from(time).ok()? / NANOSECONDS_OF_SECOND)
}

fn usage(sheet: &mut Sheet, reading: &Reading) {
    let cpu = &reading.cpu;
    sheet.put(Counter, "container_cpu_usage_seconds_total", &["total"], cpu.usage.map(|n| n / NANOSECONDS_OF_SECOND));
    sheet.seconds("container_cpu_user_seconds_total", cpu.user);
    sheet.seconds("container_cpu_system_seconds_total", cpu.system);
    sheet.counter("container_cpu_cfs_periods_total", cpu.periods);
    sheet.counter("container_cpu_cfs_throttled_periods_total", cpu.throttled_periods);
    sheet.seconds("container_cpu_cfs_throttled_seconds_total", cpu.throttled);
    memory(sheet, reading);
    for device in &reading.devices {
        transfers(sheet, device);
    }
    pressure(sheet, reading.cpu_pressure, "cpu");
    pressure(sheet, reading.memory_pressure, "memory");
    pressure(sheet, reading.io_pressure, "io");
}

fn memory(sheet: &mut Sheet, reading: &Reading) {
    let memory = &reading.memory;
    for (name, value) in [
        ("container_memory_cache", memory.file),
        ("container_memory_rss", memory.anonymous),
        ("container_memory_kernel_usage", memory.kernel),
        ("container_memory_mapped_file", memory.mapped_file),
        ("container_memory_swap", reading.swap),
        ("container_memory_usage_bytes", memory.usage),
        ("container_memory_max_usage_bytes", memory.peak),
        ("container_memory_working_set_bytes", memory.working_set),
        ("container_memory_total_active_file_bytes", memory.active_file),
        ("container_memory_total_inactive_file_bytes", memory.inactive_file),
    ] {
        sheet.gauge(name, value);
    }
    sheet.counter("container_memory_failcnt", memory.limit_hits);
    sheet.counter("container_oom_events_total", memory.oom_kills);
    for (kind, value) in [("pgfault", memory.faults), ("pgmajfault", memory.major_faults)] {
        sheet.put(Counter, "container_memory_failures_total", &[kind, "container"], value);
    }
    for pages in &reading.huge_pages {
        sheet.put(Gauge, "container_hugetlb_usage_bytes", &[pages.size.as_str()], Some(pages.usage));
    }
}

fn transfers(sheet: &mut Sheet, device: &crate::pod::stats::reading::Device) {
    let name = format!("{}:{}", device.major, device.minor);
    let (major, minor) = (device.major.to_string(), device.minor.to_string());
    for (operation, value) in [("Read", device.read_bytes), ("Write", device.written_bytes)] {
        let labels = [name.as_str(), &major, &minor, operation];
        sheet.put(Counter, "container_blkio_device_usage_total", &labels, Some(value));
    }
    for (metric, value) in [
        ("container_fs_reads_total", device.reads),
        ("container_fs_reads_bytes_total", device.read_bytes),
        ("container_fs_writes_total", device.writes),
        ("container_fs_writes_bytes_total", device.written_bytes),
    ] {
        sheet.put(Counter, metric, &[&name], Some(value));
    }
}

fn pressure(sheet: &mut Sheet, pressure: Option<Pressure>, resource: &str) {
    for (kind, stall) in [("waiting", pressure.map(|p| p.some)), ("stalled", pressure.map(|p| p.full))] {
        let name = format!("container_pressure_{resource}_{kind}_seconds_total");
        sheet.seconds(&name, stall.map(|stall| stall.total));
    }
}

fn traffic(sheet: &mut Sheet, interface: &Interface) {
    for (way, counters) in [("receive", interface.received), ("transmit", interface.sent)] {
        let Direction { bytes, packets, errors, dropped } = counters;
        for (what, value) in [("bytes", bytes), ("packets", packets), ("packets_dropped", dropped), ("errors", errors)]
        {
            let name = format!("container_network_{way}_{what}_total");
            sheet.put(Counter, &name, &[&interface.name], Some(value));
        }
    }
}

fn specification(sheet: &mut Sheet, config: &cri::ContainerConfig) {
    let asked = config.linux.as_ref().and_then(|l| l.resources.clone()).unwrap_or_default();
    for (name, value) in [
        ("container_spec_cpu_period", asked.cpu_period),
        ("container_spec_cpu_quota", asked.cpu_quota),
        ("container_spec_cpu_shares", asked.cpu_shares),
    ] {
        sheet.gauge(name, u64::try_from(value).ok().filter(|value| *value > 0));
    }
    let or_none = |value: i64| Some(u64::try_from(value).unwrap_or_default());
    sheet.gauge("container_spec_memory_limit_bytes", or_none(asked.memory_limit_in_bytes));
    sheet.gauge("container_spec_memory_swap_limit_bytes", or_none(asked.memory_swap_limit_in_bytes));
    let spared = asked.unified.get("memory.low").and_then(|text| text.parse().ok());
    sheet.gauge("container_spec_memory_reservation_limit_bytes", Some(spared.unwrap_or_default()));
}

fn processes(sheet: &mut Sheet, reading: &Reading, pids: &[i32], first: i32) {
    sheet.gauge("container_processes", reading.processes);
    sheet.gauge("container_threads", reading.threads);
    let known = !matches!(reading.threads_limit, crate::pod::stats::reading::Limit::Unknown);
    sheet.gauge("container_threads_max", known.then(|| reading.threads_limit.value().unwrap_or_default()));
    let (mut descriptors, mut sockets) = (0, 0);
    for (open, of_them_sockets) in pids.iter().map(|pid| count_descriptors(*pid)) {
        descriptors += open;
        sockets += of_them_sockets;
    }
    sheet.gauge("container_file_descriptors", Some(descriptors));
    sheet.gauge("container_sockets", Some(sockets));
    for (name, value) in ulimits(&fs::read_to_string(format!("/proc/{first}/limits")).unwrap_or_default()) {
        sheet.put(Gauge, "container_ulimits_soft", &[name], Some(value));
    }
}

/// How many are open, and how many of them are sockets.
fn count_descriptors(pid: i32) -> (u64, u64) {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return (0, 0) };
    let mut count = (0, 0);
    for entry in entries.flatten().take(DESCRIPTORS_LIMIT) {
        count.0 += 1;
        let socket = fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
        count.1 += u64::from(socket);
    }
    count
}

/// Those that have a number; CRI's values cannot say "unlimited".
fn ulimits(text: &str) -> Vec<(&'static str, u64)> {
    let value = |title: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(title))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    ULIMITS.iter().filter_map(|(title, name)| Some((*name, value(title)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::stats::descriptors;
    use crate::pod::stats::reading::{Device, HugePages, Limit};

    fn sheet() -> Sheet {
        Sheet { base: ["c", "/k/c", "i", "id", "ns", "p"].map(str::to_owned), at: 7, list: Vec::new() }
    }

    #[test]
    fn each_metric_has_its_descriptor_and_as_many_labels() {
        let mut sheet = sheet();
        let mut reading = Reading {
            at: 1,
            devices: vec![Device::default()],
            huge_pages: vec![HugePages::default()],
            cpu_pressure: Some(Pressure::default()),
            memory_pressure: Some(Pressure::default()),
            io_pressure: Some(Pressure::default()),
            processes: Some(1),
            threads: Some(1),
            threads_limit: Limit::None,
            swap: Some(1),
            ..Default::default()
        };
        reading.cpu.usage = Some(2_500_000_000);
        reading.memory.faults = Some(3);
        usage(&mut sheet, &reading);
        traffic(&mut sheet, &Interface { name: "eth0".into(), ..Default::default() });
        processes(&mut sheet, &reading, &[std::process::id() as i32], std::process::id() as i32);
        specification(&mut sheet, &cri::ContainerConfig::default());
        let descriptors = descriptors::all();
        for metric in &sheet.list {
            let descriptor = descriptors.iter().find(|d| d.name == metric.name);
            let descriptor = descriptor.unwrap_or_else(|| panic!("{} is not described", metric.name));
            assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{}", metric.name);
        }
        let cpu = sheet.list.iter().find(|m| m.name == "container_cpu_usage_seconds_total").expect("told");
        assert_eq!((cpu.value, cpu.metric_type), (Some(cri::UInt64Value { value: 2 }), Counter as i32));
        assert!(sheet.list.iter().any(|m| m.name == "container_threads_max"));
        let own = sheet.list.iter().find(|m| m.name == "container_file_descriptors").expect("told");
        assert!(own.value.as_ref().is_some_and(|v| v.value > 2));
    }

    #[test]
    fn a_figure_that_is_unknown_is_not_told_as_zero() {
        let mut sheet = sheet();
        usage(&mut sheet, &Reading::default());
        assert_eq!(sheet.list, []);
    }

    #[test]
    fn a_limit_without_a_number_is_left_out() {
        let text = "Limit   Soft Limit  Hard Limit  Units\nMax open files  1024  4096  files\nMax processes  unlimited  unlimited  processes\n";
        assert_eq!(ulimits(text), [("max_open_files", 1024)]);
    }
}
