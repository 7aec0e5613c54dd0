//! Memory of processes: the proportional share (PSS) where the kernel lets us see it, else what is resident.

/// In KiB.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Each page divided by how many have it; `None` for a process that we may not look into.
    pub pss: Option<u64>,
    /// Of that, what no file is behind.
    pub pss_anonymous: Option<u64>,
    /// All pages.
    pub rss: u64,
}

/// Of a process.
pub fn of(pid: i32) -> Memory {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    Memory {
        pss: field(&rollup, "Pss:"),
        pss_anonymous: field(&rollup, "Pss_Anon:"),
        rss: field(&status, "VmRSS:").unwrap_or_default(),
    }
}

/// The mean of several.
pub fn mean(pids: &[i32]) -> Memory {
    let all: Vec<Memory> = pids.iter().map(|pid| of(*pid)).collect();
    let count = all.len().max(1) as u64;
    let mean = |part: fn(&Memory) -> Option<u64>| {
        all.iter().map(part).sum::<Option<u64>>().filter(|_| !all.is_empty()).map(|sum| sum / count)
    };
    Memory {
        pss: mean(|memory| memory.pss),
        pss_anonymous: mean(|memory| memory.pss_anonymous),
        rss: mean(|memory| Some(memory.rss)).unwrap_or_default(),
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
