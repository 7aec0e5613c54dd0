//! Status: whether pods can be run, and what this runtime can do. A kubelet asks every five seconds.

use std::collections::HashMap;

use serde_json::json;
use tonic::Status;

use crate::config::CgroupDriver;
use crate::cri::{Facts, Services};
use crate::proto::cri::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusRequest,
    StatusResponse,
};

/// kubeadm reads a sandbox image from `config.sandboxImage` and compares it with its own. None is ever pulled or run:
/// a pod's supervisor takes its place.
const SANDBOX_IMAGE: &str = "registry.k8s.io/pause:3.10.1";

/// The default handlers, for as long as the others are not known.
const OWN_HANDLERS: [&str; 2] = ["", "cricket"];

/// See the module.
pub async fn status(services: &Services, request: StatusRequest) -> Result<StatusResponse, Status> {
    let facts = services.facts();
    Ok(StatusResponse {
        status: Some(RuntimeStatus { conditions: conditions(services).await }),
        info: if request.verbose { info(facts) } else { HashMap::new() },
        runtime_handlers: handlers(services).iter().map(|name| handler(name, services)).collect(),
        features: Some(RuntimeFeatures { supplemental_groups_policy: true, mount_options: true, ..Default::default() }),
    })
}

/// Those that a RuntimeClass may name; the empty one is the default.
fn handlers(services: &Services) -> Vec<String> {
    services.pods().map_or_else(|_| OWN_HANDLERS.map(str::to_owned).to_vec(), crate::pod::Pods::runtime_handlers)
}

fn handler(name: &str, services: &Services) -> RuntimeHandler {
    let user_namespaces = services.pods().is_ok_and(crate::pod::Pods::has_user_namespaces);
    let recursive_read_only_mounts = services.pods().is_ok_and(crate::pod::Pods::has_recursive_read_only);
    let features = RuntimeHandlerFeatures { recursive_read_only_mounts, user_namespaces };
    RuntimeHandler { name: name.to_owned(), features: Some(features) }
}

async fn conditions(services: &Services) -> Vec<RuntimeCondition> {
    let starting = || Some(("Starting", "pods and images are being read".to_owned()));
    let (runtime, network) = match services.pods() {
        Err(_) => (starting(), starting()),
        Ok(pods) => (None, pods.network_missing().await.map(|why| ("NetworkMissing", why))),
    };
    vec![condition("RuntimeReady", runtime), condition("NetworkReady", network)]
}

fn condition(name: &str, missing: Option<(&str, String)>) -> RuntimeCondition {
    let status = missing.is_none();
    let (reason, message) = missing.unwrap_or_default();
    RuntimeCondition { r#type: name.to_owned(), status, reason: reason.to_owned(), message }
}

/// What a person or an installer looks for.
fn info(facts: &Facts) -> HashMap<String, String> {
    let config = &facts.config;
    let node = &facts.node;
    let config = json!({
        "sandboxImage": SANDBOX_IMAGE,
        "cgroupDriver": driver_name(config.cgroup_driver),
        "root": config.root,
        "state": config.state,
        "registryConfigPath": config.registry_config_path,
        "cniConfigDir": config.cni_config_dir,
        "cniPluginDirs": config.cni_plugin_dirs,
        "podCidrs": config.pod_cidrs,
        "cdiSpecDirs": config.cdi_spec_dirs,
        "metricsAddress": config.metrics_address.map(|address| address.to_string()),
        "runtimes": config.runtimes.keys().collect::<Vec<_>>(),
        // In the place and by the name at which installers look for it.
        "containerd": { "runtimes": { "runc": { "options": {
            "SystemdCgroup": config.cgroup_driver == CgroupDriver::Systemd,
        } } } },
    });
    let node = json!({
        "kind": format!("{:?}", node.kind).to_lowercase(),
        "pid": node.pid,
        "cgroupRoot": node.cgroups.root,
        "controllers": node.cgroups.controllers,
        "notEnforced": node.cgroups.missing,
    });
    HashMap::from([("config".to_owned(), config.to_string()), ("node".to_owned(), node.to_string())])
}

fn driver_name(driver: CgroupDriver) -> &'static str {
    match driver {
        CgroupDriver::Cgroupfs => "cgroupfs",
        CgroupDriver::Systemd => "systemd",
    }
}
