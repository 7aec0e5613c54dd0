//! What was read of a container or a pod at one moment. What could not be known is `None`, never zero.

/// Nanoseconds of a microsecond, in which the kernel counts.
pub(crate) const NANOSECONDS_OF_MICROSECOND: u64 = 1_000;

/// How much is read: each file costs some microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// What ContainerStats and PodSandboxStats tell.
    Stats,
    /// What metrics tell besides.
    Metrics,
}

/// See the module. Times in nanoseconds, sizes in bytes; counters since the beginning.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Reading {
    /// Nanoseconds since the Unix epoch.
    pub(crate) at: i64,
    pub(crate) cpu: Cpu,
    pub(crate) memory: Memory,
    pub(crate) swap: Option<u64>,
    pub(crate) swap_limit: Limit,
    pub(crate) processes: Option<u64>,
    pub(crate) threads: Option<u64>,
    pub(crate) threads_limit: Limit,
    pub(crate) devices: Vec<Device>,
    pub(crate) huge_pages: Vec<HugePages>,
    pub(crate) cpu_pressure: Option<Pressure>,
    pub(crate) memory_pressure: Option<Pressure>,
    pub(crate) io_pressure: Option<Pressure>,
}

/// Of processors.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Cpu {
    pub(crate) usage: Option<u64>,
    pub(crate) user: Option<u64>,
    pub(crate) system: Option<u64>,
    pub(crate) periods: Option<u64>,
    pub(crate) throttled_periods: Option<u64>,
    pub(crate) throttled: Option<u64>,
}

/// Of memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Memory {
    pub(crate) usage: Option<u64>,
    pub(crate) peak: Option<u64>,
    pub(crate) working_set: Option<u64>,
    /// Anonymous.
    pub(crate) anonymous: Option<u64>,
    pub(crate) file: Option<u64>,
    pub(crate) active_file: Option<u64>,
    pub(crate) inactive_file: Option<u64>,
    pub(crate) mapped_file: Option<u64>,
    pub(crate) kernel: Option<u64>,
    pub(crate) faults: Option<u64>,
    pub(crate) major_faults: Option<u64>,
    pub(crate) limit: Limit,
    pub(crate) limit_hits: Option<u64>,
    pub(crate) oom_kills: Option<u64>,
}

/// A limit that may not be known, or not be there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Limit {
    /// There is no such file.
    #[default]
    Unknown,
    /// `max`.
    None,
    /// So much.
    At(u64),
}

impl Limit {
    /// The number, where there is one.
    pub(crate) fn value(self) -> Option<u64> {
        match self {
            Self::At(value) => Some(value),
            Self::Unknown | Self::None => None,
        }
    }
}

/// Transfers of a block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
}

/// Of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HugePages {
    /// As in the file's name: `2MB`.
    pub(crate) size: String,
    pub(crate) usage: u64,
}

/// Pressure stall information (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Pressure {
    pub(crate) some: Stall,
    pub(crate) full: Stall,
}

/// One line of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Stall {
    /// Nanoseconds.
    pub(crate) total: u64,
    /// Percent over 10, 60 and 300 seconds.
    pub(crate) averages: [f64; 3],
}

impl Reading {
    /// Adds what another part of the same pod uses.
    pub(crate) fn add(&mut self, other: &Self) {
        let sum = |mine: &mut Option<u64>, theirs: Option<u64>| {
            *mine = match (*mine, theirs) {
                (Some(a), Some(b)) => Some(a.saturating_add(b)),
                (a, b) => a.or(b),
            };
        };
        sum(&mut self.cpu.usage, other.cpu.usage);
        sum(&mut self.cpu.user, other.cpu.user);
        sum(&mut self.cpu.system, other.cpu.system);
        sum(&mut self.memory.working_set, other.memory.working_set);
        sum(&mut self.memory.anonymous, other.memory.anonymous);
        sum(&mut self.memory.faults, other.memory.faults);
        sum(&mut self.memory.major_faults, other.memory.major_faults);
        sum(&mut self.processes, other.processes);
        sum(&mut self.threads, other.threads);
    }
}
