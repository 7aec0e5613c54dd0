//! Statistics of a cgroup v2: its files, and how they are read. Files of a controller that is not there are missing,
//! and what they would say stays unknown. Documentation/admin-guide/cgroup-v2.rst has the formats.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};

use crate::pod::stats::reading::{
    Cpu, Depth, Device, HugePages, Limit, Memory, NANOSECONDS_OF_MICROSECOND, Pressure, Reading, Stall,
};

/// More than any of the files has; what is longer is cut.
const FILE_LIMIT_BYTES: usize = 16 << 10;
/// Most block devices of one cgroup that are told.
const DEVICES_LIMIT: usize = 64;
/// Deepest cgroup below a container's in which its processes are looked for.
const DEPTH_LIMIT: usize = 8;

/// An open cgroup: files are opened beneath its descriptor, which spares the kernel the way there.
struct Cgroup<'a> {
    directory: OwnedFd,
    path: &'a Path,
    buffer: Vec<u8>,
}

impl<'a> Cgroup<'a> {
    fn open(path: &'a Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { directory, path, buffer: vec![0; FILE_LIMIT_BYTES] })
    }

    /// The text of a file; `None`: there is none.
    fn text(&mut self, name: &str) -> Option<&str> {
        let file = openat(&self.directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut filled = 0;
        while filled < self.buffer.len() {
            match rustix::io::read(&file, &mut self.buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        std::str::from_utf8(&self.buffer[..filled]).ok()
    }

    fn number(&mut self, name: &str) -> Option<u64> {
        self.text(name)?.trim().parse().ok()
    }

    fn limit(&mut self, name: &str) -> Limit {
        self.text(name).map_or(Limit::Unknown, limit)
    }

    fn pressure(&mut self, name: &str) -> Option<Pressure> {
        self.text(name).and_then(pressure)
    }
}

/// Reads a cgroup; an error says that it is gone.
pub(crate) fn read(path: &Path, depth: Depth, at: i64) -> io::Result<Reading> {
    let mut cgroup = Cgroup::open(path)?;
    let mut reading = Reading {
        at,
        cpu: cgroup.text("cpu.stat").map(cpu).unwrap_or_default(),
        memory: read_memory(&mut cgroup),
        swap: cgroup.number("memory.swap.current"),
        swap_limit: cgroup.limit("memory.swap.max"),
        cpu_pressure: cgroup.pressure("cpu.pressure"),
        memory_pressure: cgroup.pressure("memory.pressure"),
        io_pressure: cgroup.pressure("io.pressure"),
        ..Default::default()
    };
    if depth == Depth::Metrics {
        read_more(&mut cgroup, &mut reading);
    }
    Ok(reading)
}

fn read_memory(cgroup: &mut Cgroup<'_>) -> Memory {
    let mut memory = cgroup.text("memory.stat").map(memory).unwrap_or_default();
    memory.usage = cgroup.number("memory.current");
    // As kubelets have it: what could not be given back at once.
    memory.working_set = memory.usage.map(|usage| usage.saturating_sub(memory.inactive_file.unwrap_or_default()));
    memory.limit = cgroup.limit("memory.max");
    memory
}

fn read_more(cgroup: &mut Cgroup<'_>, reading: &mut Reading) {
    reading.memory.peak = cgroup.number("memory.peak");
    if let Some(events) = cgroup.text("memory.events") {
        reading.memory.limit_hits = keyed(events, "max");
        reading.memory.oom_kills = keyed(events, "oom_kill");
    }
    reading.threads = cgroup.number("pids.current");
    reading.threads_limit = cgroup.limit("pids.max");
    reading.devices = cgroup.text("io.stat").map(devices).unwrap_or_default();
    for size in huge_page_sizes(cgroup.path) {
        if let Some(usage) = cgroup.number(&format!("hugetlb.{size}.current")) {
            reading.huge_pages.push(HugePages { size, usage });
        }
    }
}

fn huge_page_sizes(cgroup: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(cgroup) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let sizes = names.filter_map(|n| Some(n.strip_prefix("hugetlb.")?.strip_suffix(".current")?.to_owned()));
    // `2MB.rsvd` is what was reserved, which is not in use.
    sizes.filter(|size| !size.contains('.')).collect()
}

/// The processes of a cgroup and of those below it.
pub(crate) fn processes(cgroup: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    collect(cgroup, 0, &mut pids);
    pids
}

fn collect(cgroup: &Path, depth: usize, pids: &mut Vec<i32>) {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    if depth >= DEPTH_LIMIT {
        return;
    }
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), depth + 1, pids);
        }
    }
}

/// The value of a key in a flat keyed file.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn limit(text: &str) -> Limit {
    match text.trim() {
        "max" => Limit::None,
        number => number.parse().map_or(Limit::Unknown, Limit::At),
    }
}

fn cpu(text: &str) -> Cpu {
    let mut cpu = Cpu::default();
    for (key, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        let Ok(value) = value.trim().parse::<u64>() else { continue };
        match key {
            "usage_usec" => cpu.usage = Some(value * NANOSECONDS_OF_MICROSECOND),
            "user_usec" => cpu.user = Some(value * NANOSECONDS_OF_MICROSECOND),
            "system_usec" => cpu.system = Some(value * NANOSECONDS_OF_MICROSECOND),
            "nr_periods" => cpu.periods = Some(value),
            "nr_throttled" => cpu.throttled_periods = Some(value),
            "throttled_usec" => cpu.throttled = Some(value * NANOSECONDS_OF_MICROSECOND),
            _ => {}
        }
    }
    cpu
}

fn memory(text: &str) -> Memory {
    let mut memory = Memory::default();
    for (key, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        let slot = match key {
            "anon" => &mut memory.anonymous,
            "file" => &mut memory.file,
            "active_file" => &mut memory.active_file,
            "inactive_file" => &mut memory.inactive_file,
            "file_mapped" => &mut memory.mapped_file,
            "kernel" => &mut memory.kernel,
            "pgfault" => &mut memory.faults,
            "pgmajfault" => &mut memory.major_faults,
            _ => continue,
        };
        *slot = value.trim().parse().ok();
    }
    memory
}

fn devices(text: &str) -> Vec<Device> {
    text.lines().filter_map(device).take(DEVICES_LIMIT).collect()
}

fn device(line: &str) -> Option<Device> {
    let mut fields = line.split_ascii_whitespace();
    let (major, minor) = fields.next()?.split_once(':')?;
    let mut device = Device { major: major.parse().ok()?, minor: minor.parse().ok()?, ..Default::default() };
    for (key, value) in fields.filter_map(|field| field.split_once('=')) {
        let slot = match key {
            "rbytes" => &mut device.read_bytes,
            "wbytes" => &mut device.written_bytes,
            "rios" => &mut device.reads,
            "wios" => &mut device.writes,
            _ => continue,
        };
        *slot = value.parse().ok()?;
    }
    Some(device)
}

fn pressure(text: &str) -> Option<Pressure> {
    let line = |name: &str| text.lines().find_map(|line| stall(line.strip_prefix(name)?));
    // A kernel before 5.13 has no `full` of processors: there everybody waiting cannot be.
    Some(Pressure { some: line("some ")?, full: line("full ").unwrap_or_default() })
}

fn stall(fields: &str) -> Option<Stall> {
    let mut stall = Stall::default();
    for (key, value) in fields.split_ascii_whitespace().filter_map(|field| field.split_once('=')) {
        match key {
            "avg10" => stall.averages[0] = value.parse().ok()?,
            "avg60" => stall.averages[1] = value.parse().ok()?,
            "avg300" => stall.averages[2] = value.parse().ok()?,
            "total" => stall.total = value.parse::<u64>().ok()? * NANOSECONDS_OF_MICROSECOND,
            _ => {}
        }
    }
    Some(stall)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kernel 6.12 writes them, shortened.
    const FILES: [(&str, &str); 15] = [
        (
            "cpu.stat",
            "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 10\nnr_throttled 3\nthrottled_usec 77\n",
        ),
        (
            "cpu.pressure",
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
        ),
        ("memory.current", "10485760\n"),
        ("memory.max", "max\n"),
        ("memory.peak", "20971520\n"),
        ("memory.events", "low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n"),
        (
            "memory.stat",
            "anon 4194304\nfile 6291456\nkernel 131072\nfile_mapped 4096\ninactive_file 2097152\nactive_file 4194304\npgfault 900\npgmajfault 4\n",
        ),
        (
            "memory.pressure",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        ),
        ("memory.swap.current", "8192\n"),
        ("memory.swap.max", "16384\n"),
        ("pids.current", "9\n"),
        ("pids.max", "100\n"),
        ("io.stat", "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n253:1 rbytes=1\n"),
        ("hugetlb.2MB.current", "2097152\n"),
        ("hugetlb.2MB.rsvd.current", "4194304\n"),
    ];

    fn fixture(name: &str, files: &[(&str, &str)]) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("cricket-cgroup-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("below")).expect("made");
        for (file, text) in files {
            fs::write(dir.join(file), text).expect("written");
        }
        dir
    }

    #[test]
    fn every_file_of_the_kernels_is_understood() {
        let dir = fixture("all", &FILES);
        let reading = read(&dir, Depth::Metrics, 5).expect("read");
        fs::remove_dir_all(&dir).expect("removed");
        assert_eq!((reading.at, reading.cpu.usage, reading.cpu.system), (5, Some(1_500_000_000), Some(500_000_000)));
        assert_eq!((reading.cpu.throttled_periods, reading.cpu.throttled), (Some(3), Some(77_000)));
        let memory = &reading.memory;
        assert_eq!((memory.usage, memory.working_set), (Some(10 << 20), Some(8 << 20)));
        assert_eq!((memory.anonymous, memory.limit, memory.peak), (Some(4 << 20), Limit::None, Some(20 << 20)));
        assert_eq!((memory.limit_hits, memory.oom_kills, memory.major_faults), (Some(12), Some(1), Some(4)));
        assert_eq!((reading.swap, reading.swap_limit), (Some(8192), Limit::At(16384)));
        assert_eq!((reading.threads, reading.threads_limit), (Some(9), Limit::At(100)));
        assert_eq!(reading.devices.len(), 2);
        assert_eq!((reading.devices[0].written_bytes, reading.devices[0].writes), (8192, 2));
        assert_eq!(reading.huge_pages, [HugePages { size: "2MB".into(), usage: 2 << 20 }]);
        let pressure = reading.cpu_pressure.expect("there");
        assert_eq!((pressure.some.total, pressure.some.averages[0]), (1_234_000, 1.5));
        assert_eq!((pressure.full.total, reading.io_pressure), (7_000, None));
    }

    #[test]
    fn without_controllers_only_what_every_cgroup_has_is_known() {
        let dir = fixture("none", &FILES[..2]);
        let reading = read(&dir, Depth::Stats, 5).expect("read");
        fs::remove_dir_all(&dir).expect("removed");
        assert!(reading.cpu.usage.is_some());
        assert_eq!((reading.memory, reading.swap), (Memory::default(), None));
        assert!(read(&dir, Depth::Stats, 5).is_err(), "it is gone");
    }

    #[test]
    fn processes_of_cgroups_below_are_counted() {
        let dir = fixture("procs", &[("cgroup.procs", "1\n2\n"), ("below/cgroup.procs", "3\n")]);
        assert_eq!(processes(&dir), [1, 2, 3]);
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn odd_texts_are_no_figures() {
        assert_eq!(limit("a lot"), Limit::Unknown);
        assert_eq!(device("8:x rbytes=1"), None);
        assert_eq!(pressure(""), None);
        assert_eq!(cpu("usage_usec many\nbad"), Cpu::default());
        assert_eq!(keyed("maximum 3\nmax 4", "max"), Some(4));
    }
}
