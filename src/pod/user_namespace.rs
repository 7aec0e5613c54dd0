//! A pod's own user namespace (`hostUsers: false`): what a request may ask for, and whether the node has the ids.
//!
//! A kubelet gives each such pod a range of the *node's* ids, 65,536 long and beginning at a multiple of 65,536, so
//! that the first of them already needs a node with 131,072 ids. The domain takes one range that begins with the pod's
//! root, the same for users and groups, as kubelets send it.

use std::sync::Arc;

use crate::executor::client::Supervisor;
use crate::image::Owners;
use crate::pod::error::PodError;
use crate::pod::facts::Facts;
use crate::pod::users::ContainerUser;
use crate::proto::{cri, supervisor as wire};
use crate::sys::owners::IdRange;

/// What a kubelet gives to a pod, and where the first such range begins.
const KUBELET_IDS: u32 = 65536;

fn options(config: &cri::PodSandboxConfig) -> Option<&cri::NamespaceOption> {
    config.linux.as_ref()?.security_context.as_ref()?.namespace_options.as_ref()
}

/// The ids of a pod's own user namespace; none: it lives in the node's. Of a pod that was let in.
pub(crate) fn ids(config: &cri::PodSandboxConfig) -> Option<IdRange> {
    let users = options(config)?.userns_options.as_ref()?;
    if users.mode() == cri::NamespaceMode::Node {
        return None;
    }
    users.uids.first().map(|line| IdRange { first: line.host_id, length: line.length })
}

/// Refuses what is malformed, and what the node cannot give.
pub(crate) fn check(config: &cri::PodSandboxConfig, facts: &Facts) -> Result<(), PodError> {
    let Some(options) = options(config) else { return Ok(()) };
    let Some(users) = &options.userns_options else { return Ok(()) };
    let mode = users.mode();
    let mapped = !users.uids.is_empty() || !users.gids.is_empty();
    match mode {
        cri::NamespaceMode::Node if mapped => {
            return Err(PodError::invalid("ids are mapped, but the pod is to use the node's user namespace"));
        }
        cri::NamespaceMode::Node => return Ok(()),
        cri::NamespaceMode::Pod => {}
        _ => {
            let message = format!("a user namespace is the pod's or the node's, not {}", mode.as_str_name());
            return Err(PodError::invalid(message));
        }
    }
    let range = one_range(users)?;
    for (what, shared) in [("PID", options.pid()), ("IPC", options.ipc()), ("network", options.network())] {
        if shared == cri::NamespaceMode::Node {
            return Err(PodError::invalid(format!(
                "a pod with a user namespace of its own cannot use the node's {what} namespace"
            )));
        }
    }
    enough(range, &facts.users, "user", "--add-subuids")?;
    enough(range, &facts.groups, "group", "--add-subgids")
}

fn one_range(users: &cri::UserNamespace) -> Result<IdRange, PodError> {
    let ([line], true) = (users.uids.as_slice(), users.uids == users.gids) else {
        return Err(PodError::invalid(format!(
            "a pod's user namespace has one range of ids, the same for users and groups; asked for are {} of users and {} of \
             groups{}",
            users.uids.len(),
            users.gids.len(),
            if users.uids == users.gids { "" } else { ", which differ" }
        )));
    };
    if line.container_id != 0 || line.length == 0 || line.host_id.checked_add(line.length).is_none() {
        return Err(PodError::invalid(format!(
            "the ids of a pod's user namespace begin with 0 and are at least one, not {} from {} (node's {})",
            line.length, line.container_id, line.host_id
        )));
    }
    Ok(IdRange { first: line.host_id, length: line.length })
}

/// How many ids, from 0 on, the node has without a gap.
fn reach(ranges: &[(u32, u32)]) -> u64 {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    sorted.iter().fold(0, |reach, &(first, count)| match u64::from(first) <= reach {
        true => reach.max(u64::from(first) + u64::from(count)),
        false => reach,
    })
}

fn enough(range: IdRange, node: &[(u32, u32)], what: &str, option: &str) -> Result<(), PodError> {
    let (has, end) = (reach(node), u64::from(range.first) + u64::from(range.length));
    if end <= has {
        return Ok(());
    }
    let missing = end - has;
    Err(PodError::precondition(format!(
        "the pod's user namespace is to be the {what} ids {} to {} of the node, {} of them, but the node has {has} {what} ids, 0 \
         to {}: {missing} are missing; give the user who runs cricket {missing} more (usermod {option} FIRST-LAST), then \
         `cricket stop --pods` and start it again",
        range.first,
        end - 1,
        range.length,
        has.saturating_sub(1),
    )))
}

/// Whether a kubelet's first pod with a user namespace would find its ids.
pub(crate) fn is_possible(facts: &Facts) -> bool {
    let needed = u64::from(KUBELET_IDS) * 2;
    facts.user_namespaces && reach(&facts.users) >= needed && reach(&facts.groups) >= needed
}

/// For the supervisor.
pub(crate) fn wire_maps(config: &cri::PodSandboxConfig) -> Vec<wire::IdMap> {
    let map = |ids: IdRange| wire::IdMap { container_id: 0, host_id: ids.first, length: ids.length };
    ids(config).map(map).into_iter().collect()
}

/// Whose the files of the pod's images are; none: as they are.
pub(crate) async fn owners(
    config: &cri::PodSandboxConfig,
    supervisor: &Supervisor,
) -> Result<Option<Owners>, PodError> {
    let Some(ids) = ids(config) else { return Ok(None) };
    Ok(Some(Owners { user_namespace: Arc::new(supervisor.user_namespace().await?), ids }))
}

/// Nobody can be a user that the namespace, the pod's or the node's, has not got.
pub(crate) fn check_user(user: &ContainerUser, ids: Option<IdRange>) -> Result<(), PodError> {
    let Some(ids) = ids else { return user.check_mapped() };
    let mut all = [user.uid, user.gid].into_iter().chain(user.groups.iter().copied());
    match all.find(|&id| ids.outside(id).is_none()) {
        None => Ok(()),
        Some(id) => Err(PodError::precondition(format!(
            "the container is to run with the id {id}, but its pod's user namespace has the ids 0 to {}",
            ids.length - 1
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(users: cri::UserNamespace) -> cri::PodSandboxConfig {
        let mut config = cri::PodSandboxConfig::default();
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.namespace_options.get_or_insert_default().userns_options = Some(users);
        config
    }

    fn mapped(lines: &[(u32, u32, u32)]) -> cri::UserNamespace {
        let lines: Vec<_> = lines
            .iter()
            .map(|&(container_id, host_id, length)| cri::IdMapping { container_id, host_id, length })
            .collect();
        cri::UserNamespace { mode: cri::NamespaceMode::Pod.into(), uids: lines.clone(), gids: lines }
    }

    fn facts(ranges: &[(u32, u32)]) -> Facts {
        let node = Facts::read().expect("this machine has facts");
        Facts { users: ranges.to_vec(), groups: ranges.to_vec(), user_namespaces: true, ..node }
    }

    #[test]
    fn one_range_from_zero_on_is_taken_and_nothing_else() {
        let facts = facts(&[(0, u32::MAX)]);
        assert!(check(&pod(mapped(&[(0, 65536, 65536)])), &facts).is_ok());
        for lines in [&[][..], &[(0, 1000, 10), (0, 2000, 10)], &[(1, 1000, 10)], &[(0, 1000, 0)], &[(0, u32::MAX, 2)]]
        {
            let refused = check(&pod(mapped(lines)), &facts).expect_err("refused");
            assert_eq!(refused.kind, crate::pod::PodErrorKind::Invalid, "{lines:?}");
        }
        let mut users = mapped(&[(0, 65536, 65536)]);
        users.gids[0].host_id = 0;
        assert!(check(&pod(users), &facts).is_err());
        for mode in [cri::NamespaceMode::Container, cri::NamespaceMode::Target] {
            assert!(check(&pod(cri::UserNamespace { mode: mode.into(), ..Default::default() }), &facts).is_err());
        }
        let node = cri::UserNamespace { mode: cri::NamespaceMode::Node.into(), ..Default::default() };
        assert!(check(&pod(node.clone()), &facts).is_ok());
        assert_eq!(ids(&pod(node)), None);
    }

    #[test]
    fn namespaces_of_the_node_are_not_for_a_pod_with_users_of_its_own() {
        let mut config = pod(mapped(&[(0, 65536, 65536)]));
        let security = config.linux.as_mut().and_then(|l| l.security_context.as_mut()).expect("one");
        security.namespace_options.as_mut().expect("one").set_pid(cri::NamespaceMode::Node);
        assert!(check(&config, &facts(&[(0, u32::MAX)])).is_err());
    }

    #[test]
    fn too_few_ids_are_refused_with_the_arithmetic() {
        let ordinary = [(0, 1), (1, 65536)];
        let refused = check(&pod(mapped(&[(0, 65536, 65536)])), &facts(&ordinary)).expect_err("refused").to_string();
        for part in ["65536 to 131071", "65537 user ids", "65535 are missing", "--add-subuids"] {
            assert!(refused.contains(part), "{part}: {refused}");
        }
        assert!(!is_possible(&facts(&ordinary)));
        let enough = facts(&[(1, 131_071), (0, 1)]);
        assert!(check(&pod(mapped(&[(0, 65536, 65536)])), &enough).is_ok() && is_possible(&enough));
        // A gap ends what can be counted on.
        assert_eq!(reach(&[(0, 1), (2, 100_000)]), 1);
    }

    #[test]
    fn a_user_outside_the_namespace_is_refused() {
        let user = |uid| ContainerUser { uid, gid: 0, groups: vec![0], home: "/".into() };
        let ids = Some(IdRange { first: 65536, length: 65536 });
        assert!(check_user(&user(65535), ids).is_ok() && check_user(&user(65536), None).is_ok());
        assert!(check_user(&user(65536), ids).expect_err("refused").to_string().contains("65536"));
    }
}
