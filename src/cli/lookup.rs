//! What a person means by a name: an id, the beginning of one, or the name of a container or pod.

use anyhow::{anyhow, bail};

use crate::proto::cri::{Container, PodSandbox};

/// Shortest beginning of an id that is taken for one.
const PREFIX_DIGITS: usize = 3;

/// The one pod that `name` means.
pub fn pod(name: &str, pods: Vec<PodSandbox>) -> anyhow::Result<PodSandbox> {
    let named = |pod: &PodSandbox| pod.metadata.as_ref().is_some_and(|metadata| metadata.name == name);
    one("pod", name, pods.into_iter().filter(|pod| named(pod) || is_prefix(name, &pod.id)).collect(), |pod| &pod.id)
}

/// The one container that `name` means; the name of a pod means its container if it has one only.
pub fn container(name: &str, containers: Vec<Container>, pods: &[PodSandbox]) -> anyhow::Result<Container> {
    let named = |container: &Container| container.metadata.as_ref().is_some_and(|metadata| metadata.name == name);
    let in_pod = |container: &Container| {
        let pod = pods.iter().find(|pod| pod.id == container.pod_sandbox_id);
        pod.and_then(|pod| pod.metadata.as_ref()).is_some_and(|metadata| metadata.name == name)
    };
    let (found, others): (Vec<_>, Vec<_>) =
        containers.into_iter().partition(|container| is_prefix(name, &container.id) || named(container));
    let found = if found.is_empty() { others.into_iter().filter(in_pod).collect() } else { found };
    one("container", name, found, |container| &container.id)
}

fn is_prefix(name: &str, id: &str) -> bool {
    name.len() >= PREFIX_DIGITS && id.starts_with(name)
}

fn one<T>(kind: &str, name: &str, mut found: Vec<T>, id: impl Fn(&T) -> &String) -> anyhow::Result<T> {
    if found.len() > 1 {
        let ids: Vec<&str> = found.iter().map(|item| super::table::short_id(id(item))).collect();
        bail!("{name:?} may be any of the {kind}s {}: give more of the id", ids.join(", "));
    }
    let command = if kind == "pod" { "cricket pods" } else { "cricket ps -a" };
    found.pop().ok_or_else(|| anyhow!("there is no {kind} {name:?}: `{command}` lists them"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cri::{ContainerMetadata, PodSandboxMetadata};

    fn pod_of(id: &str, name: &str) -> PodSandbox {
        let metadata = PodSandboxMetadata { name: name.to_owned(), ..Default::default() };
        PodSandbox { id: id.to_owned(), metadata: Some(metadata), ..Default::default() }
    }

    fn container_of(id: &str, pod: &str, name: &str) -> Container {
        Container {
            id: id.to_owned(),
            pod_sandbox_id: pod.to_owned(),
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            ..Default::default()
        }
    }

    #[test]
    fn a_container_is_meant_by_id_by_name_and_by_its_pods_name() {
        let pods = [pod_of("aaaa1111", "web"), pod_of("bbbb1111", "db")];
        let containers = vec![
            container_of("cccc2222", "aaaa1111", "nginx"),
            container_of("cccd2222", "aaaa1111", "sidecar"),
            container_of("dddd2222", "bbbb1111", "postgres"),
        ];
        let cases = [
            ("cccc", Ok("cccc2222")),
            ("nginx", Ok("cccc2222")),
            ("db", Ok("dddd2222")),
            ("ccc", Err("cccc2222, cccd2222")),
            ("web", Err("may be any")),
            ("dd", Err("no container")),
            ("", Err("no container")),
        ];
        for (name, expected) in cases {
            match (container(name, containers.clone(), &pods), expected) {
                (Ok(found), Ok(id)) => assert_eq!(found.id, id),
                (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
                (found, expected) => panic!("{name}: {found:?} {expected:?}"),
            }
        }
    }

    #[test]
    fn a_pod_is_meant_by_id_and_by_name() {
        let pods = vec![pod_of("aaaa1111", "web"), pod_of("aaaa2222", "db")];
        assert_eq!(pod("db", pods.clone()).expect("found").id, "aaaa2222");
        assert_eq!(pod("aaaa1", pods.clone()).expect("found").id, "aaaa1111");
        assert!(pod("aaaa", pods).is_err());
    }
}
