//! The metrics that ListPodSandboxMetrics tells, by the names that dashboards of Kubernetes know from cAdvisor.
//!
//! Every name is described, also those that this kernel or this machine gives no figure for: a metric without a figure
//! is not sent, never sent as zero.

use crate::proto::cri;

/// Labels of every metric, in their order.
pub(crate) const BASE_LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];
const NONE: &[&str] = &[];

/// Name, help, and the labels behind the base ones.
type Row = (&'static str, &'static str, &'static [&'static str]);

const PROCESSORS: &[Row] = &[
    ("container_cpu_usage_seconds_total", "Processor time used, in seconds.", &["cpu"]),
    ("container_cpu_user_seconds_total", "Processor time used in user mode, in seconds.", NONE),
    ("container_cpu_system_seconds_total", "Processor time used in kernel mode, in seconds.", NONE),
    ("container_cpu_cfs_periods_total", "Periods in which a quota was in force.", NONE),
    ("container_cpu_cfs_throttled_periods_total", "Periods in which the quota was used up.", NONE),
    ("container_cpu_cfs_throttled_seconds_total", "Time spent held back by the quota, in seconds.", NONE),
    ("container_cpu_load_average_10s", "Load over ten seconds, in thousandths.", NONE),
    ("container_cpu_load_d_average_10s", "Load of tasks in uninterruptible sleep over ten seconds.", NONE),
];

const MEMORY: &[Row] = &[
    ("container_memory_cache", "Page cache, in bytes.", NONE),
    ("container_memory_rss", "Anonymous memory, in bytes.", NONE),
    ("container_memory_kernel_usage", "Memory of the kernel on its behalf, in bytes.", NONE),
    ("container_memory_mapped_file", "Mapped files, in bytes.", NONE),
    ("container_memory_swap", "Swap in use, in bytes.", NONE),
    ("container_memory_failcnt", "Times that the memory limit was reached.", NONE),
    ("container_memory_usage_bytes", "All memory in use, cache included, in bytes.", NONE),
    ("container_memory_max_usage_bytes", "The most memory ever in use, in bytes.", NONE),
    ("container_memory_working_set_bytes", "Memory that could not be given back at once, in bytes.", NONE),
    ("container_memory_total_active_file_bytes", "Active page cache, in bytes.", NONE),
    ("container_memory_total_inactive_file_bytes", "Inactive page cache, in bytes.", NONE),
    ("container_memory_failures_total", "Page faults.", &["failure_type", "scope"]),
    ("container_memory_migrate", "Whether memory moves with the set of nodes.", NONE),
    ("container_oom_events_total", "Processes killed because memory ran out.", NONE),
    ("container_hugetlb_usage_bytes", "Huge pages in use, in bytes.", &["pagesize"]),
    ("container_hugetlb_max_usage_bytes", "The most huge pages ever in use, in bytes.", &["pagesize"]),
];

const DISKS: &[Row] = &[
    (
        "container_blkio_device_usage_total",
        "Bytes moved to and from a device.",
        &["device", "major", "minor", "operation"],
    ),
    ("container_fs_inodes_free", "Inodes free where the container writes.", DEVICE),
    ("container_fs_inodes_total", "Inodes in all where the container writes.", DEVICE),
    ("container_fs_limit_bytes", "Bytes in all where the container writes.", DEVICE),
    ("container_fs_usage_bytes", "Bytes that the container wrote into its root.", DEVICE),
    ("container_fs_reads_total", "Reads completed.", DEVICE),
    ("container_fs_reads_bytes_total", "Bytes read.", DEVICE),
    ("container_fs_reads_merged_total", "Reads merged.", DEVICE),
    ("container_fs_sector_reads_total", "Sectors read.", DEVICE),
    ("container_fs_read_seconds_total", "Time spent reading, in seconds.", DEVICE),
    ("container_fs_writes_total", "Writes completed.", DEVICE),
    ("container_fs_writes_bytes_total", "Bytes written.", DEVICE),
    ("container_fs_writes_merged_total", "Writes merged.", DEVICE),
    ("container_fs_sector_writes_total", "Sectors written.", DEVICE),
    ("container_fs_write_seconds_total", "Time spent writing, in seconds.", DEVICE),
    ("container_fs_io_current", "Transfers under way.", DEVICE),
    ("container_fs_io_time_seconds_total", "Time with transfers under way, in seconds.", DEVICE),
    ("container_fs_io_time_weighted_seconds_total", "The same, times their number, in seconds.", DEVICE),
];

const NETWORK: &[Row] = &[
    ("container_network_receive_bytes_total", "Bytes received.", INTERFACE),
    ("container_network_receive_packets_total", "Packets received.", INTERFACE),
    ("container_network_receive_packets_dropped_total", "Packets dropped on receiving.", INTERFACE),
    ("container_network_receive_errors_total", "Errors on receiving.", INTERFACE),
    ("container_network_transmit_bytes_total", "Bytes sent.", INTERFACE),
    ("container_network_transmit_packets_total", "Packets sent.", INTERFACE),
    ("container_network_transmit_packets_dropped_total", "Packets dropped on sending.", INTERFACE),
    ("container_network_transmit_errors_total", "Errors on sending.", INTERFACE),
];

const PROCESSES: &[Row] = &[
    ("container_processes", "Processes.", NONE),
    ("container_threads", "Threads.", NONE),
    ("container_threads_max", "Most threads that there may be; 0: no limit.", NONE),
    ("container_tasks_state", "Processes in a state.", &["state"]),
    ("container_file_descriptors", "Open descriptors.", NONE),
    ("container_sockets", "Open sockets.", NONE),
    ("container_ulimits_soft", "Soft limits of the first process.", &["ulimit"]),
    ("container_last_seen", "When it was last seen, in seconds since the Unix epoch.", NONE),
    ("container_start_time_seconds", "When it was started, in seconds since the Unix epoch.", NONE),
];

const SPECIFICATION: &[Row] = &[
    ("container_spec_cpu_period", "Period of the quota that was asked for, in microseconds.", NONE),
    ("container_spec_cpu_quota", "Quota that was asked for, in microseconds a period.", NONE),
    ("container_spec_cpu_shares", "Share of processors that was asked for.", NONE),
    ("container_spec_memory_limit_bytes", "Memory limit that was asked for, in bytes; 0: none.", NONE),
    ("container_spec_memory_reservation_limit_bytes", "Memory that is spared first, in bytes; 0: none.", NONE),
    ("container_spec_memory_swap_limit_bytes", "Swap limit that was asked for, in bytes; 0: none.", NONE),
];

const PRESSURE: &[Row] = &[
    ("container_pressure_cpu_waiting_seconds_total", "Time in which some waited for a processor, in seconds.", NONE),
    ("container_pressure_cpu_stalled_seconds_total", "Time in which all waited for a processor, in seconds.", NONE),
    ("container_pressure_memory_waiting_seconds_total", "Time in which some waited for memory, in seconds.", NONE),
    ("container_pressure_memory_stalled_seconds_total", "Time in which all waited for memory, in seconds.", NONE),
    ("container_pressure_io_waiting_seconds_total", "Time in which some waited for a device, in seconds.", NONE),
    ("container_pressure_io_stalled_seconds_total", "Time in which all waited for a device, in seconds.", NONE),
];

fn rows() -> impl Iterator<Item = &'static Row> {
    [PROCESSORS, MEMORY, DISKS, NETWORK, PROCESSES, SPECIFICATION, PRESSURE].into_iter().flatten()
}

/// For ListMetricDescriptors.
pub(crate) fn all() -> Vec<cri::MetricDescriptor> {
    let describe = |(name, help, extra): &Row| cri::MetricDescriptor {
        name: (*name).to_owned(),
        help: (*help).to_owned(),
        label_keys: BASE_LABELS.iter().chain(*extra).map(|label| (*label).to_owned()).collect(),
    };
    rows().map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_name_is_described_once_and_with_words() {
        let all = all();
        let names: HashSet<_> = all.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|d| d.name.starts_with("container_") && !d.help.is_empty()));
        assert!(all.iter().all(|d| d.label_keys[..BASE_LABELS.len()] == BASE_LABELS));
    }
}
