//! Namespaces, ids and mounts: what a node and its containers are made of.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::trial::{self, Step};
use super::{Finding, NetworkTrial, NodeKind, number, program};
use crate::rootless::subordinate::{self, IDS_WANTED, IdKind, SubordinateError, User};

/// Users' and groups'.
pub fn subordinate_ids() -> Vec<Finding> {
    let user = User::current();
    [IdKind::User, IdKind::Group].into_iter().map(|kind| ids_of(&user, kind)).collect()
}

fn ids_of(user: &User, kind: IdKind) -> Finding {
    let name = match kind {
        IdKind::User => "subordinate uids",
        IdKind::Group => "subordinate gids",
    };
    match subordinate::map(user, kind) {
        Err(SubordinateError::None { mend, .. }) => Finding::fail(name, format!("none in {}", kind.file()), mend),
        Err(error) => Finding::fail(name, error.to_string(), format!("sudo editor {}", kind.file())),
        Ok(lines) => match lines.iter().skip(1).map(|line| line.count).sum::<u32>() {
            count if count >= IDS_WANTED => Finding::ok(name, format!("{count} in {}", kind.file())),
            count => Finding::warn(
                name,
                format!("{count}: images with ids above that cannot be unpacked"),
                subordinate::proposal(user),
            ),
        },
    }
}

/// newuidmap and newgidmap: there, and with the right to do what they do.
pub fn mappers() -> Vec<Finding> {
    [IdKind::User, IdKind::Group].into_iter().map(|kind| mapper(kind.mapper())).collect()
}

fn mapper(name: &'static str) -> Finding {
    let install = "sudo apt install uidmap (Debian, Ubuntu), sudo dnf install shadow-utils (Fedora)";
    let Some(path) = program(name) else {
        return Finding::fail(name, "not installed: subordinate ids cannot be mapped", install);
    };
    let setuid = fs::metadata(&path).is_ok_and(|meta| meta.uid() == 0 && meta.mode() & libc::S_ISUID != 0);
    let capable = rustix::fs::getxattr(&path, "security.capability", &mut [0u8; 64]).is_ok();
    if setuid || capable {
        return Finding::ok(name, path.display().to_string());
    }
    let mend = format!("sudo chmod u+s {}", path.display());
    Finding::fail(name, format!("{} is neither setuid root nor has capabilities", path.display()), mend)
}

/// Where somebody else made the user namespace: how many ids it has, and whether groups can be set.
pub fn found_ids() -> Vec<Finding> {
    let ids = [("uids", "/proc/self/uid_map"), ("gids", "/proc/self/gid_map")];
    ids.into_iter().map(|(name, file)| mapped(name, file)).chain([groups()]).collect()
}

fn groups() -> Finding {
    let setting = fs::read_to_string("/proc/self/setgroups").unwrap_or_default();
    match setting.trim() {
        "deny" => Finding::warn(
            "groups",
            "setgroups is denied in this user namespace: containers have no supplementary groups",
            "make the namespace with newgidmap, which allows it (unshare --map-root-user --map-auto, rootlesskit)",
        ),
        _ => Finding::ok("groups", "containers can be given groups"),
    }
}

fn mapped(name: &str, file: &str) -> Finding {
    let text = fs::read_to_string(file).unwrap_or_default();
    let count: u64 = text.lines().filter_map(|line| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok()).sum();
    match count >= u64::from(IDS_WANTED) {
        true => Finding::ok(name, format!("{count} in this user namespace")),
        false => Finding::warn(
            name,
            format!("only {count} in this user namespace: images with ids above that cannot be unpacked"),
            "map more of them where the namespace is made (unshare --map-auto, rootlesskit with /etc/subuid)",
        ),
    }
}

/// A whole node is made in a child, and what containers need is tried in it.
pub fn tried(root: &Path, kind: NodeKind, network: NetworkTrial<'_>) -> Vec<Finding> {
    match trial::run(root, kind, network) {
        Ok(steps) => steps.into_iter().map(|step| judge(step, kind)).collect(),
        Err(error) => vec![Finding::fail("user namespace", error.to_string(), "see the lines above")],
    }
}

fn judge(step: Step, kind: NodeKind) -> Finding {
    let Some(error) = step.error else { return Finding::ok(step.name, step.meaning) };
    let meaning = format!("{}: {error}", step.lack);
    let mend = match step.name.as_str() {
        "user namespace" | "node namespaces" => why_no_namespaces().unwrap_or_else(|| step.mend.clone()),
        "id mapping" => why_no_mapping().unwrap_or_else(|| step.mend.clone()),
        _ => step.mend.clone(),
    };
    match step.needed && !(kind != NodeKind::Made && step.name == "id mapping") {
        true => Finding::fail(step.name, meaning, mend),
        false => Finding::warn(step.name, meaning, mend),
    }
}

/// The setting that is the likely cause.
fn why_no_namespaces() -> Option<String> {
    let set = |key: &str, value: &str| {
        Some(format!("echo {key}={value} | sudo tee /etc/sysctl.d/90-cricket-userns.conf && sudo sysctl --system"))
    };
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        return set("user.max_user_namespaces", "65536");
    }
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return set("kernel.unprivileged_userns_clone", "1");
    }
    if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return Some(apparmor_profile());
    }
    None
}

/// Ubuntu 23.10 and newer let only programs with a profile have capabilities in a user namespace.
fn apparmor_profile() -> String {
    let binary = fs::read_link("/proc/self/exe")
        .map_or_else(|_| "/usr/local/bin/cricket".into(), |path| path.display().to_string());
    format!(
        "printf 'abi <abi/4.0>,\\nprofile cricket \"{binary}\" flags=(unconfined) {{ userns, }}\\n' | \
         sudo tee /etc/apparmor.d/cricket && sudo apparmor_parser -r /etc/apparmor.d/cricket"
    )
}

fn why_no_mapping() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .any(|line| line.split_ascii_whitespace().eq(["NoNewPrivs:", "1"]))
        .then(|| "this session may not run setuid programs (no_new_privs): start cricket outside of it".to_owned())
}
