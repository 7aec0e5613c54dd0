//! Figures in CRI's words. What is unknown is left unset; a message without any figure is left out.

use crate::pod::stats::network;
use crate::pod::stats::reading::{Limit, Pressure, Reading, Stall};
use crate::pod::stats::{ContainerFigures, PodFigures};
use crate::pod::view::{ContainerView, PodView};
use crate::proto::cri;

/// A memory limit as good as none: more than any machine has.
const UNLIMITED_BYTES: u64 = 1 << 60;

fn value(value: Option<u64>) -> Option<cri::UInt64Value> {
    value.map(|value| cri::UInt64Value { value })
}

fn psi(pressure: Option<Pressure>) -> Option<cri::PsiStats> {
    let data = |stall: Stall| {
        let [avg10, avg60, avg300] = stall.averages;
        Some(cri::PsiData { total: stall.total, avg10, avg60, avg300 })
    };
    pressure.map(|pressure| cri::PsiStats { some: data(pressure.some), full: data(pressure.full) })
}

fn cpu(reading: &Reading, rate: Option<u64>) -> Option<cri::CpuUsage> {
    reading.cpu.usage?;
    Some(cri::CpuUsage {
        timestamp: reading.at,
        usage_core_nano_seconds: value(reading.cpu.usage),
        usage_nano_cores: value(rate),
        psi: psi(reading.cpu_pressure),
    })
}

fn memory(reading: &Reading) -> Option<cri::MemoryUsage> {
    let memory = &reading.memory;
    memory.working_set?;
    let limit = memory.limit.value().filter(|limit| *limit < UNLIMITED_BYTES);
    let available = limit.map(|limit| limit.saturating_sub(memory.working_set.unwrap_or_default()));
    Some(cri::MemoryUsage {
        timestamp: reading.at,
        working_set_bytes: value(memory.working_set),
        available_bytes: value(available),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.anonymous),
        page_faults: value(memory.faults),
        major_page_faults: value(memory.major_faults),
        psi: psi(reading.memory_pressure),
    })
}

fn swap(reading: &Reading) -> Option<cri::SwapUsage> {
    let used = reading.swap?;
    let available = match reading.swap_limit {
        Limit::At(limit) => Some(limit.saturating_sub(used)),
        Limit::None | Limit::Unknown => None,
    };
    Some(cri::SwapUsage {
        timestamp: reading.at,
        swap_available_bytes: value(available),
        swap_usage_bytes: value(Some(used)),
    })
}

fn io(reading: &Reading) -> Option<cri::IoUsage> {
    reading.io_pressure?;
    Some(cri::IoUsage { timestamp: reading.at, psi: psi(reading.io_pressure) })
}

fn container_attributes(view: &ContainerView) -> cri::ContainerAttributes {
    let config = &view.record.config;
    cri::ContainerAttributes {
        id: view.record.id.to_string(),
        metadata: config.metadata.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    }
}

fn pod_attributes(view: &PodView) -> cri::PodSandboxAttributes {
    let config = &view.record.config;
    cri::PodSandboxAttributes {
        id: view.record.id.to_string(),
        metadata: config.metadata.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    }
}

/// Of a container.
pub(crate) fn container(figures: &ContainerFigures) -> cri::ContainerStats {
    let reading = figures.reading.as_ref();
    cri::ContainerStats {
        attributes: Some(container_attributes(&figures.view)),
        cpu: reading.and_then(|reading| cpu(reading, figures.rate)),
        memory: reading.and_then(memory),
        writable_layer: figures.layer.clone(),
        swap: reading.and_then(swap),
        io: reading.and_then(io),
    }
}

/// Of a pod with its containers.
pub(crate) fn pod(figures: &PodFigures) -> cri::PodSandboxStats {
    let reading = figures.reading.as_ref();
    let process = |reading: &Reading| {
        let count = value(reading.processes);
        count.map(|count| cri::ProcessUsage { timestamp: reading.at, process_count: Some(count) })
    };
    let linux = cri::LinuxPodSandboxStats {
        cpu: reading.and_then(|reading| cpu(reading, figures.rate)),
        memory: reading.and_then(memory),
        network: network::usage(&figures.interfaces, figures.at),
        process: reading.and_then(process),
        containers: figures.containers.iter().map(container).collect(),
        io: reading.and_then(io),
    };
    cri::PodSandboxStats { attributes: Some(pod_attributes(&figures.view)), linux: Some(linux), windows: None }
}
