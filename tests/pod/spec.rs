//! An OCI specification as the daemon would write it, for a container of the tests.

use std::path::Path;

use cricket::proto::supervisor::NamespaceMode;
use serde_json::json;

use super::Container;

const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

pub fn of(container: &Container, shm: &Path) -> String {
    let mut namespaces = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    if container.pid == NamespaceMode::Container {
        namespaces.push(json!({"type": "pid"}));
    }
    let proc = if container.pid == NamespaceMode::Node {
        json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind", "nosuid", "nodev", "noexec"]})
    } else {
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]})
    };
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": container.tty,
            "user": {"uid": 1000, "gid": 1001, "additionalGids": [1001, 1002], "umask": 18},
            "args": container.command,
            "env": ["PATH=/usr/bin:/bin", "HOME=/", "FOO=bar"],
            "cwd": container.cwd,
            "capabilities": {"bounding": CAPABILITIES, "effective": [], "permitted": [], "inheritable": [], "ambient": []},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1023}]
        },
        "root": {"path": "rootfs", "readonly": false},
        "mounts": [
            proc,
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            {"destination": "/dev/shm", "type": "bind", "source": shm, "options": ["rbind", "nosuid", "nodev", "noexec"]}
        ],
        "linux": {
            "resources": {"memory": {"limit": 67108864}, "cpu": {"shares": 512}},
            "cgroupsPath": if container.cgroup.is_empty() { "/" } else { &container.cgroup },
            "namespaces": namespaces,
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [
                    {"names": ["kexec_load", "reboot", "swapon"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
                    {"names": ["symlink", "symlinkat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}
                ]
            }
        }
    });
    if container.no_new_privileges {
        spec["process"]["noNewPrivileges"] = json!(true);
    }
    if let Some(source) = &container.shared {
        let mount = json!({"destination": "/shared", "type": "bind", "source": source, "options": ["rbind"]});
        spec["mounts"].as_array_mut().expect("a list").push(mount);
        spec["linux"]["rootfsPropagation"] = json!("shared");
    }
    spec.to_string()
}
